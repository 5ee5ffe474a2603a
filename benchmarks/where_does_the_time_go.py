"""Where does a call of the network spend its time, and how near is each kind of pass to what the
machine can do?

Question: one 128x128 input at x4, float32, by compiled passes, each stage timed by itself: its
operations, the bytes of the arrays that it reads and writes, and the rates that follow, beside the
rates of Conv2d(64, 64, 3) and of a copy. Prediction: the convolutions near the rate of Conv2d,
since their own arithmetic is 4/9 of what is counted here; the scan far below both, since it
computes exponentials; what feeds a block between the two.

    python benchmarks/where_does_the_time_go.py [--threads 2] [--clock wall] [--rounds 15] [--json
    FILE]
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import measuring
from network import Stages, operations_of_torch

# of a channel, direction and pooled pixel, as `repmamba evaluate --cost` counts
SCAN_MULTIPLY_ADDS = 66
COPIED = 1 << 26  # numbers: 256 MiB, which no cache holds

Work = Callable[[Any, int], int]

KINDS: dict[str, tuple[str, Work, Work]] = {
    # The name of a kernel: what it computes, its multiply-adds, and the numbers that it reads and
    # writes, from its arguments and the pixels of all images.
    "first_convolution": (
        "first 3x3 convolution",
        lambda a, pixels: pixels * 9 * a.inputs * a.outputs,
        lambda a, pixels: pixels * (a.inputs + 2 * a.outputs),
    ),
    "front": (
        "RMB, first half",
        lambda a, pixels: (
            pixels * a.channels * (2 * a.channels + 27) + pixels // 4 * a.channels * a.projections
        ),
        lambda a, pixels: pixels * 3 * a.channels + pixels // 4 * (a.channels + a.projections),
    ),
    "scan_forward": (
        "scan",
        # a quarter of the pixels, in four directions
        lambda a, pixels: SCAN_MULTIPLY_ADDS * pixels * a.channels,
        lambda a, pixels: pixels // 4 * (3 * a.channels + 4 * (a.rank + 32)),
    ),
    "tail": (
        "RMB, second half",
        lambda a, pixels: pixels * 4 * a.channels**2,
        lambda a, pixels: pixels * (4 * a.channels + a.channels // 2 + 2 * a.beside_channels),
    ),
    "feed_forward": (
        "ConvFFN",
        lambda a, pixels: pixels * a.hidden * (2 * a.channels + 25),
        lambda a, pixels: pixels * 3 * a.channels,
    ),
    "convolution": (
        "3x3 convolutions",
        lambda a, pixels: pixels * 9 * a.inputs * a.outputs,
        lambda a, pixels: pixels * (a.inputs + (2 if a.skip else 1) * a.outputs),
    ),
}


def copy() -> measuring.Run:
    """A copy that gives the rate of memory, by all threads of torch."""
    source, target = torch.rand(COPIED), torch.empty(COPIED)
    return lambda: target.copy_(source)


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=15)
    image = torch.rand(1, 3, 128, 128)
    stages, pixels = Stages(operations_of_torch(), image), image[0, 0].numel()
    seconds: dict[str, list[float]] = defaultdict(list)
    rates = measuring.measure(
        {measuring.CONVOLUTION: measuring.convolution(), "copy": copy()}, options
    )
    for _ in range(options.rounds):
        spent: dict[str, float] = defaultdict(float)  # in one call
        work: dict[str, tuple[int, int, int]] = {}  # of one call: stages, operations, bytes
        for stage, taken in stages.timed(measuring.clock(options)):
            kind, multiply_adds, numbers = KINDS[stage.kernel]
            spent[kind] += taken
            calls, operations, moved = work.get(kind, (0, 0, 0))
            more = 2 * multiply_adds(stage.arguments, pixels)
            work[kind] = calls + 1, operations + more, moved + 4 * numbers(stage.arguments, pixels)
        for kind, value in spent.items():
            seconds[kind].append(value)
    limits = {
        "gflop_per_second": measuring.CONVOLUTION_FLOP
        / statistics.median(rates[measuring.CONVOLUTION])
        / 1e9,
        "gb_per_second": 2 * 4 * COPIED / statistics.median(rates["copy"]) / 1e9,
    }
    passes = [
        _row(kind, *work[kind], statistics.median(values)) for kind, values in seconds.items()
    ]
    whole = sum(row["ms"] for row in passes)
    print(
        f"{'':<24} {'calls':>5} {'ms':>8} {'share':>6} {'GFLOP':>7} {'MB':>7} {'GFLOP/s':>8} "
        f"{'GB/s':>6}"
    )
    for row in passes:
        row["share"] = row["ms"] / whole
        print(
            f"{row['what']:<24} {row['calls']:>5} {row['ms']:>8.2f} {row['share']:>6.1%} "
            f"{row['gflop']:>7.2f} "
            f"{row['mb']:>7.1f} {row['gflop_per_second']:>8.1f} {row['gb_per_second']:>6.1f}"
        )
    print(
        f"\nConv2d(64, 64, 3): {limits['gflop_per_second']:.0f} GFLOP/s; a copy: "
        f"{limits['gb_per_second']:.1f} GB/s"
    )
    measuring.write(options, passes=passes, limits=limits)


def _row(kind: str, calls: int, operations: int, moved: int, seconds: float) -> dict[str, Any]:
    return {
        "what": kind,
        "calls": calls,
        "ms": 1e3 * seconds,
        "gflop": operations / 1e9,
        "mb": moved / 1e6,
        "gflop_per_second": operations / seconds / 1e9,
        "gb_per_second": moved / seconds / 1e9,
    }


if __name__ == "__main__":
    main()
