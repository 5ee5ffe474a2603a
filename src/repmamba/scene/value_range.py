"""The value range of a scene: what is black and white to the network, and how it is found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from repmamba.errors import CorruptSource
from repmamba.pixels.histogram import ValueHistogram, describe_fills
from repmamba.pixels.nodata import usable
from repmamba.pixels.radiometry import Radiometry
from repmamba.scene.band_selection import BandSelection, usual_bands
from repmamba.scene.options import ValueRange
from repmamba.scene.source.raster import Raster
from repmamba.scene.source.sampling import PixelProgress, value_histograms
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

CHECKED_EDGE = 64  # lr pixels, edge of the windows that are checked for undeclared nodata
QUICKLY_READ = 1 << 26  # pixels
EIGHT_BITS = ("uint8", "int8")  # types of which scenes use the whole range


class FoundRange(NamedTuple):
    """The linear map of each band, and how it was found."""

    radiometry: Radiometry
    how: str
    fills: str  # values that look like undeclared nodata; "" for none

    def describe(self) -> str:
        """Black and white of each band, once if all are the same, and why."""
        ends = zip(self.radiometry.low, self.radiometry.high, strict=True)
        ranges = dict.fromkeys(f"{low:.6g} to {high:.6g}" for low, high in ends)
        return f"{'; '.join(ranges)}, {self.how}"


def describe_usual_range(raster: Raster) -> str:
    """The range of a raster by default; for a large scene, how it will be found."""
    if raster.facts.dtype not in EIGHT_BITS and raster.whole.area > QUICKLY_READ:
        return "of nearly all values of the scene, which upscale --dry-run finds by reading it"
    try:
        found = find_range(raster, usual_bands(raster.facts), None)
    except CorruptSource as damage:
        return f"unknown: {damage}"
    return found.describe() + f"; possibly undeclared nodata: {found.fills}" * bool(found.fills)


def find_range(
    raster: Raster,
    bands: BandSelection,
    asked: ValueRange | None,
    measuring: PixelProgress | None = None,
) -> FoundRange:
    """The range that was asked for, that of the data type, or one that holds nearly all values.

    Bands that go through the network together share one, or colours would shift.
    """
    dtype, count = raster.facts.dtype, len(bands.places)
    usual = Radiometry.of_type(dtype, count, raster.facts.largest)
    why = "as asked" if asked is not None else "the default for this type"
    if asked is None:
        asked = "type" if dtype in EIGHT_BITS else "robust"
    histograms = _histograms(raster, bands, measuring, whole=asked == "robust")
    fills = describe_fills(histograms, dtype)
    if asked == "robust":
        radiometry = _robust(raster.facts.name, bands, usual, histograms)
        return FoundRange(radiometry, f"the range of nearly all values of the scene, {why}", fills)
    if fills:
        fills = f"of a sample, {fills}"
    if asked == "type":
        return FoundRange(usual, f"the limits of {dtype}, {why}", fills)
    low, high = asked
    return FoundRange(replace(usual, low=(low,) * count, high=(high,) * count), why, fills)


def _robust(
    name: str, bands: BandSelection, usual: Radiometry, histograms: Sequence[ValueHistogram]
) -> Radiometry:
    """The range of nearly all values of each group of bands; the usual one where there are none."""
    ranges = [histogram.range() for histogram in histograms]
    outliers = sum(
        each.outliers(*ends) for each, ends in zip(histograms, ranges, strict=True) if ends
    )
    if outliers:
        logger.info("%s: outliers (upscaled smoothly, not made consistent): %d.", name, outliers)
    low, high = list(usual.low), list(usual.high)
    for group, between in zip(bands.groups, ranges, strict=True):
        if between is not None:
            for band in group:
                low[band], high[band] = between
    return replace(usual, low=tuple(low), high=tuple(high))


def _histograms(
    raster: Raster, bands: BandSelection, measuring: PixelProgress | None, *, whole: bool
) -> list[ValueHistogram]:
    """The values of each group of bands, of the whole scene (or a sample) or of a few windows."""

    def count(window: Window, histograms: Sequence[ValueHistogram]) -> None:
        raw, valid = raster.read(window)
        known = usable(raw, valid, raster.facts.band_nodata)
        for histogram, group in zip(histograms, bands.groups, strict=True):
            for place in (bands.places[band] for band in group):
                histogram.add(raw[place][known[place]])

    if whole:
        return value_histograms(raster, count, len(bands.groups), measuring)
    found = [ValueHistogram() for _ in bands.groups]
    with suppress(CorruptSource):  # reading the tiles will raise it where it matters
        for window in _corners_and_middle(raster):
            count(window, found)
    return found


def _corners_and_middle(raster: Raster) -> Iterator[Window]:
    """Windows to look at where the range needs no pass over the scene.

    None in a picture, or where reading them takes long.
    """
    if not raster.facts.has_place or not raster.reads_anywhere:
        return
    height, width = raster.grid.height, raster.grid.width
    bottom, right = max(0, height - CHECKED_EDGE), max(0, width - CHECKED_EDGE)
    for row in sorted({0, bottom // 2, bottom}):
        for col in sorted({0, right // 2, right}):
            yield Window(row, col, CHECKED_EDGE, CHECKED_EDGE).clipped(raster.whole)
