"""Write the measured tables and plots of docs/explanation/speed.md and evaluation.md.

The tables of speed are those of results/; the accuracy of other networks at x4, in both pages, is
that of accuracy_x4.csv, and that of ours in the course of training is that of learning.csv.

python benchmarks/page.py [--results FOLDER] [--docs FOLDER]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import plots

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs" / "explanation"
BEGIN, END = "<!-- {name} -->", "<!-- until here -->"

QUESTIONS = (
    "how_far_from_its_own_arithmetic",
    "where_does_the_time_go",
    "how_does_it_grow_with_area",
    "how_does_it_grow_with_threads",
    "against_a_light_window_transformer",
    "against_other_runtimes",
    "how_long_is_a_training_step",
)


def main() -> None:
    """Put each result's table between its marks, and draw; a question without a result keeps what
    stands there.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", default=RESULTS, help="the answers [%(default)s]"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        default=DOCS,
        help="both pages, the plots [%(default)s]",
    )
    options = parser.parse_args()
    results = {
        path.stem: json.loads(path.read_text("utf-8")) for path in options.results.glob("*.json")
    }
    plots.draw(results, options.docs)
    for name in QUESTIONS:
        if result := results.get(name):
            write_between_marks(options.docs / "speed.md", name, markdown(result))
    if time := results.get("how_far_from_its_own_arithmetic"):
        networks = plots.networks(time)
        write_between_marks(options.docs / "speed.md", "accuracy_x4", standing(networks))
        write_between_marks(options.docs / "evaluation.md", "accuracy_x4", accuracy(networks))


def write_between_marks(page: Path, name: str, text: str) -> None:
    """Put the text in the place of what stands between the mark of that name and the end of its
    part.
    """
    before, begun, rest = page.read_text("utf-8").partition(BEGIN.format(name=name))
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        sys.exit(
            f"{page} has no {BEGIN.format(name=name)} with {END} below it: put them where the "
            "table belongs."
        )
    page.write_text(f"{before}{BEGIN.format(name=name)}\n\n{text}\n{END}{after}", "utf-8")


def accuracy(networks: list[dict[str, str]]) -> str:
    """The networks as a table: PSNR and SSIM on each set, and the time where it was measured."""
    lines = [
        "| network | parameters | RSSCN7 | UC Merced | EPFL roads | time, units |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in networks:
        cells = [row["network"], f"{row['parameters']} K"]
        cells += [
            f"{row[name]} / {row[f'{name} ssim']}" for name in ("rsscn7", "ucmerced", "epfl_road")
        ]
        lines.append(f"| {' | '.join([*cells, row['units']])} |")
    return "\n".join(lines) + "\n"


def standing(networks: list[dict[str, str]]) -> str:
    """Where ours stands among the networks whose time is known, in words."""
    ours, *others = [row for row in networks if row["units"]]
    better = [row for row in others if float(row["ucmerced"]) > float(ours["ucmerced"])]
    faster = [row["network"] for row in better if float(row["units"]) < float(ours["units"])]
    named = f" Faster and more accurate: {'; '.join(faster)}." if faster else ""
    return (
        f"{len(better)} of the {len(others)} others are more accurate than the packaged x4 "
        f"weights.{named}\n"
    )


def markdown(result: dict[str, Any]) -> str:
    """A result as a table, with the ratios and the machine below it."""
    lines = _passes(result) if "passes" in result else _times(result)
    machine, versions = result["machine"], result["versions"]
    lines += ["", *ratios(result)]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    lines.append(
        f"{machine['processor']}, {threads}, {machine['clock']} clock, torch {versions['torch']}."
    )
    return "\n".join(lines) + "\n"


def _times(result: dict[str, Any]) -> list[str]:
    columns = {
        "units_of_its_own": "units of its own",
        "times_a_quarter": "times a quarter",
        "memory_mb": "memory, MB",
    }
    more = [name for name in columns if any(row.get(name) for row in result["times"])]
    heads = ["", "ms", "quartiles", "units", *(columns[name] for name in more)]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in result["times"]:
        low, high = row["ms_quartiles"]
        cells = [row["what"], f"{row['ms']:.1f}", f"{low:.1f} to {high:.1f}", f"{row['units']:.2f}"]
        cells += [f"{row[name]:.4g}" if row.get(name) else "" for name in more]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _passes(result: dict[str, Any]) -> list[str]:
    limits = result["limits"]
    lines = ["| | calls | ms | share | GFLOP | MB | GFLOP/s | GB/s |", "| --- |" + " ---: |" * 7]
    for row in result["passes"]:
        lines.append(
            f"| {row['what']} | {row['calls']} | {row['ms']:.1f} | {row['share']:.0%} | "
            f"{row['gflop']:.2f} | "
            f"{row['mb']:.0f} | {row['gflop_per_second']:.0f} | {row['gb_per_second']:.1f} |"
        )
    limit = f"| {limits['gflop_per_second']:.0f} | {limits['gb_per_second']:.1f} |"
    return [*lines, f"| what the machine does: Conv2d, a copy | | | | | | {limit[2:]}"]


def ratios(result: dict[str, Any]) -> list[str]:
    """What else a result holds: ratios taken pair by pair, and the scan's share."""
    lines = [
        f"- {name}: {value:.2f} times {key.removeprefix('times_').replace('_', ' ')}"
        for key, values in result.items()
        if key.startswith("times_") and isinstance(values, dict)
        for name, value in values.items()
    ]
    if "share_of_the_scan" in result:
        lines.append(
            f"- in the scan, of a call by compiled passes: {100 * result['share_of_the_scan']:.0f} "
            "%"
        )
    lines += [
        f"- {name}: {value:.2f} times as many as one thread does in the same time"
        for name, value in result.get("images_of_one_thread", {}).items()
    ]
    if "times_ours" in result:
        lines.append(f"- the transformer takes {result['times_ours']:.2f} times as long")
    return [*lines, ""] if lines else []


if __name__ == "__main__":
    main()
