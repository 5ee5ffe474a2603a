"""Which parts of a raster are read to find its value range: all, or a seeded sample of a large one.

A sample grows until its two halves agree on the range. If one value fills nearly all pixels, or a
few pixels widen the range, the raster is read whole. The window to upscale has no influence, so all
windows of a scene have the same plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from repmamba.pixels.histogram import ValueHistogram
from repmamba.scene.source.raster import Raster
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

WHOLE = 1 << 28  # pixels; up to this many are all read, in a few seconds per band
SAMPLE = 1 << 26  # pixels of the first sample; each further one has twice as many
LEAST_CELLS = 64  # of a sample, to cover most kinds of ground
LONG = 1 << 26  # pixels from which reading is logged and reported
SHARE = 0.01  # of the range's width, by which the two halves of a sample may differ
SEED = 0

Count = Callable[[Window, Sequence[ValueHistogram]], None]  # adds the values of a window
PixelProgress = Callable[[int, int], None]  # pixels done, and their total


def value_histograms(
    raster: Raster, count: Count, groups: int, progress: PixelProgress | None = None
) -> list[ValueHistogram]:
    """The values of each group of bands, of the whole raster or of a sample with the same range.

    count: adds the values of a window to histograms, one per group.
    progress: called where reading takes long.
    """
    if _area([raster.whole]) <= WHOLE:
        return _of_all(raster, list(raster.strips()), count, groups, progress)
    cells = raster.cells()
    unwritten = {cell for cell in cells if raster.is_unwritten(cell)}
    if (
        _area(cells) - _area(unwritten) > WHOLE
        and len(cells) >= 4 * LEAST_CELLS
        and raster.reads_anywhere
    ):
        sample = _of_sample(raster, cells, count, groups, progress)
        if sample is not None:
            return sample
    windows = (
        [cell for cell in cells if cell not in unwritten] if unwritten else list(raster.strips())
    )
    found = _of_all(raster, windows, count, groups, progress)
    for shape, cell in {(cell.height, cell.width): cell for cell in unwritten}.items():
        alike = sum((other.height, other.width) == shape for other in unwritten)
        values = [ValueHistogram() for _ in range(groups)]
        count(cell, values)
        for histogram, more in zip(found, values, strict=True):
            histogram.merge(more, alike)
    return found


def _of_all(
    raster: Raster,
    windows: Sequence[Window],
    count: Count,
    groups: int,
    progress: PixelProgress | None,
) -> list[ValueHistogram]:
    found = [ValueHistogram() for _ in range(groups)]
    what = "" if _area(windows) < LONG else f"{_area(windows) / 1e6:,.0f} megapixels"
    for window in _reported(raster, windows, what, progress):
        count(window, found)
    return found


def _of_sample(
    raster: Raster,
    cells: Sequence[Window],
    count: Count,
    groups: int,
    progress: PixelProgress | None,
) -> list[ValueHistogram] | None:
    """The values of a sample of cells; None if even half of them do not settle the range."""
    order = np.random.default_rng(SEED).permutation(len(cells))
    halves = [[ValueHistogram() for _ in range(groups)] for _ in range(2)]
    areas = np.cumsum([_area([cells[place]]) for place in order])
    taken, pixels = 0, SAMPLE
    while True:
        first = taken
        taken = max(LEAST_CELLS, int(np.searchsorted(areas, pixels)) + 1)
        if taken > len(cells) // 2:
            return None
        what = f"a sample of {areas[taken - 1] / 1e6:,.0f} of {areas[-1] / 1e6:,.0f} megapixels"
        chosen = {cells[order[place]]: place for place in range(first, taken)}
        for cell in _reported(
            raster, sorted(chosen, key=lambda cell: (cell.row, cell.col)), what, progress
        ):
            count(cell, halves[chosen[cell] % 2])
        steady = all(map(_is_same_range, *halves))
        if steady or not all(histogram.is_plain() for half in halves for histogram in half):
            break
        pixels *= 2
    for histogram, more in zip(*halves, strict=True):
        histogram.merge(more)
    return halves[0] if all(histogram.is_plain() for histogram in halves[0]) else None


def _is_same_range(one: ValueHistogram, other: ValueHistogram) -> bool:
    first, second = one.range(), other.range()
    if first is None or second is None:
        return False
    width = max(first[1], second[1]) - min(first[0], second[0])
    return max(abs(first[0] - second[0]), abs(first[1] - second[1])) <= SHARE * width


def _reported(
    raster: Raster, windows: Sequence[Window], what: str, progress: PixelProgress | None
) -> Iterator[Window]:
    """The windows one by one, with a log line and progress where reading takes long."""
    total, done = _area(windows), 0
    if what:
        logger.info(
            "%s: reading %s to find its value range; value_range=(LOW, HIGH) avoids this.",
            raster.facts.name,
            what,
        )
    for window in windows:
        if progress is not None and what:
            progress(done, total)
        yield window
        done += _area([window])
    if progress is not None and what:
        progress(total, total)


def _area(windows: Iterable[Window]) -> int:
    return sum(window.area for window in windows)
