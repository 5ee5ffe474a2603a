"""A bounding box in the grid's CRS (left, bottom, right, top) as a window of the grid.

In a geographic CRS, left > right means a box across the antimeridian, as in GeoJSON and STAC. Boxes
also match when shifted by 360 degrees, because grids may run from -180 to 180, from 0 to 360, or
beyond 180.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from affine import Affine

from repmamba.errors import UsageError
from repmamba.scene.source.grid import Grid
from repmamba.tiles.window import Window

ROUND = 360.0  # degrees
TOUCHED = 1e-6  # pixels: an overlap this small comes from rounded coordinates


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def __str__(self) -> str:
        return f"{self.left:.10g} {self.bottom:.10g} {self.right:.10g} {self.top:.10g}"


def window_of_bbox(name: str, grid: Grid, bbox: tuple[float, float, float, float]) -> Window:
    """The pixels of a grid that a box intersects. name: of the raster, for errors.

    Raises UsageError if there are none, or if they do not form one window.
    """
    if grid.transform is None:
        raise UsageError(f"{name} has no transform to locate a bbox with: use window=.")
    box = _Box(*bbox)
    if box.bottom > box.top:
        raise UsageError(
            f"The bbox {box} has its bottom above its top: give left, bottom, right, top."
        )
    if grid.crs is None or not grid.crs.is_geographic:
        if box.left > box.right:
            raise UsageError(
                f"The bbox {box} has left > right, which is only possible in degrees (across the "
                f"antimeridian), and {name} is not in degrees: give left, bottom, right, top in "
                "its CRS."
            )
        boxes = [box]
    else:
        right = box.right + ROUND if box.left > box.right else box.right
        turns = (ROUND * count for count in range(-2, 3))
        boxes = [_Box(box.left + turn, box.bottom, right + turn, box.top) for turn in turns]
    met = {window for each in boxes if not (window := _met(grid, grid.transform, each)).is_empty}
    inside = {one for one in met for other in met if other != one and other.contains(one)}
    met -= inside
    if not met:
        raise UsageError(f"The bbox {box} does not intersect {name}: give it in the scene's CRS.")
    if len(met) > 1:
        windows = sorted(met, key=lambda window: window.col)
        parts = " and ".join(f"window=({w.col},{w.row},{w.width},{w.height})" for w in windows)
        raise UsageError(
            f"The bbox {box} intersects {name} at both ends, which do not form one window: upscale "
            f"{parts} one by one."
        )
    return met.pop()


def _met(grid: Grid, transform: Affine, box: _Box) -> Window:
    """The pixels of a grid that a box intersects; an empty window if there are none."""
    back = ~transform
    corners = [back @ (x, y) for x in (box.left, box.right) for y in (box.bottom, box.top)]
    cols, rows = zip(*corners, strict=True)
    col, row = math.floor(min(cols) + TOUCHED), math.floor(min(rows) + TOUCHED)
    end_col, end_row = math.ceil(max(cols) - TOUCHED), math.ceil(max(rows) - TOUCHED)
    whole = Window(0, 0, grid.height, grid.width)
    return Window(row, col, end_row - row, end_col - col).clipped(whole)
