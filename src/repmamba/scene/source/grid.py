"""Grid: how many pixels a raster has and where on the ground they lie, and what of that changes
with resolution.

Four ways to say where a raster lies survive an enlargement, each by its own rule: the affine
transform, which counts from pixel corners; ground control points, likewise; RPCs, which count from
pixel centres; and arrays of positions.
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
    """Pixels and their place. Unplaced rasters (pictures) have neither transform nor crs."""

    width: int
    height: int
    transform: Affine | None = None  # (col, row) of a pixel's corner -> CRS coordinates
    crs: CRS | None = None

    def refined(self, scale: int) -> Grid:
        """The grid with scale x scale pixels for each: the corners stay, rotated and sheared ones
        too.
        """
        transform = None if self.transform is None else self.transform @ Affine.scale(1 / scale)
        return Grid(scale * self.width, scale * self.height, transform, self.crs)

    def cut(self, window: Window) -> Grid:
        """The part of the grid that a window (of its pixels) covers, where it was."""
        transform = (
            None
            if self.transform is None
            else self.transform @ Affine.translation(window.col, window.row)
        )
        return Grid(window.width, window.height, transform, self.crs)

    def corners(self) -> tuple[tuple[float, float], ...]:
        """The outer corners, clockwise from the first pixel's, in the CRS; in pixels where there is
        no transform.
        """
        place = self.transform or Affine.identity()
        ends = ((0, 0), (self.width, 0), (self.width, self.height), (0, self.height))
        return tuple(place @ end for end in ends)


def refined_gcps(
    gcps: Sequence[GroundControlPoint], scale: int, window: Window
) -> list[GroundControlPoint]:
    """Ground control points on the refined grid of a window: rows and columns counted from its
    corner, times scale.
    """
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
    """RPC tags (as GDAL names them) on the refined grid of a window.

    RPCs give the position of a pixel's centre, 0 for the first one: an offset o becomes scale (o +
    0.5) - 0.5. Units behind a number ("+001024.50 pixels"), as some files have them, are left out.
    Wants tags of which none is lacking.
    """
    refined = dict(rpcs) | {name: rpcs[name].split()[0] for name in _RPC_NUMBERS}
    for axis, first in (("LINE", window.row), ("SAMP", window.col)):
        offset, extent = float(refined[f"{axis}_OFF"]), float(refined[f"{axis}_SCALE"])
        refined[f"{axis}_OFF"] = repr(scale * (offset - first + 0.5) - 0.5)
        refined[f"{axis}_SCALE"] = repr(scale * extent)
    return refined


def refined_geolocation(tags: Mapping[str, str], scale: int, window: Window) -> dict[str, str]:
    """GEOLOCATION tags (as GDAL names them) on the refined grid of a window.

    They lead to arrays of positions, of which entry n is that of line LINE_OFFSET + n LINE_STEP;
    likewise for pixels.
    """
    refined = dict(tags)
    for axis, first in (("LINE", window.row), ("PIXEL", window.col)):
        for name, start in ((f"{axis}_OFFSET", first), (f"{axis}_STEP", 0)):
            with suppress(KeyError, ValueError):  # of such, GDAL makes no place before and after
                refined[name] = repr(scale * (float(tags[name]) - start))
    return refined


def lacking_rpcs(rpcs: Mapping[str, str]) -> tuple[str, ...]:
    """Which RPC tags, without which no place follows from the others, are not there or hold no
    numbers.
    """
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
