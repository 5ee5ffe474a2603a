"""How the benchmarks of speed measure: rounds in which every candidate runs once, ratios pair by
pair, one JSON.

The unit is the time of the network's own arithmetic, 21.2 GFLOP for a 128x128 input at x4 without
its scan, at the rate of Conv2d(64, 64, 3) on 1x64x128x128 in the same process; data that others
publish in it can be laid beside ours.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import answers
from repmamba.cores import available_cores

Run = Callable[[], object]
Times = dict[str, list[float]]

CONVOLUTION = "Conv2d(64, 64, 3)"
CONVOLUTION_FLOP = 2 * 64 * 64 * 9 * 128 * 128
# of one 128x128 input at x4, the scan not counted; four times the pixels are four times as many
NETWORK_FLOP = 21.2e9

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


def start(description: str | None, *, rounds: int, threads: int | None = 2) -> argparse.Namespace:
    """Options shared by all, threads set; the process starts once more with an allocator that
    returns no memory.

    threads: by default, where there are so many cores; None for as many as cores, without an
    option.

    With the default one, page faults of the library's own operations are measured as well, by up to
    half their time.
    """
    parser = answers.options(description)
    parser.add_argument(
        "--rounds",
        type=answers.count,
        metavar="N",
        default=rounds,
        help="rounds counted [%(default)s]",
    )
    cores = available_cores()
    if threads is None:
        parser.set_defaults(threads=cores)
    else:
        parser.add_argument(
            "--threads",
            type=answers.count,
            metavar="N",
            default=min(threads, cores),
            help="threads of a call [%(default)s]",
        )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of all threads, for a busy machine [wall]",
    )
    options = parser.parse_args()
    if not ALLOCATOR.keys() <= os.environ.keys() and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """The clock that the options name, in seconds."""
    return time.process_time if options.clock == "cpu" else time.perf_counter


def convolution() -> Run:
    """The convolution that gives the unit."""
    layer, image = torch.nn.Conv2d(64, 64, 3, padding=1), torch.rand(1, 64, 128, 128)
    return lambda: layer(image)


def measure(
    candidates: dict[str, Run],
    options: argparse.Namespace,
    *,
    slow: frozenset[str] = frozenset(),
    twice: frozenset[str] = frozenset(),
    rest: float = 0.0,
) -> Times:
    """Seconds of each candidate in each round; one warm-up round first is not counted.

    Args:
        slow: Candidates that take part in two rounds only.
        twice: Candidates that run once more before each measured run: they keep their memory from
            call to call, as between the tiles of a scene, unless another candidate runs between.
        rest: Seconds to wait before each run, while idle threads of the previous one still spin.
    """
    seconds = clock(options)
    times: Times = {name: [] for name in candidates}
    for counted in range(options.rounds + 1):
        for name, run in candidates.items():
            if name in slow and counted > 2:
                continue
            if name in twice:
                run()
            time.sleep(rest)
            begin = seconds()
            run()
            if counted:
                times[name].append(seconds() - begin)
    return times


def ratio(times: Times, name: str, other: str, factor: float = 1.0) -> float:
    """The median over rounds of name over other, times a factor."""
    return factor * statistics.median(
        a / b for a, b in zip(times[name], times[other], strict=False)
    )


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third, within the values however few there are."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return low, high


def rows(times: Times, unit: float) -> list[dict[str, Any]]:
    """Median and quartiles in milliseconds, and the median in units; unit: units in one
    convolution.
    """
    found = []
    for name, values in times.items():
        units = ratio(times, name, CONVOLUTION, unit)
        found.append(
            {
                "what": name,
                "ms": 1e3 * statistics.median(values),
                "ms_quartiles": [1e3 * value for value in quartiles(values)],
                "rounds": len(values),
                "units": units,
            }
        )
    return found


# of a 128x128 input, in convolutions: what the time over the convolution's is multiplied by
UNIT = CONVOLUTION_FLOP / NETWORK_FLOP


def table(found: list[dict[str, Any]]) -> str:
    """Rows of `rows` as text."""
    lines = [f"{'':<44} {'ms':>9} {'quartiles, ms':>19} {'units':>8}"]
    for row in found:
        low, high = row["ms_quartiles"]
        lines.append(
            f"{row['what']:<44} {row['ms']:>9.2f} {low:>9.2f}-{high:<9.2f} {row['units']:>8.2f}"
        )
    return "\n".join(
        [*lines, f"unit: the time of the network's own arithmetic at the rate of {CONVOLUTION}"]
    )


def write(options: argparse.Namespace, **results: Any) -> None:
    """The results as JSON, where the options say."""
    answers.write(options.json, threads=options.threads, clock=options.clock, **results)
