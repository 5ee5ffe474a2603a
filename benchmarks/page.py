"""Writes the tables of docs/speed.md from what the benchmarks of speed left in results/: python benchmarks/page.py."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- {name} -->", "<!-- until here -->"

QUESTIONS = (
    "how_far_from_its_own_arithmetic",
    "how_does_it_grow_with_area",
    "against_a_light_window_transformer",
    "how_long_is_a_training_step",
)


def main() -> None:
    """Put each result's table between its marks; a question without a result keeps what stands there."""
    text = PAGE.read_text("utf-8")
    for name in QUESTIONS:
        result = RESULTS / f"{name}.json"
        if result.is_file():
            before, _, rest = text.partition(BEGIN.format(name=name))
            _, _, after = rest.partition(END)
            table = markdown(json.loads(result.read_text("utf-8")))
            text = f"{before}{BEGIN.format(name=name)}\n\n{table}\n{END}{after}"
    PAGE.write_text(text, "utf-8")


def markdown(result: dict[str, Any]) -> str:
    """A result as a table, with the ratios and the machine below it."""
    columns = {"units_of_its_own": "units of its own", "times_a_quarter": "times a quarter", "memory_mb": "memory, MB"}
    more = [name for name in columns if any(row.get(name) for row in result["times"])]
    heads = ["", "ms", "quartiles", "units", *(columns[name] for name in more)]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in result["times"]:
        low, high = row["ms_quartiles"]
        cells = [row["what"], f"{row['ms']:.1f}", f"{low:.1f} to {high:.1f}", f"{row['units']:.2f}"]
        cells += [f"{row[name]:.4g}" if row.get(name) else "" for name in more]
        lines.append(f"| {' | '.join(cells)} |")
    machine, versions = result["machine"], result["versions"]
    lines += ["", *ratios(result)]
    lines.append(
        f"{machine['processor']}, {machine['threads']} threads, {machine['clock']} clock, torch {versions['torch']}, "
        f"numba {versions['numba']}."
    )
    return "\n".join(lines) + "\n"


def ratios(result: dict[str, Any]) -> list[str]:
    """What else a result holds: ratios taken pair by pair, and the scan's share."""
    lines = [
        f"- {name}: {value:.2f} times {key.removeprefix('times_').replace('_', ' ')}"
        for key, values in result.items()
        if key.startswith("times_") and isinstance(values, dict)
        for name, value in values.items()
    ]
    if "share_of_the_scan" in result:
        lines.append(f"- in the scan, of a call by compiled passes: {100 * result['share_of_the_scan']:.0f} %")
    if "times_ours" in result:
        lines.append(f"- the transformer takes {result['times_ours']:.2f} times as long")
    return [*lines, ""] if lines else []


if __name__ == "__main__":
    main()
