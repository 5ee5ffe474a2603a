"""Scores as a table for the terminal, as JSON and as CSV.

Each number is printed with the name of its rule, and the rules are explained below. File names are
not trusted: control characters are escaped in the terminal, formulas in a spreadsheet.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from repmamba import __version__
from repmamba.durable import write_durable, write_errors
from repmamba.errors import TargetError
from repmamba.evaluate.cost import COUNTED, Cost
from repmamba.evaluate.metrics import Metric
from repmamba.evaluate.scores import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    RESAMPLES,
    ImageSet,
    Paired,
    Scores,
    Summary,
)

DIGITS = {"dB": 4, "degrees": 4, "": 5}
CLASS_MEANS = "mean of the class means"
COUNTED_COLUMNS = (
    *("network", "parameters", "RepConvs folded", "10^9 multiply-adds", "of these scan"),
)
REDUCED = "GT reduced by MATLAB's imresize, rounded to its type"
MEASURED_COLUMNS = ("ms", "peak MB")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def table(scores: Scores, costs: dict[str, Cost]) -> str:
    """The means of each set, paired differences to the last method, costs, and rules."""
    parts = [_means(scores)]
    if len(scores.methods) > 1:
        parts.append(_differences(scores))
    if costs:
        parts.append(cost_table(costs))
    parts.append("\n".join(["Rules", *rule_lines(scores.metrics)]))
    return "\n\n".join(parts)


def cost_table(costs: dict[str, Cost]) -> str:
    """Parameters, multiply-adds, time and memory of each network."""
    rows = _aligned([cost_columns(costs), *cost_rows(costs)])
    return "\n".join(["Cost", *rows, *cost_lines(costs)])


def cost_columns(costs: dict[str, Cost]) -> list[str]:
    """The column heads: what was counted and, if anything was, what was measured."""
    numbers = [number for cost in costs.values() for number in (cost.seconds, cost.peak_memory)]
    measured = any(number is not None for number in numbers)
    return [*COUNTED_COLUMNS, *(MEASURED_COLUMNS if measured else ())]


def cost_rows(costs: dict[str, Cost], missing: str = "-") -> list[list[str]]:
    """The cost_columns of each network; `missing` marks what was not measured."""
    columns = len(cost_columns(costs))
    rows = [
        [
            name,
            f"{cost.parameters:,}",
            f"{cost.parameters_folded:,}",
            f"{cost.multiply_adds / 1e9:.3f}",
            f"{cost.scan_multiply_adds / 1e9:.3f}",
            missing if cost.seconds is None else f"{1000 * cost.seconds:.0f}",
            missing if cost.peak_memory is None else f"{cost.peak_memory / 1e6:.0f}",
        ]
        for name, cost in costs.items()
    ]
    return [row[:columns] for row in rows]


def cost_lines(costs: dict[str, Cost]) -> list[str]:
    """How the costs are counted and measured."""
    one = next(iter(costs.values()))
    lines = [f"  for one LR image of {one.height}x{one.width} pixels; {COUNTED}"]
    if one.seconds is not None:
        memory = one.memory_of or "not measured"
        lines.append(f"  time: median of several passes on {one.device}; memory: {memory}")
    return lines


def rule_lines(metrics: Sequence[Metric]) -> list[str]:
    """Each metric explained in one line."""
    return [
        f"  {metric.name}: {metric.how}; {'higher' if metric.higher_is_better else 'lower'} is "
        "better; mean over "
        f"{'images' if metric.mean == 'images' else 'the means of the class folders'}"
        for metric in metrics
    ]


def class_mean_rows(scores: Scores, one: ImageSet) -> list[list[str]]:
    """For each method its name and the mean of its class means, by metric.

    Empty for a set with one class, and if the metrics themselves are means of class means.
    """
    if one.classes < 2 or all(metric.mean == "classes" for metric in scores.metrics):
        return []
    rows = []
    for method in scores.methods:
        means = [
            (scores.mean_of_classes(one.name, method.name, metric), metric.unit)
            for metric in scores.metrics
        ]
        rows.append(
            [method.name, *("inf" if mean is None else number(mean, unit) for mean, unit in means)]
        )
    return rows


def number(value: float, unit: str) -> str:
    """A value with the digits of its unit; "inf" for equal images."""
    if not math.isfinite(value):
        return "inf" if value == math.inf else "-"
    return f"{value:.{DIGITS.get(unit, 4)}f}"


def mean_text(summary: Summary, unit: str) -> str:
    """A mean, with the number of infinite values that it leaves out."""
    if summary.infinite == summary.count:
        return "inf"
    return number(summary.mean, unit) + (f" (+{summary.infinite} inf)" if summary.infinite else "")


def difference_text(paired: Paired, unit: str) -> str:
    """A difference with its interval, "+0.5123 [+0.4876, +0.5402]"; none for a single image."""
    if not paired.count:
        return "-"
    digits = DIGITS.get(unit, 4)
    text = f"{paired.difference:+.{digits}f}"
    if paired.count > 1:
        text += f" [{paired.low:+.{digits}f}, {paired.high:+.{digits}f}]"
    return text + (f" ({paired.left_out} left out)" if paired.left_out else "")


def to_json(scores: Scores, costs: dict[str, Cost]) -> dict[str, Any]:
    """Everything as JSON values; infinities are the string "inf"."""
    return {
        "format": 1,
        "repmamba": __version__,
        "methods": {
            method.name: {
                "how": method.how,
                "cost": _cost(costs[method.name]) if method.name in costs else None,
            }
            for method in scores.methods
        },
        "counted": COUNTED,
        "metrics": {
            metric.name: {
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "how": metric.how,
                "mean_over": metric.mean,
            }
            for metric in scores.metrics
        },
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": BOOTSTRAP_SEED},
        "sets": {
            one.name: {
                "scale": one.scale,
                "images": len(one.files),
                "lr": "as found" if one.files[0].lr else REDUCED,
                "methods": {
                    method.name: {
                        metric.name: _metric(scores, one.name, method.name, metric)
                        for metric in scores.metrics
                    }
                    for method in scores.methods
                },
                "paired": [
                    {"method": method.name, "other": scores.methods[-1].name, "metric": metric.name}
                    | _paired(paired)
                    for method, metric, paired in scores.differences(one.name)
                ],
            }
            for one in scores.sets
        },
    }


def to_csv(scores: Scores) -> str:
    """CSV with one line per value of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "image", "method", "metric", "value", "unit"])
    for row in scores.rows():
        value = repr(row.value) if math.isfinite(row.value) else str(_plain(row.value))
        names = map(_cell, (row.image_set, row.image, row.method))
        writer.writerow([*names, row.metric, value, row.unit])
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a report with its parent folders, all or nothing. Raises TargetError, NoSpace."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durable(path, text.encode(errors="backslashreplace"))  # names that are not Unicode


def check_target(path: Path) -> None:
    """Raise TargetError or NoSpace now if a report could not be written after the scores."""
    if path.is_dir():
        raise TargetError(f"{path} is a folder; name a file in it.")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()


def _means(scores: Scores) -> str:
    lines = []
    for one in scores.sets:
        rows = [["method", *(metric.heading for metric in scores.metrics)]]
        for method in scores.methods:
            means = [
                mean_text(scores.summary(one.name, method.name, metric), metric.unit)
                for metric in scores.metrics
            ]
            rows.append([method.name, *means])
        by_class = class_mean_rows(scores, one)
        if by_class:
            rows += [[CLASS_MEANS, *("" for _ in scores.metrics)], *by_class]
        lines.append("\n".join([_harmless(one.heading), *_aligned(rows)]))
    return "\n\n".join(lines)


def _differences(scores: Scores) -> str:
    other = scores.methods[-1].name
    rows = [["set", "method", "metric", "difference", "better on"]]
    for one in scores.sets:
        for method, metric, paired in scores.differences(one.name):
            difference = difference_text(paired, metric.unit)
            better = f"{paired.better} of {paired.count}"
            rows.append([one.name, method.name, metric.name, difference, better])
    interval = f"the {CONFIDENCE:.0%} interval of {RESAMPLES:,} bootstrap samples"
    heading = f"Difference from {_harmless(other)} on the same images, with {interval}"
    return "\n".join([heading, *_aligned(rows)])


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first column left-aligned, the others right-aligned."""
    rows = [[_harmless(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _harmless(text: str) -> str:
    """The text with control characters escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _metric(scores: Scores, image_set: str, method: str, metric: Metric) -> dict[str, Any]:
    summary = scores.summary(image_set, method, metric)
    classes = scores.classes(image_set, method, metric)
    images = scores.of(image_set, method, metric.name)
    return {
        "mean": _plain(math.inf if summary.infinite == summary.count else summary.mean),
        "infinite": summary.infinite,
        "mean_of_classes": scores.mean_of_classes(image_set, method, metric),
        "classes": {name: _plain(value) for name, value in classes.items()},
        "images": {name: _plain(value) for name, value in images.items()},
    }


def _paired(paired: Paired) -> dict[str, Any]:
    return {
        "difference": _plain(paired.difference),
        "low": _plain(paired.low),
        "high": _plain(paired.high),
        "better": paired.better,
        "images": paired.count,
        "left_out": paired.left_out,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "lr_height": cost.height,
        "lr_width": cost.width,
        "parameters": cost.parameters,
        "parameters_repconv_folded": cost.parameters_folded,
        "multiply_adds": cost.multiply_adds,
        "scan_multiply_adds": cost.scan_multiply_adds,
        "seconds_median": cost.seconds,
        "seconds_least": cost.seconds_least,
        "peak_memory_bytes": cost.peak_memory,
        "peak_memory_of": cost.memory_of,
        "device": cost.device,
    }


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _cell(text: str) -> str:
    return "'" + text if text.startswith(FORMULA_STARTS) else text
