"""Excerpts: the places where two methods differ most, cut from the images of largest gain and loss.

Excerpts are parts of the evaluated images and stay under their terms.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmamba.data.pairs import Pair, PairFiles
from repmamba.evaluate.metrics import Metric, in_levels
from repmamba.evaluate.report import number
from repmamba.evaluate.run import in_type
from repmamba.evaluate.scores import ImageSet, Scores

EDGE = 96  # hr pixels
SHOWN = 2  # images at either end of the order
ENDS_OF_GAINS, ENDS_OF_VALUES = ("Largest", "Smallest"), ("Best", "Worst")
# of magma; 0 is dark
ERROR_COLOURS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))

Picture = NDArray[np.uint8]  # (h, w, 3)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The same place of one image by every method."""

    title: str
    pictures: tuple[tuple[str, Picture], ...]  # LR, GT, then the result of each method, by name
    errors: tuple[tuple[str, Picture], ...]  # of each method, in ERROR_COLOURS
    largest_error: float  # in levels, shown brightest


def excerpts(scores: Scores, one: ImageSet, metric: Metric) -> list[tuple[str, list[Excerpt]]]:
    """The excerpts of a set with their headings; the images are read and enlarged again."""
    return [
        (title, [_excerpt(scores, one, files, metric) for files in chosen])
        for title, chosen in _ends(scores, one, metric)
    ]


def _ends(scores: Scores, one: ImageSet, metric: Metric) -> list[tuple[str, list[PairFiles]]]:
    """The images at both ends of the order: by gain over the last method, or by value."""
    first, last = scores.methods[0].name, scores.methods[-1].name
    ours = scores.of(one.name, first, metric.name)
    if len(scores.methods) > 1:
        theirs = scores.of(one.name, last, metric.name)
        titles = [f"{end} gain over {last}" for end in ENDS_OF_GAINS]
    else:
        theirs = dict.fromkeys(ours, 0.0)
        titles = [f"{end} {metric.name}" for end in ENDS_OF_VALUES]
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


def _excerpt(scores: Scores, one: ImageSet, files: PairFiles, metric: Metric) -> Excerpt:
    """The place of an image where the errors of the first and the last method differ most."""
    pair = files.read(one.scale)
    stored = {method.name: in_type(method.sr_of(pair), pair.hr) for method in scores.methods}
    errors = {name: _error(sr, pair) for name, sr in stored.items()}
    first, last = errors[scores.methods[0].name], errors[scores.methods[-1].name]
    telling = np.abs(last**2 - first**2) if len(scores.methods) > 1 else first**2
    rows, cols = _window(telling, one.scale)
    small = tuple(slice(part.start // one.scale, part.stop // one.scale) for part in (rows, cols))
    low, high = _stretch(pair.hr)
    found = {name: scores.of(one.name, name, metric.name)[files.name] for name in stored}
    unit = metric.unit
    values = ", ".join(f"{name} {number(value, unit)} {unit}" for name, value in found.items())
    images = {"LR": pair.lr[small], "GT": pair.hr[rows, cols]}
    pictures = [*images.items(), *((name, sr[rows, cols]) for name, sr in stored.items())]
    cut = {name: error[rows, cols] for name, error in errors.items()}
    largest = max(float(np.quantile(error, 0.995)) for error in cut.values()) or 1.0
    return Excerpt(
        title=f"{files.name}: {values}",
        pictures=tuple((name, _rgb(image, low, high)) for name, image in pictures),
        errors=tuple((name, _error_colours(error / largest)) for name, error in cut.items()),
        largest_error=largest,
    )


def _error(sr: NDArray[np.generic], pair: Pair) -> NDArray[np.float64]:
    """Mean absolute difference over the bands, (H, W)."""
    difference = in_levels(sr, pair.hr) - pair.hr.astype(np.float64)
    error: NDArray[np.float64] = np.abs(difference).mean(-1)
    return error


def _window(telling: NDArray[np.float64], scale: int) -> tuple[slice, slice]:
    """The square of at most EDGE pixels, at multiples of the scale, with the largest sum."""
    edge = min(EDGE, *telling.shape) // scale * scale
    sums = np.pad(telling, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    whole = sums[edge:, edge:] - sums[:-edge, edge:] - sums[edge:, :-edge] + sums[:-edge, :-edge]
    whole = whole[::scale, ::scale]
    row, col = np.unravel_index(int(whole.argmax()), whole.shape)
    top, left = int(row) * scale, int(col) * scale
    return slice(top, top + edge), slice(left, left + edge)


def _stretch(hr: NDArray[np.generic]) -> tuple[float, float]:
    """The values shown black and white: 0 and 255 for uint8, else the middle 96 % of the values."""
    if hr.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.quantile(hr.astype(np.float64), [0.02, 0.98])
    return float(low), float(high) if high > low else float(low) + 1.0


def _rgb(image: NDArray[np.generic], low: float, high: float) -> Picture:
    """An image of any number of bands as 8-bit RGB: its first three bands, or the first as grey."""
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    levels = 255 * (bands.astype(np.float64) - low) / (high - low)
    picture: Picture = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return picture


def _error_colours(share: NDArray[np.float64]) -> Picture:
    """(H, W) from 0 to 1 -> RGB between ERROR_COLOURS."""
    places = np.linspace(0, 1, len(ERROR_COLOURS))
    channels = [np.interp(share, places, [one[band] for one in ERROR_COLOURS]) for band in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)
