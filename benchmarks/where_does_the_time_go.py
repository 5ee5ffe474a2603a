"""Where does a call of the network spend its time, and how near is each kind of pass to what the machine can do?

Question: one 128x128 input at x4, float32, by compiled passes, each stage timed by itself: its operations, the bytes of
the arrays that it reads and writes, and the rates that follow, beside the rates of Conv2d(64, 64, 3) and of a copy.
Prediction: the convolutions near the rate of Conv2d, since their own arithmetic is 4/9 of what is counted here; the
scan far below both, since it computes exponentials; what feeds a block between the two.

    python benchmarks/where_does_the_time_go.py [--threads 2] [--clock wall] [--rounds 15] [--json FILE]
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import measuring
from network import fused, stages_timed
from repmamba.network.inference_stages import Stage

SCAN_MULTIPLY_ADDS = 66  # of a channel, direction and pooled pixel, as `repmamba evaluate --cost` counts
COPIED = 1 << 26  # numbers: 256 MiB, which no cache holds

KINDS: dict[str, tuple[str, Callable[..., int]]] = {
    # The name of a kernel: what it computes, and its multiply-adds from its arguments.
    "first_convolution": ("first 3x3 convolution", lambda h, w, x, edge, weight, *_: len(x) * weight.size),
    "front": (
        "RMB, first half",
        lambda h, w, v, scale, shift, in_x, bias, conv, conv_bias, high, high_bias, x_proj, *_: (
            len(v) * (in_x.size + conv.size + high.size) + len(v) // 4 * x_proj.size
        ),
    ),
    "forward": (
        "scan",
        lambda *arguments: SCAN_MULTIPLY_ADDS * 2 * arguments[-1].size,
    ),  # y holds two of four directions
    "tail": (
        "RMB, second half",
        lambda h, w, v, scale, shift, in_z, bias, y, halves, out_scale, out_shift, out_proj, *_: (
            len(v) * (in_z.size + out_proj.size)
        ),
    ),
    "feed_forward": (
        "ConvFFN",
        lambda h, w, t, c, ones, zeros, fc1, bias, conv, conv_bias, fc2, *_: len(t) * (fc1.size + conv.size + fc2.size),
    ),
    "convolution": (
        "3x3 convolutions",
        lambda h, w, x, normed, scale, shift, frame, weight, *_: len(x) * 9 * weight[0].size,
    ),
}


def bytes_of(arguments: Sequence[object]) -> int:
    """Of all arrays among the arguments, each part of memory once."""
    arrays = {x.__array_interface__["data"][0]: x for x in arguments if isinstance(x, np.ndarray) and x.size}
    return sum(
        x.itemsize * int(np.prod([n for n, step in zip(x.shape, x.strides, strict=True) if step]))
        for x in arrays.values()
    )


def copy() -> measuring.Run:
    """A copy that gives the rate of memory, by all threads of torch."""
    source, target = torch.rand(COPIED), torch.empty(COPIED)
    return lambda: target.copy_(source)


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=15)
    network, image = fused(), torch.rand(1, 3, 128, 128)
    seconds: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)  # in one call
    work: dict[str, tuple[int, int, int]] = {}  # of one call: stages, operations, bytes

    def tell(stage: Stage, taken: float) -> None:
        kind, multiply_adds = KINDS[stage.kernel.__name__.partition("_with_")[0]]
        spent[kind] += taken
        calls, operations, moved = work.get(kind, (0, 0, 0))
        more = 2 * multiply_adds(*stage.arguments)
        work[kind] = calls + 1, operations + more, moved + bytes_of(stage.arguments)

    with torch.inference_mode():
        network(image)
        rates = measuring.measure({measuring.CONVOLUTION: measuring.convolution(), "copy": copy()}, options)
        with stages_timed(measuring.clock(options), tell):
            for _ in range(options.rounds):
                spent.clear()
                work.clear()
                network(image)
                for kind, value in spent.items():
                    seconds[kind].append(value)
    limits = {
        "gflop_per_second": measuring.CONVOLUTION_FLOP / statistics.median(rates[measuring.CONVOLUTION]) / 1e9,
        "gb_per_second": 2 * 4 * COPIED / statistics.median(rates["copy"]) / 1e9,
    }
    passes = [_row(kind, *work[kind], statistics.median(values)) for kind, values in seconds.items()]
    whole = sum(row["ms"] for row in passes)
    print(f"{'':<24} {'calls':>5} {'ms':>8} {'share':>6} {'GFLOP':>7} {'MB':>7} {'GFLOP/s':>8} {'GB/s':>6}")
    for row in passes:
        row["share"] = row["ms"] / whole
        print(
            f"{row['what']:<24} {row['calls']:>5} {row['ms']:>8.2f} {row['share']:>6.1%} {row['gflop']:>7.2f} "
            f"{row['mb']:>7.1f} {row['gflop_per_second']:>8.1f} {row['gb_per_second']:>6.1f}"
        )
    print(f"\nConv2d(64, 64, 3): {limits['gflop_per_second']:.0f} GFLOP/s; a copy: {limits['gb_per_second']:.1f} GB/s")
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
