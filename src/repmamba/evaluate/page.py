"""Scores as one self-contained page: tables, charts, and the pictures on which a method gains and
loses most.

The page loads nothing and runs one script of its own, the slider's; its content security policy
names that script by its digest, so nothing that a file's name smuggles in could run even if it were
not escaped. Pictures are excerpts of the images that were evaluated and stay under their terms.
"""

import base64
import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba import __version__
from repmamba.data.pairs import Pair, PairFiles
from repmamba.errors import SourceError
from repmamba.evaluate import charts
from repmamba.evaluate.cost import Cost
from repmamba.evaluate.metrics import Metric, in_levels
from repmamba.evaluate.report import (
    CLASS_MEANS,
    class_mean_rows,
    cost_columns,
    cost_lines,
    cost_rows,
    difference_text,
    mean_text,
    number,
    rule_lines,
)
from repmamba.evaluate.run import in_type
from repmamba.evaluate.scores import CONFIDENCE, RESAMPLES, ImageSet, Scores

EXCERPT = 96  # hr pixels on each side
SHOWN = 2  # images at either end of the order
ENDS_OF_GAINS, ENDS_OF_VALUES = ("Largest", "Smallest"), ("Best", "Worst")
# magma's: 0 is dark
ERROR_COLOURS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))

SCRIPT = (
    "document.querySelectorAll('.shown').forEach(function(shown){"
    "var pictures=shown.querySelectorAll('.pictures img'),sides=shown.querySelectorAll('.slider "
    "div img'),"
    "bar=shown.querySelector('.slider input');"
    "bar.addEventListener('input',function(){bar.parentElement.style.setProperty('--at',bar.value+'%');});"
    "shown.querySelectorAll('.slider select').forEach(function(choice,side){"
    "function show(){sides[side].src=pictures[choice.value].src;}choice.addEventListener('change',show);show();});});"
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f23; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d6dade; }
h3 { margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; } p.note, figcaption { color: #57606a; font-size: .86rem; }
table { border-collapse: collapse; margin: .6rem 0 1rem; } .wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e7ea; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
th { font-weight: 600; background: #f5f7f9; } td.best { font-weight: 700; } th.text, td.text { text-align: left; }
.key { margin: .4rem 0; } .key span { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
svg { max-width: 100%; height: auto; font: 11.5px system-ui, sans-serif; fill: #1b1f23; }
svg .grid { stroke: #e1e4e8; } svg .equal { stroke: #6a737d; stroke-dasharray: 5 4; }
svg .value { font-size: 9.5px; fill: #57606a; }
svg .axis { font-size: 12.5px; }
.excerpt { display: flex; flex-wrap: wrap; gap: .8rem; margin: .4rem 0 1rem; }
figure { margin: 0; width: 192px; } figure img { width: 192px; height: 192px; display: block; }
img { image-rendering: pixelated; background: #eee; }
figcaption { overflow-wrap: anywhere; line-height: 1.3; margin-top: .25rem; }
.slider { --at: 50%; width: 384px; max-width: 100%; margin: .4rem 0 1.4rem; }
.slider div { position: relative; height: 384px; }
.slider img { position: absolute; inset: 0; width: 100%; height: 100%; }
.slider img + img { clip-path: inset(0 0 0 var(--at)); }
.slider div::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: #fff;
  box-shadow: 0 0 3px #000; } .slider input { width: 100%; margin: .3rem 0 0; }
.ends { display: flex; justify-content: space-between; gap: 1rem; } .ends select { max-width: 48%; }
"""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The same place of one image by every method."""

    title: str
    lr: NDArray[np.uint8]  # (h, w, 3), as all of them
    # method, picture, error (H, W) in levels
    results: tuple[tuple[str, NDArray[np.uint8], NDArray[np.float64]], ...]
    truth: NDArray[np.uint8]


def read_others(path: Path) -> list[charts.Point]:
    """Networks to show beside ours in the plot of cost: CSV lines of name, 10^9 multiply-adds,
    value; "#" for a remark.

    Raises SourceError, naming the line.
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
    """The whole page as text. The first metric orders the images and is drawn; the last method is
    compared with.

    pictures: False leaves out all excerpts, where the images must not be shown.  others: networks
    that were measured
    elsewhere, by the first metric on the first set, for the plot of cost.
    """
    metric = scores.metrics[0]
    body = [
        "<h1>Evaluation</h1>",
        f'<p class="note">repmamba {__version__}. Every number is of the rule in its heading; the '
        "rules are explained "
        "at the end. Numbers of different rules must not be set side by side.</p>",
        "<h2>Summary</h2>",
        *(_summary(scores, one) for one in scores.sets),
    ]
    if len(scores.methods) > 1:
        body += ["<h2>Differences on the same images</h2>", _differences(scores)]
    if costs:
        body += ["<h2>Accuracy against cost</h2>", _cost(scores, costs, metric, others)]
    for one in scores.sets:
        body += [f"<h2>{escape(one.name)}</h2>", *_set(scores, one, metric, pictures=pictures)]
    body += ["<h2>Rules</h2>", _list(rule_lines(scores.metrics)), "<h2>Methods</h2>"]
    body.append(_list([f"{method.name}: {method.how}" for method in scores.methods]))
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        f"'sha256-{digest}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>repmamba: evaluation</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def tables(scores: Scores) -> str:
    """The means of each set and the paired differences, as a piece of a page of somebody else."""
    parts = [_summary(scores, one) for one in scores.sets]
    return "\n".join([*parts, *([_differences(scores)] if len(scores.methods) > 1 else [])])


def _summary(scores: Scores, one: ImageSet) -> str:
    rows = []
    means = {
        metric.name: {
            method.name: scores.summary(one.name, method.name, metric) for method in scores.methods
        }
        for metric in scores.metrics
    }
    for method in scores.methods:
        cells = [f"<td>{escape(method.name)}</td>"]
        for metric in scores.metrics:
            summary = means[metric.name][method.name]
            finite = [
                other.mean for other in means[metric.name].values() if math.isfinite(other.mean)
            ]
            best = bool(finite) and summary.mean == (max if metric.higher_is_better else min)(
                finite
            )
            cells.append(f"<td{' class=best' * best}>{mean_text(summary, metric.unit)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    by_class = class_mean_rows(scores, one)
    if by_class:
        rows.append(f"<tr><th colspan={1 + len(scores.metrics)}>{CLASS_MEANS}</th></tr>")
        rows += [_row(cells) for cells in by_class]
    heads = "".join(f"<th>{escape(_heading(metric))}</th>" for metric in scores.metrics)
    title = f"<h3>{escape(one.heading)}</h3>"
    table = f"<table><tr><th>method</th>{heads}</tr>{''.join(rows)}</table>"
    return f'{title}<div class="wide">{table}</div>'


def _differences(scores: Scores) -> str:
    other = scores.methods[-1].name
    rows = []
    for one in scores.sets:
        for method, metric, paired in scores.differences(one.name):
            rows.append(
                f"<tr><td>{escape(one.name)}</td><td class=text>{escape(method.name)}</td>"
                f"<td class=text>{escape(_heading(metric))}</td>"
                f"<td>{difference_text(paired, metric.unit)}</td><td>{paired.better} of "
                f"{paired.count}</td></tr>"
            )
    note = (
        f'<p class="note">Each method against {escape(other)}, image by image, with the '
        f"{CONFIDENCE:.0%} interval of "
        f"{RESAMPLES:,} bootstrap samples of the images.</p>"
    )
    texts = "<th>set</th><th class=text>method</th><th class=text>metric</th>"
    heads = f"<tr>{texts}<th>difference</th><th>better on</th></tr>"
    return f'{note}<div class="wide"><table>{heads}{"".join(rows)}</table></div>'


def _cost(
    scores: Scores, costs: dict[str, Cost], metric: Metric, others: Sequence[charts.Point]
) -> str:
    heads = "".join(f"<th>{head.replace('10^9', '10⁹')}</th>" for head in cost_columns(costs))
    rows = "".join(_row(cells) for cells in cost_rows(costs, missing="–"))
    table = f"<table><tr>{heads}</tr>{rows}</table>"
    note = "".join(f'<p class="note">{escape(line.strip())}</p>' for line in cost_lines(costs))
    one = scores.sets[0]
    means = {
        method.name: scores.summary(one.name, method.name, metric).mean for method in scores.methods
    }
    points = [
        charts.Point(
            costs[method.name].multiply_adds / 1e9,
            means[method.name],
            method.name,
            charts.colour(index),
        )
        for index, method in enumerate(scores.methods)
        if method.name in costs and math.isfinite(means[method.name])
    ]
    if not points:
        return f'<div class="wide">{table}</div>{note}'
    lines = {
        name: mean for name, mean in means.items() if name not in costs and math.isfinite(mean)
    }
    size = f"{costs[points[0].label].height}x{costs[points[0].label].width} LR"
    if others:
        note += (
            '<p class="note">Grey: figures brought from elsewhere, not measured in this run.</p>'
        )
    chart = charts.complexity(
        [*points, *others], lines, f"10⁹ multiply-adds, {size}", f"{_heading(metric)} on {one.name}"
    )
    return f'<div class="wide">{table}</div>{note}{chart}'


def _set(scores: Scores, one: ImageSet, metric: Metric, *, pictures: bool) -> list[str]:
    parts = []
    classes = {
        method.name: scores.classes(one.name, method.name, metric) for method in scores.methods
    }
    groups = set.intersection(*(set(means) for means in classes.values()))
    if groups:
        values = {
            group or "(no class)": {method: means[group] for method, means in classes.items()}
            for group in sorted(groups)
        }
        parts += [
            f"<h3>Classes, {escape(_heading(metric))}</h3>",
            _key(scores),
            charts.bars(values, metric.unit),
        ]
    if len(scores.methods) > 1:
        first, last = scores.methods[0].name, scores.methods[-1].name
        ours, theirs = (
            scores.of(one.name, first, metric.name),
            scores.of(one.name, last, metric.name),
        )
        points = [
            charts.Point(
                theirs[name],
                ours[name],
                f"{name}: {number(ours[name], metric.unit)}, {last} {theirs[name]:.4f}",
            )
            for name in ours
            if math.isfinite(ours[name]) and math.isfinite(theirs[name])
        ]
        if points:
            titles = (f"{last}, {_heading(metric)}", f"{first}, {_heading(metric)}")
            drawn = charts.drawn_of(len(points))
            marks = (
                "one mark an image"
                if drawn == 1
                else f"one image in {drawn} of {len(points):,} marked"
            )
            parts += [f"<h3>{escape(first)} against {escape(last)}, {marks}</h3>"]
            parts += [charts.scatter(points, *titles)]
    if pictures:
        for title, files in _ends(scores, one, metric):
            parts.append(f"<h3>{escape(title)}</h3>")
            parts += [_excerpt(excerpt(scores, one, entry, metric)) for entry in files]
    return parts


def excerpt(scores: Scores, one: ImageSet, files: PairFiles, metric: Metric) -> Excerpt:
    """The place of an image where the errors of first and last method differ most, enlarged anew by
    every method.
    """
    pair = files.read(one.scale)
    stored = {method.name: in_type(method.sr_of(pair), pair.hr) for method in scores.methods}
    errors = {name: _error(sr, pair) for name, sr in stored.items()}
    first, last = errors[scores.methods[0].name], errors[scores.methods[-1].name]
    telling = np.abs(last**2 - first**2) if len(scores.methods) > 1 else first**2
    rows, cols = _window(telling, one.scale)
    low, high = _stretch(pair.hr)
    s = one.scale
    lr_rows, lr_cols = (
        slice(rows.start // s, rows.stop // s),
        slice(cols.start // s, cols.stop // s),
    )
    values = ", ".join(
        f"{method.name} "
        f"{number(scores.of(one.name, method.name, metric.name)[files.name], metric.unit)} "
        f"{metric.unit}"
        for method in scores.methods
    )
    return Excerpt(
        title=f"{files.name}: {values}",
        lr=_shown(pair.lr[lr_rows, lr_cols], low, high),
        results=tuple(
            (name, _shown(sr[rows, cols], low, high), errors[name][rows, cols])
            for name, sr in stored.items()
        ),
        truth=_shown(pair.hr[rows, cols], low, high),
    )


def _ends(scores: Scores, one: ImageSet, metric: Metric) -> list[tuple[str, list[PairFiles]]]:
    """The images at both ends: by the gain over the last method, or by the value where there is one
    method.
    """
    first, last = scores.methods[0].name, scores.methods[-1].name
    ours = scores.of(one.name, first, metric.name)
    if len(scores.methods) > 1:
        theirs, titles = (
            scores.of(one.name, last, metric.name),
            [f"{end} gain over {last}" for end in ENDS_OF_GAINS],
        )
    else:
        theirs, titles = (
            dict.fromkeys(ours, 0.0),
            [f"{end} {metric.name}" for end in ENDS_OF_VALUES],
        )
    sign = 1 if metric.higher_is_better else -1
    gains = {
        name: sign * (value - theirs[name])
        for name, value in ours.items()
        if math.isfinite(value) and math.isfinite(theirs[name])
    }
    order = sorted(gains, key=lambda name: (-gains[name], name))
    by_name = {files.name: files for files in one.files}
    best = order[:SHOWN]
    worst = [name for name in order[::-1][:SHOWN] if name not in best]
    return [
        (title, [by_name[name] for name in names])
        for title, names in zip(titles, (best, worst), strict=True)
        if names
    ]


def _excerpt(shown: Excerpt) -> str:
    largest = max(float(np.quantile(error, 0.995)) for _, _, error in shown.results) or 1.0
    pictures = [
        ("LR", shown.lr),
        ("GT", shown.truth),
        *((name, picture) for name, picture, _ in shown.results),
    ]
    figures = [_figure(picture, name) for name, picture in pictures]
    errors = [
        _figure(_error_colours(error / largest), f"error of {name}")
        for name, _, error in shown.results
    ]
    parts = [
        f"<p><b>{escape(shown.title)}</b></p>",
        f'<div class="excerpt pictures">{"".join(figures)}</div>',
    ]
    # The empty figures stand below LR and GT, so that each error is below its picture.
    parts.append(f'<div class="excerpt"><figure></figure><figure></figure>{"".join(errors)}</div>')
    parts.append(
        f'<p class="note">Error: mean over the bands, black 0, bright {largest:.3g} or more. '
        "Below, slide, and choose "
        "what is on either side.</p>"
    )
    left, right = 2, len(pictures) - 1 if len(shown.results) > 1 else 1
    under, over = (_data_uri(pictures[side][1]) for side in (left, right))
    names = [name for name, _ in pictures]
    parts.append(
        f'<div class="slider"><div><img alt="" src="{under}"><img alt="" src="{over}"></div>'
        '<input type="range" min="0" max="100" value="50" step="0.5" aria-label="where the two '
        'pictures meet">'
        f'<p class="ends">{_choice("left", names, left)}{_choice("right", names, right)}</p></div>'
    )
    return f'<section class="shown">{"".join(parts)}</section>'


def _choice(side: str, names: Sequence[str], chosen: int) -> str:
    entries = "".join(
        f"<option value={place}{' selected' * (place == chosen)}>{escape(name)}</option>"
        for place, name in enumerate(names)
    )
    return f'<select aria-label="the picture on the {side}" autocomplete="off">{entries}</select>'


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _figure(picture: NDArray[np.uint8], caption: str) -> str:
    return (
        f'<figure><img alt="{escape(caption)}" src="{_data_uri(picture)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data_uri(picture: NDArray[np.uint8]) -> str:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG")
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _key(scores: Scores) -> str:
    names = (
        f'<span><i style="background:{charts.colour(index)}"></i>{escape(method.name)}</span>'
        for index, method in enumerate(scores.methods)
    )
    return f'<p class="key">{"".join(names)}</p>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line.strip())}</li>' for line in lines)}</ul>"


def _heading(metric: Metric) -> str:
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name


def _error(sr: NDArray[np.generic], pair: Pair) -> NDArray[np.float64]:
    """Mean absolute difference over the bands, (H, W)."""
    error: NDArray[np.float64] = np.abs(in_levels(sr, pair.hr) - pair.hr.astype(np.float64)).mean(
        -1
    )
    return error


def _window(telling: NDArray[np.float64], scale: int) -> tuple[slice, slice]:
    """The square of at most EXCERPT pixels, at multiples of the scale, whose sum is largest."""
    edge = min(EXCERPT, *telling.shape) // scale * scale
    sums = np.pad(telling, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    whole = sums[edge:, edge:] - sums[:-edge, edge:] - sums[edge:, :-edge] + sums[:-edge, :-edge]
    row, col = np.unravel_index(
        int(whole[::scale, ::scale].argmax()), whole[::scale, ::scale].shape
    )
    top, left = int(row) * scale, int(col) * scale
    return slice(top, top + edge), slice(left, left + edge)


def _stretch(hr: NDArray[np.generic]) -> tuple[float, float]:
    """What is shown black and white: 8-bit pictures as they are, other types by their middle 96
    %.
    """
    if hr.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.quantile(hr.astype(np.float64), [0.02, 0.98])
    return float(low), float(high) if high > low else float(low) + 1.0


def _shown(image: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """An image of any bands as RGB of 8 bit: its first three, or its first as grey."""
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    levels = 255 * (bands.astype(np.float64) - low) / (high - low)
    shown: NDArray[np.uint8] = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return shown


def _error_colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(H, W) from 0 to 1 -> RGB between ERROR_COLOURS."""
    places = np.linspace(0, 1, len(ERROR_COLOURS))
    channels = [np.interp(share, places, [one[band] for one in ERROR_COLOURS]) for band in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)
