"""Grid: the size of a raster and its place on the ground, and how both change with resolution.

Four kinds of georeferencing are kept, each by its own rule: affine transforms and ground control
points count from pixel corners, RPCs from pixel centres, and geolocation arrays by line and step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from repmamba.tiles.window import Window

_RPC_NUMBERS = tuple(
    f"{axis}_{what}"
    for what in ("OFF", "SCALE")
    for axis in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")
)
_RPC_POLYNOMIALS = ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")


@dataclass(frozen=True, slots=True)
class Grid:
    """Size and place. Rasters without georeferencing have neither transform nor crs."""

    width: int
    height: int
    transform: Affine | None = None  # (col, row) of a pixel's corner -> CRS coordinates
    crs: CRS | None = None

    def refined(self, scale: int) -> Grid:
        """The grid with scale x scale pixels for each; corners stay, rotated or sheared too."""
        transform = None if self.transform is None else self.transform @ Affine.scale(1 / scale)
        return Grid(scale * self.width, scale * self.height, transform, self.crs)

    def cut(self, window: Window) -> Grid:
        """The part of the grid that a window (of its pixels) covers, at the same place."""
        transform = self.transform
        if transform is not None:
            transform = transform @ Affine.translation(window.col, window.row)
        return Grid(window.width, window.height, transform, self.crs)

    def corners(self) -> tuple[tuple[float, float], ...]:
        """The outer corners, clockwise from the first, in the CRS; without transform in pixels."""
        place = self.transform or Affine.identity()
        ends = ((0, 0), (self.width, 0), (self.width, self.height), (0, self.height))
        return tuple(place @ end for end in ends)


def refined_gcps(
    gcps: Sequence[GroundControlPoint], scale: int, window: Window
) -> list[GroundControlPoint]:
    """Ground control points on the refined grid of a window, counted from its corner."""
    return [
        GroundControlPoint(
            row=scale * (point.row - window.row),
            col=scale * (point.col - window.col),
            x=point.x,
            y=point.y,
            z=point.z,
            id=point.id,
            info=point.info,
        )
        for point in gcps
    ]


def refined_rpcs(rpcs: Mapping[str, str], scale: int, window: Window) -> dict[str, str]:
    """RPC tags (named as in GDAL) on the refined grid of a window.

    RPCs count from the centre of the first pixel, so an offset o becomes scale (o + 0.5) - 0.5.
    Units after a number ("+001024.50 pixels") are dropped. The tags must be complete, see
    `lacking_rpcs`.
    """
    refined = dict(rpcs) | {name: rpcs[name].split()[0] for name in _RPC_NUMBERS}
    for axis, first in (("LINE", window.row), ("SAMP", window.col)):
        offset, extent = float(refined[f"{axis}_OFF"]), float(refined[f"{axis}_SCALE"])
        refined[f"{axis}_OFF"] = repr(scale * (offset - first + 0.5) - 0.5)
        refined[f"{axis}_SCALE"] = repr(scale * extent)
    return refined


def refined_geolocation(tags: Mapping[str, str], scale: int, window: Window) -> dict[str, str]:
    """GEOLOCATION tags (named as in GDAL) on the refined grid of a window.

    They point to arrays of positions; entry n belongs to line LINE_OFFSET + n LINE_STEP, and
    likewise for pixels.
    """
    refined = dict(tags)
    for axis, first in (("LINE", window.row), ("PIXEL", window.col)):
        for name, start in ((f"{axis}_OFFSET", first), (f"{axis}_STEP", 0)):
            with suppress(KeyError, ValueError):  # GDAL ignores such tags in source and result
                refined[name] = repr(scale * (float(tags[name]) - start))
    return refined


def lacking_rpcs(rpcs: Mapping[str, str]) -> tuple[str, ...]:
    """Required RPC tags that are absent or hold no numbers."""
    counts = dict.fromkeys(_RPC_NUMBERS, 1) | dict.fromkeys(_RPC_POLYNOMIALS, 20)
    return tuple(
        name
        for name, count in counts.items()
        if not _begins_with_numbers(rpcs.get(name, ""), count)
    )


def _begins_with_numbers(text: str, count: int) -> bool:
    words = text.split()[:count]
    try:
        return len(words) == count and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False
