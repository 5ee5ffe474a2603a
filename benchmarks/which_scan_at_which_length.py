"""Which scan is the fastest at which length, and by how much?

Question: how long do the backends of the scan take for one map (batch 1, 4 directions, 16 states),
forward and with all gradients, and how does that grow with the number of pixels? Prediction: the
native scan is the fastest everywhere; at 4096 pixels the chunked one is at least 10 times faster
than the definition, and the native one at least 4 times faster than that. Beyond small maps each
grows with the number of pixels.

Timed: one thread, its CPU time, which a busy machine disturbs less than the clock. In every round
each candidate runs once, so ratios are taken pair by pair within a round; shown are medians, and
the quartiles of the times.

    python benchmarks/which_scan_at_which_length.py [--rounds 15] [--json FILE]
"""

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import answers
import measuring
from repmamba.scan.selective import scan_map

# channels, side of the map
CASES = ((64, 8), (64, 16), (64, 32), (64, 64), (64, 128), (8, 64), (16, 64), (32, 64))
SLOW = 4096  # pixels beyond which the definition is left out
Times = dict[tuple[str, str], list[float]]


def make_inputs(channels: int, side: int, batch: int = 1) -> list[Tensor]:
    """As the network meets them: maps in channels_last, dt small, rates -1 to -16."""
    torch.manual_seed(side)
    rank = math.ceil(channels / 32)
    p = torch.randn(batch, channels, side, side)
    projected = torch.randn(batch, 4 * (rank + 32), side, side)
    p, projected = (x.to(memory_format=torch.channels_last) for x in (p, projected))
    rates = torch.arange(1.0, 17.0).repeat(4 * channels, 1)
    return [
        p,
        projected,
        torch.randn(4, channels, rank),
        torch.randn(4, channels) - 3,
        -rates,
        torch.randn(4 * channels),
    ]


def candidates(inputs: list[Tensor]) -> dict[tuple[str, str], Callable[[], object]]:
    """What is timed, by name and by pass."""
    names = ["native", "chunked"] + ["definition"] * (inputs[0][0, 0].numel() <= SLOW)
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward(name: str) -> Callable[[], object]:
        return lambda: scan_map(*inputs, backend=name)

    def with_gradients(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(scan_map(*leaves, backend=name).sum(), leaves)

    timed: dict[tuple[str, str], Callable[[], object]] = {}
    for name in names:
        timed[name, "forward"] = forward(name)
        timed[name, "with gradients"] = with_gradients(name)
    return timed


def measure(timed: dict[tuple[str, str], Callable[[], object]], rounds: int) -> Times:
    """Milliseconds of each candidate in each round; the first round, which loads what is needed, is
    not counted.
    """
    times: Times = {key: [] for key in timed}
    for counted in range(rounds + 1):
        for key, run in timed.items():
            if key[0] == "definition" and counted > 3:
                continue  # a second a call: three are enough
            start = time.thread_time()
            run()
            if counted:
                times[key].append(1e3 * (time.thread_time() - start))
    return times


def summary(times: Times, channels: int, side: int) -> list[dict[str, object]]:
    """One row for each candidate: median, quartiles, and the median ratio to the native scan, pair
    by pair.
    """
    rows: list[dict[str, object]] = []
    for (name, way), values in times.items():
        pairs = zip(values, times["native", way], strict=False)
        rows.append(
            {
                "scan": name,
                "pass": way,
                "channels": channels,
                "pixels": side * side,
                "ms": statistics.median(values),
                "ms_quartiles": measuring.quartiles(values),
                "rounds": len(values),
                "times_native": statistics.median(value / own for value, own in pairs),
            }
        )
    return rows


def main() -> None:
    """Time, print the table, write the JSON."""
    parser = answers.options(__doc__)
    parser.add_argument(
        "--rounds", type=answers.count, metavar="N", default=15, help="rounds counted [%(default)s]"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    results = []
    for channels, side in CASES:
        inputs = make_inputs(channels, side)
        results += summary(measure(candidates(inputs), options.rounds), channels, side)

    print(
        f"{'pixels':>7} {'channels':>8}  {'scan':<18} {'pass':<15} {'ms':>9} {'quartiles, ms':>17} "
        f"{'x native':>8}"
    )
    for row in results:
        low, high = row["ms_quartiles"]
        print(
            f"{row['pixels']:>7} {row['channels']:>8}  {row['scan']:<18} {row['pass']:<15} "
            f"{row['ms']:>9.2f} "
            f"{low:>8.2f}-{high:<8.2f} {row['times_native']:>8.2f}"
        )
    answers.write(options.json, threads=1, clock="cpu", results=results)


if __name__ == "__main__":
    main()
