"""How far is one call of the network from the time of its own arithmetic, and what of it is the
scan?

Question: a 128x128 input, x4, in units of the time that its 21.2 GFLOP take at the rate of a 3x3
convolution: the fused network by compiled passes, the same by operations of torch, either under
bfloat16, and not fused. Prediction: at most 2 units by compiled passes, the scan at most 15 % of
them; at least 20 times faster than the network not fused with the scan as it is defined, step by
step; bfloat16 1.4 times faster again where the processor has it.

    python benchmarks/how_far_from_its_own_arithmetic.py [--threads 2] [--clock wall] [--rounds 15]
    [--json FILE]
"""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor

import measuring
from network import Stages, in_passes, in_the_scan, not_fused, operations_of_torch

Network = Callable[[Tensor], Tensor]

PASSES, PAIRS = "fused, compiled passes", "fused, compiled passes, bfloat16"
TORCH, BF16 = "fused, operations of torch", "fused, operations of torch, bfloat16"
UNFUSED, STEPS = "not fused, compiled scan", "not fused, scan step by step"


def in_bfloat16() -> AbstractContextManager[object]:
    """The layers that torch's autocast takes to it."""
    return torch.autocast("cpu", torch.bfloat16)


def called(
    network: Network, image: Tensor, *contexts: Callable[[], AbstractContextManager[object]]
) -> measuring.Run:
    """One call of a network within contexts."""

    def run() -> object:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return network(image)

    return run


def share_of_the_scan(stages: Stages, clock: Callable[[], float], rounds: int) -> float:
    """The median share of the passes' time that is spent in the scan, each stage timed by
    itself.
    """
    shares = []
    for _ in range(rounds):
        taken = stages.timed(clock)
        shares.append(
            sum(seconds for stage, seconds in taken if in_the_scan(stage))
            / sum(each for _, each in taken)
        )
    return statistics.median(shares)


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=15)
    network, image = operations_of_torch(), torch.rand(1, 3, 128, 128)
    candidates = {measuring.CONVOLUTION: measuring.convolution()}
    for name, precision in ((PASSES, torch.float32), (PAIRS, torch.bfloat16)):
        if passes := in_passes(network, precision):
            candidates[name] = called(passes, image)
    candidates |= {
        TORCH: called(network, image),
        BF16: called(network, image, in_bfloat16),
        UNFUSED: called(not_fused().eval(), image),
        STEPS: called(not_fused("definition").eval(), image),
    }
    with torch.inference_mode():
        times = measuring.measure(
            candidates, options, slow=frozenset({STEPS}), twice=frozenset({PASSES, PAIRS})
        )
        share = share_of_the_scan(Stages(network, image), measuring.clock(options), options.rounds)
    found = measuring.rows(times, measuring.UNIT)
    against = {name: measuring.ratio(times, name, PASSES) for name in list(candidates)[2:]}
    print(measuring.table(found))
    print(f"\nof a call by compiled passes, in the scan: {100 * share:.1f} %")
    for name, value in against.items():
        print(f"{name}: {value:.2f} times the compiled passes")
    measuring.write(options, times=found, share_of_the_scan=share, times_compiled_passes=against)


if __name__ == "__main__":
    main()
