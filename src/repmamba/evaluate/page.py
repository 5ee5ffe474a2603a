"""Scores as one self-contained page: tables, charts, and excerpts of the largest gain and loss.

The page is a Jinja2 template with autoescape. It loads nothing and runs only page.js, whose digest
is in its content security policy: even an unescaped file name could not run a script.
"""

import base64
import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba import __version__
from repmamba.errors import SourceError
from repmamba.evaluate import charts, report
from repmamba.evaluate.cost import Cost
from repmamba.evaluate.excerpts import Excerpt, excerpts
from repmamba.evaluate.methods import Method
from repmamba.evaluate.metrics import Metric
from repmamba.evaluate.scores import CONFIDENCE, RESAMPLES, ImageSet, Scores

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """The charts and the excerpts of one set; "" for a chart without values."""

    image_set: ImageSet
    bars: str
    scatter: str
    marks: str  # how many images have a mark in the scatter
    excerpts: list[tuple[str, list[Excerpt]]]


def read_others(path: Path) -> list[charts.Point]:
    """Networks to show beside ours in the plot of cost.

    path: CSV lines of name, 10^9 multiply-adds, value; lines that start with "#" are comments.
    Raises SourceError: the file cannot be read, or a line is not of this form.
    """
    points = []
    for line, row in _rows(path):
        if not row or row[0].startswith("#"):
            continue
        try:
            name, cost, value = row
            point = charts.Point(float(cost), float(value), name.strip(), charts.GREY)
        except ValueError:
            point = None
        if point is None or not (0 < point.x < math.inf and math.isfinite(point.y)):
            raise SourceError(f"Line {line} of {path} is not: name, 10^9 multiply-adds, value.")
        points.append(point)
    return points


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of its last line."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
        reader = csv.reader(io.StringIO(text))
        return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error


def page(
    scores: Scores,
    costs: dict[str, Cost],
    *,
    pictures: bool = True,
    others: Sequence[charts.Point] = (),
) -> str:
    """The whole page as HTML.

    scores: The first metric orders the images and is plotted; methods are compared with the last
      one.
    costs: By the name of the method.
    pictures: False leaves out all excerpts, for images that must not be shown.
    others: Networks measured elsewhere, by the first metric on the first set, for the plot of cost.
    """
    metric = scores.metrics[0]
    script = _text("page.js")
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            style=_text("page.css"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            scores=scores,
            metric=metric,
            costs=costs,
            cost_chart=_cost_chart(scores, costs, metric, others),
            others=others,
            parts=[_part(scores, one, metric, pictures=pictures) for one in scores.sets],
        )
    )


def tables(scores: Scores) -> str:
    """The means of each set and the paired differences as HTML, for a notebook."""
    macros: Any = _templates().get_template("tables.html.j2").module
    parts = [macros.summary(scores, one) for one in scores.sets]
    return "\n".join([*parts, *([macros.differences(scores)] if len(scores.methods) > 1 else [])])


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["data_uri"] = _data_uri
    templates.globals |= {
        "class_mean_rows": report.class_mean_rows,
        "class_means": report.CLASS_MEANS,
        "colour": charts.colour,
        "confidence": CONFIDENCE,
        "cost_columns": report.cost_columns,
        "cost_lines": report.cost_lines,
        "cost_rows": report.cost_rows,
        "difference_text": report.difference_text,
        "mean_cells": _mean_cells,
        "resamples": RESAMPLES,
        "rule_lines": report.rule_lines,
    }
    return templates


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _mean_cells(scores: Scores, one: ImageSet) -> list[tuple[Method, list[tuple[str, bool]]]]:
    """Each method with its means, metric by metric, and whether a mean is the best."""
    rows: list[tuple[Method, list[tuple[str, bool]]]] = [(method, []) for method in scores.methods]
    for metric in scores.metrics:
        means = [scores.summary(one.name, method.name, metric) for method in scores.methods]
        finite = [summary.mean for summary in means if math.isfinite(summary.mean)]
        best = (max if metric.higher_is_better else min)(finite, default=None)
        for (_, cells), summary in zip(rows, means, strict=True):
            cells.append((report.mean_text(summary, metric.unit), summary.mean == best))
    return rows


def _cost_chart(
    scores: Scores, costs: dict[str, Cost], metric: Metric, others: Sequence[charts.Point]
) -> str:
    """Accuracy on the first set against cost; "" if there is no network with both."""
    one = scores.sets[0]
    names = [method.name for method in scores.methods]
    means = {name: scores.summary(one.name, name, metric).mean for name in names}
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    points = [
        charts.Point(costs[name].multiply_adds / 1e9, mean, name, charts.colour(names.index(name)))
        for name, mean in finite.items()
        if name in costs
    ]
    if not points:
        return ""
    lines = {name: mean for name, mean in finite.items() if name not in costs}
    size = f"{costs[points[0].label].height}x{costs[points[0].label].width} LR"
    return charts.complexity(
        [*points, *others], lines, f"10⁹ multiply-adds, {size}", f"{metric.heading} on {one.name}"
    )


def _part(scores: Scores, one: ImageSet, metric: Metric, *, pictures: bool) -> Part:
    scatter, marks = _scatter(scores, one, metric) if len(scores.methods) > 1 else ("", "")
    chosen = excerpts(scores, one, metric) if pictures else []
    return Part(one, _bars(scores, one, metric), scatter, marks, chosen)


def _bars(scores: Scores, one: ImageSet, metric: Metric) -> str:
    """The classes that have a mean by every method."""
    classes = {
        method.name: scores.classes(one.name, method.name, metric) for method in scores.methods
    }
    groups = set.intersection(*(set(means) for means in classes.values()))
    values = {
        group or "(no class)": {method: means[group] for method, means in classes.items()}
        for group in sorted(groups)
    }
    return charts.bars(values, metric.unit) if values else ""


def _scatter(scores: Scores, one: ImageSet, metric: Metric) -> tuple[str, str]:
    """The first method against the last, and how many images have a mark."""
    first, last = scores.methods[0].name, scores.methods[-1].name
    ours, theirs = (scores.of(one.name, name, metric.name) for name in (first, last))
    points = [
        charts.Point(
            theirs[name],
            ours[name],
            f"{name}: {report.number(ours[name], metric.unit)}, {last} {theirs[name]:.4f}",
        )
        for name in ours
        if math.isfinite(ours[name]) and math.isfinite(theirs[name])
    ]
    if not points:
        return "", ""
    marks = "one mark per image"
    if (drawn := charts.drawn_of(len(points))) > 1:
        marks = f"one in {drawn} of {len(points):,} images marked"
    return charts.scatter(points, *(f"{name}, {metric.heading}" for name in (last, first))), marks


def _data_uri(picture: NDArray[np.uint8]) -> str:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG")
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"
