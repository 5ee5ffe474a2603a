"""How far is one call of the network from the time of its own arithmetic, and what of it is the scan?

Question: a 128x128 input, x4, in units of the time that its 21.2 GFLOP take at the rate of a 3x3 convolution: the fused
network by compiled passes, the same by operations of torch, by those under bfloat16, and not fused.
Prediction: at most 2 units by compiled passes, the scan at most 15 % of them; at least 20 times faster than the network
not fused with the scan as it is defined, step by step.

    python benchmarks/how_far_from_its_own_arithmetic.py [--threads 2] [--clock wall] [--rounds 15] [--json FILE]
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor, nn

import measuring
from repmamba.network import fusion, inference_cpu
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import SS2D
from repmamba.scan.selective import scan_map

PASSES, TORCH, BF16 = "fused, compiled passes", "fused, operations of torch", "fused, torch under bfloat16"
UNFUSED, STEPS = "not fused, compiled scan", "not fused, scan step by step"


def without_passes() -> AbstractContextManager[object]:
    """The fused network by operations of torch alone."""
    return patch.object(inference_cpu, "serves", lambda *tensors: False)


def called(network: nn.Module, image: Tensor, *contexts: Callable[[], AbstractContextManager[object]]) -> measuring.Run:
    """One call of a network within contexts."""

    def run() -> object:
        with contexts[0]() if contexts else nullcontext():
            return network(image)

    return run


class ScanClock:
    """Stands where the fused network calls the scan, and adds up the time spent there."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds, self.scan = clock, 0.0, scan_map

    def __call__(self, *arguments: Tensor, backend: str | None = None) -> Tensor:
        """As scan_map."""
        begin = self.clock()
        result = self.scan(*arguments, backend=backend)
        self.seconds += self.clock() - begin
        return result


def share_of_the_scan(network: nn.Module, image: Tensor, clock: Callable[[], float], rounds: int) -> float:
    """The least share of a call that is spent in the scan."""
    shares = []
    for _ in range(rounds):
        watch = ScanClock(clock)
        with patch.object(fusion, "scan_map", watch):
            begin = clock()
            network(image)
            shares.append(watch.seconds / (clock() - begin))
    return sorted(shares)[len(shares) // 2]


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=15)
    network = RepMamba(NetworkConfig()).eval()
    fused, image = fusion.fuse(network), torch.rand(1, 3, 128, 128)
    by_steps = RepMamba(NetworkConfig()).eval()
    for module in by_steps.modules():
        if isinstance(module, SS2D):
            module.backend = "definition"
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    with torch.inference_mode():
        times = measuring.measure(
            {
                measuring.CONVOLUTION: measuring.convolution(),
                PASSES: called(fused, image),
                TORCH: called(fused, image, without_passes),
                BF16: called(fused, image, lambda: torch.autocast("cpu", torch.bfloat16)),
                UNFUSED: called(network, image),
                STEPS: called(by_steps, image),
            },
            options,
            slow=frozenset({STEPS}),
        )
        share = share_of_the_scan(fused, image, clock, options.rounds)
    found = measuring.rows(times, measuring.UNIT)
    against = {name: measuring.ratio(times, name, PASSES) for name in (TORCH, BF16, UNFUSED, STEPS)}
    print(measuring.table(found))
    print(f"\nof a call by compiled passes, in the scan: {100 * share:.1f} %")
    for name, value in against.items():
        print(f"{name}: {value:.2f} times the compiled passes")
    measuring.write(options, times=found, share_of_the_scan=share, times_compiled_passes=against)


if __name__ == "__main__":
    main()
