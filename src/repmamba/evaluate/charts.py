"""Charts as inline SVG: bars by class, method against method, accuracy against cost.

Plain functions from numbers to text; names of files are escaped here. The colours are those of
Okabe and Ito, which colour-blind readers can tell apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#8c959f"  # of what was not measured here
LARGEST_SCATTER = 2000  # points; more would not be readable
SMALLEST_SPAN = 1e-9  # of values on an axis; smaller spans do not show in the digits of its ticks


@dataclass(frozen=True, slots=True)
class Point:
    """A mark of a scatter plot, with its tooltip."""

    x: float
    y: float
    label: str
    fill: str = COLOURS[0]


def colour(index: int) -> str:
    """The colour of the method at this index, the same in every chart."""
    return COLOURS[index % len(COLOURS)]


def bars(values: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars from class -> method -> value; they start below the smallest value."""
    groups, methods = list(values), list(next(iter(values.values())))
    everything = [value for group in values.values() for value in group.values()]
    ticks = _ticks(min(everything), max(everything))
    low, high = ticks[0], ticks[-1]
    bar, gap, left, right, top = 11, 9, 170, 70, 24
    group_height = bar * len(methods) + gap
    width, height = 760, top + group_height * len(groups) + 28
    inner = width - left - right

    def along(value: float) -> float:
        return left + inner * (value - low) / (high - low)

    parts = [
        _grid_line(along(tick), top, height - 28, f"{tick:g} {unit}".rstrip(), height - 12)
        for tick in ticks
    ]
    for row, group in enumerate(groups):
        y = top + row * group_height
        middle = y + bar * len(methods) / 2 + 4
        parts.append(
            f'<text x="{left - 8}" y="{middle:.1f}" '
            f'text-anchor="end">{escape(_short(group, 24))}</text>'
        )
        for index, method in enumerate(methods):
            value, at = values[group][method], y + index * bar
            parts.append(
                f'<rect x="{left}" y="{at}" width="{max(along(value) - left, 0.5):.1f}" '
                f'height="{bar - 1}" fill="{colour(index)}">'
                f"<title>{escape(group)}, {escape(method)}: {value:.4f} {unit}</title></rect>"
                f'<text class="value" x="{along(value) + 4:.1f}" y="{at + bar - 2}">'
                f"{value:.2f}</text>"
            )
    return _svg(width, height, parts, "Means of the classes")


def drawn_of(count: int) -> int:
    """1 if all points are drawn in a scatter plot of this many, n if every n-th is."""
    return max(1, math.ceil(count / LARGEST_SCATTER))


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """A square scatter plot with equal axes and the line on which the two methods are equal.

    Of more than LARGEST_SCATTER points, every `drawn_of(count)`-th has a mark.
    """
    points = points[:: drawn_of(len(points))]
    ticks = _ticks(min(min(p.x, p.y) for p in points), max(max(p.x, p.y) for p in points))
    low, high = ticks[0], ticks[-1]
    left, top, inner = 70, 16, 400
    width, height = left + inner + 20, top + inner + 56

    def across(value: float) -> float:
        return left + inner * (value - low) / (high - low)

    def upwards(value: float) -> float:
        return top + inner * (high - value) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(_grid_line(across(tick), top, top + inner, f"{tick:g}", top + inner + 16))
        parts.append(_level_line(upwards(tick), left, left + inner, f"{tick:g}"))
    parts.append(
        f'<line class="equal" x1="{across(low)}" y1="{upwards(low)}" x2="{across(high)}" '
        f'y2="{upwards(high)}"/>'
    )
    for point in points:
        parts.append(
            f'<circle cx="{across(point.x):.1f}" cy="{upwards(point.y):.1f}" r="3.5" '
            f'fill="{point.fill}" fill-opacity="0.55"><title>{escape(point.label)}</title></circle>'
        )
    parts += _axis_titles(left, top, inner, inner, x_title, y_title)
    return _svg(width, height, parts, f"{y_title} against {x_title}")


def complexity(
    points: Sequence[Point], lines: Mapping[str, float], x_title: str, y_title: str
) -> str:
    """Accuracy against cost on a logarithmic axis; lines: accuracies without a known cost."""
    heights = [point.y for point in points] + list(lines.values())
    ticks = _ticks(min(heights), max(heights))
    low, high = ticks[0], ticks[-1]
    first = math.floor(math.log10(min(point.x for point in points) / 1.5))
    last = math.ceil(math.log10(max(point.x for point in points) * 1.5))
    left, top, inner_width, inner_height = 70, 16, 560, 300
    width, height = left + inner_width + 20, top + inner_height + 56

    def across(value: float) -> float:
        return left + inner_width * (math.log10(value) - first) / (last - first)

    def upwards(value: float) -> float:
        return top + inner_height * (high - value) / (high - low)

    bottom = top + inner_height
    powers = [10.0**exponent for exponent in range(first, last + 1)]
    parts = [_grid_line(across(one), top, bottom, f"{one:g}", bottom + 16) for one in powers]
    parts += [_level_line(upwards(one), left, left + inner_width, f"{one:g}") for one in ticks]
    for name, value in lines.items():
        y = upwards(value)
        parts.append(
            f'<line class="equal" x1="{left}" x2="{left + inner_width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left + 6}" y="{y - 5 if y > top + 20 else y + 15:.1f}">'
            f"{escape(_short(name, 40))}</text>"
        )
    for point in points:
        x, y = across(point.x), upwards(point.y)
        anchor, shift = ("end", -10) if x > left + inner_width / 2 else ("start", 10)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{point.fill}">'
            f"<title>{escape(point.label)}: {point.y:.4f} at {point.x:.4g}</title></circle>"
            f'<text x="{x + shift:.1f}" y="{y + 4:.1f}" '
            f'text-anchor="{anchor}">{escape(_short(point.label, 40))}</text>'
        )
    parts += _axis_titles(left, top, inner_width, inner_height, x_title, y_title)
    return _svg(width, height, parts, f"{y_title} against {x_title}")


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _grid_line(x: float, top: float, bottom: float, text: str, text_y: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{text_y}" text-anchor="middle">{text}</text>'
    )


def _level_line(y: float, left: float, right: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _axis_titles(
    left: float, top: float, width: float, height: float, x_title: str, y_title: str
) -> list[str]:
    below = f'x="{left + width / 2}" y="{top + height + 40}"'
    beside = f'transform="translate(16 {top + height / 2}) rotate(-90)"'
    return [
        f'<text class="axis" {place} text-anchor="middle">{escape(title)}</text>'
        for place, title in ((below, x_title), (beside, y_title))
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers that span low to high, with space below the smallest."""
    span = next(one for one in (high - low, abs(high), 1.0) if one >= SMALLEST_SPAN)
    step = 10.0 ** math.floor(math.log10(span))
    while span / step < 4:
        step /= 2 if step / 10.0 ** math.floor(math.log10(step)) != 5 else 2.5
    first = math.floor((low - 0.05 * span) / step)
    last = math.ceil((high + 0.02 * span) / step)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[-length + 1 :]
