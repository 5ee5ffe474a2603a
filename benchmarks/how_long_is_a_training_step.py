"""How long is a training step, beside its own arithmetic and beside the scan as it is defined?

Question: batch 8 of 32x32 at x4, forward, backward and update: under bfloat16 and in float32 with
the compiled scan, and under bfloat16 with the scan step by step. The unit is the arithmetic of a
step, three times that of its 8192 pixels forward, at the rate of a 3x3 convolution in float32.
Prediction: at most 2.5 units under bfloat16, and at least 10 times faster than with the scan step
by step.

    python benchmarks/how_long_is_a_training_step.py [--threads 2] [--clock wall] [--rounds 7]
    [--json FILE]
"""

import torch

import measuring
from network import not_fused
from repmamba.network.training_cpu import with_fast_passes
from repmamba.train.step import Batch, training_step

BATCH, SIDE = 8, 32
BF16, FLOAT32, STEPS = "bfloat16", "float32", "bfloat16, scan step by step"
STEP_UNIT = measuring.CONVOLUTION_FLOP / (3 * measuring.NETWORK_FLOP * BATCH * SIDE**2 / 128**2)


def step(precision: torch.dtype, backend: str | None = None) -> measuring.Run:
    """One training step of a network of its own."""
    network = not_fused(backend).train()
    if backend is None:
        with_fast_passes(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it for tensors alone
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    batch = Batch(torch.rand(BATCH, 3, SIDE, SIDE), torch.rand(BATCH, 3, 4 * SIDE, 4 * SIDE))
    loss = torch.nn.functional.l1_loss
    return lambda: training_step(network, optimiser, batch, loss, clip=1.0, precision=precision)


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=7)
    times = measuring.measure(
        {
            measuring.CONVOLUTION: measuring.convolution(),
            BF16: step(torch.bfloat16),
            FLOAT32: step(torch.float32),
            STEPS: step(torch.bfloat16, "definition"),
        },
        options,
        slow=frozenset({STEPS}),
    )
    found = measuring.rows(times, STEP_UNIT)
    against = {name: measuring.ratio(times, name, BF16) for name in (FLOAT32, STEPS)}
    print(measuring.table(found))
    for name, value in against.items():
        print(f"{name}: {value:.2f} times a step under bfloat16")
    measuring.write(options, times=found, times_bfloat16=against)


if __name__ == "__main__":
    main()
