"""Display copies: what the map of the page shows of the input and of the result.

A copy is a GeoTIFF of 8-bit red, green and blue, or grey, with alpha; it has tiles and overviews.
The process of a job writes both copies, and the server reads only these, no file of a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from repmamba.durable import whole_file
from repmamba.gdal import created
from repmamba.pixels.histogram import ValueHistogram
from repmamba.scene.band_selection import select_bands
from repmamba.scene.options import SceneOptions
from repmamba.scene.result.formats import FORMATS
from repmamba.scene.result.overviews import halved
from repmamba.scene.scene_result import SceneResult
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.bbox import window_of_bbox
from repmamba.scene.source.grid import Grid
from repmamba.scene.source.raster import Raster, RasterFacts, open_raster
from repmamba.service.map_tiles import GEOGRAPHIC
from repmamba.service.store import AFTER, BEFORE
from repmamba.tiles.window import Window

LONGEST = 1 << 14  # pixels, longest side of a copy; a larger raster is halved until it fits
BLOCK = 256  # pixels, edge of what is read at once, and of the tiles of a copy
STRETCH = (1.0, 99.0)  # percentiles shown as black and white; 8 bits are shown as they are
READ_WITH = ("bands", "nodata", "alpha", "expand_palette")  # what says how a source is read

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
GREY = (ColorInterp.gray,)
WEB_MERCATOR = CRS.from_epsg(3857)
MOST_NORTH = 85.06  # degrees of latitude where Web Mercator ends
# A result without a place on the map gets one where Web Mercator's metres begin, north-up; each of
# its pixels is one of zoom level 22.
PIXEL = 2 * math.pi * 6378137 / (256 << 22)  # metres


def write_display(
    source: Path,
    result: SceneResult,
    keywords: Mapping[str, Any],
    folder: Path,
    check: Callable[[], None],
) -> None:
    """Write the copies of the result and of the same part of the input, with the same stretch.

    keywords: of upscale_file. check: called after each window; may raise to stop.
    Raises SourceError, TargetError, NoSpace.
    """
    assert result.path is not None
    how = {name: keywords[name] for name in READ_WITH if name in keywords}
    with (
        open_raster(source, ReadOptions(untrusted=True, **how)) as before,
        open_raster(result.path) as after,
    ):
        part = _part(before, str(source), keywords)
        grid, geographic = _on_the_map(before.facts, part, result.scale)
        of_input, of_result = _shown_bands(before.facts, after.facts, keywords)
        stretch = _stretch(before, part, of_input)
        for raster, window, place, bands, name in (
            (before, part, grid, of_input, BEFORE),
            (after, after.whole, grid.refined(result.scale), of_result, AFTER),
        ):
            shown = partial(_shown, raster, window, bands, stretch)
            with whole_file(folder / name) as draft:
                _write(draft, place, len(bands), shown, check, geographic)


def _part(raster: Raster, name: str, keywords: Mapping[str, Any]) -> Window:
    """The part of the input that the result shows."""
    if "bbox" in keywords:
        return window_of_bbox(name, raster.grid, tuple(keywords["bbox"])).clipped(raster.whole)
    if "window" in keywords:
        col, row, width, height = keywords["window"]
        return Window(row, col, height, width)
    return raster.whole


def _on_the_map(facts: RasterFacts, part: Window, scale: int) -> tuple[Grid, bool]:
    """The grid of a part on the map: where it is on Earth (True), or where there is room."""
    transform, crs = facts.grid.transform, facts.grid.crs
    try:
        if facts.gcps is not None:
            transform, crs = _fitted(facts.gcps[0]), facts.gcps[1]
        grid = Grid(facts.grid.width, facts.grid.height, transform, crs).cut(part)
        if crs is not None and transform is not None and not transform.is_degenerate:
            xs, ys = zip(*grid.corners(), strict=True)
            ends = transform_bounds(crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
            west, south, east, north = ends
            if -180 <= west < east <= 180 and -MOST_NORTH <= south < north <= MOST_NORTH:
                return grid, True
    except (RasterioError, CPLE_BaseError, ValueError, ArithmeticError):
        pass  # a place that cannot be computed
    pixel = PIXEL * scale
    return Grid(part.width, part.height, Affine.scale(pixel, -pixel), WEB_MERCATOR), False


def _fitted(points: Sequence[GroundControlPoint]) -> Affine | None:
    """The transform closest to ground control points; None if they lie on a line.

    Not rasterio's from_gcps, whose result varies from run to run for points on a line.
    """
    pixels = np.array([(point.col, point.row, 1) for point in points])
    fitted, _, rank, _ = np.linalg.lstsq(pixels, [(point.x, point.y) for point in points])
    return Affine(*fitted.T.ravel()) if rank == 3 else None


def _shown_bands(
    source: RasterFacts, result: RasterFacts, keywords: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """Red, green and blue, or else grey: as places in what the input reads, and the result."""
    chosen = select_bands(
        source,
        SceneOptions(bands=keywords.get("bands"), rgb=keywords.get("rgb")),
        is_picture=FORMATS[keywords["format"]].is_picture,
        network_bands=3,
    )
    several = (0, 1, 2) if len(chosen.places) >= 3 else (0,)
    shown = next((group for group in chosen.groups if len(group) == 3), several)
    return [chosen.places[band] for band in shown], [result.colours[band] for band in shown]


def _windows(whole: Window, edge: int) -> Iterator[Window]:
    """Squares that cover a window, row by row."""
    for row in range(whole.row, whole.bottom, edge):
        for col in range(whole.col, whole.right, edge):
            yield Window(row, col, edge, edge).clipped(whole)


def _stretch(raster: Raster, part: Window, bands: Sequence[int]) -> tuple[float, float]:
    """The values shown as black and white."""
    if raster.facts.dtype == "uint8":
        return 0.0, 255.0
    values = ValueHistogram()
    for window in _windows(part, BLOCK):
        raw, valid = raster.read(window)
        values.add(raw[bands][:, valid])
    return values.range(STRETCH) or (0.0, 1.0)


def _shown(
    raster: Raster,
    whole: Window,
    bands: Sequence[int],
    stretch: tuple[float, float],
    window: Window,
) -> NDArray[np.uint8]:
    """A window, counted from the corner of `whole`, as (bands, h, w) of 8 bit, alpha last."""
    raw, valid = raster.read(
        Window(window.row + whole.row, window.col + whole.col, window.height, window.width)
    )
    low, high = stretch
    unit = (raw[bands].astype(np.float64) - low) / ((high - low) or 1)
    colours = np.where(valid, np.clip(np.nan_to_num(unit), 0, 1), 0)
    return np.round(255 * np.concatenate([colours, valid[None]])).astype(np.uint8)


def _write(
    target: Path,
    grid: Grid,
    colours: int,
    shown: Callable[[Window], NDArray[np.uint8]],
    check: Callable[[], None],
    geographic: bool,
) -> None:
    """Write a copy. shown: reads a window of the grid as it is shown, see `_shown`."""
    halvings = _halvings(grid.width, grid.height, LONGEST)
    smaller = 1 << halvings
    assert grid.transform is not None
    profile = {
        "width": -(-grid.width // smaller),
        "height": -(-grid.height // smaller),
        "crs": grid.crs,
        "transform": grid.transform @ Affine.scale(smaller),
        "count": colours + 1,
        "dtype": "uint8",
    }
    options = {"compress": "deflate", "zlevel": 1, "predictor": 2, "bigtiff": "if_safer"}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    with created(target, **profile, **blocks, **options) as file:
        file.colorinterp = (*(RGB if colours == 3 else GREY), ColorInterp.alpha)
        file.update_tags(**({GEOGRAPHIC: "YES"} if geographic else {}))
        for window in _windows(Window(0, 0, grid.height, grid.width), max(BLOCK, smaller)):
            pixels = shown(window)
            for _ in range(halvings):
                pixels = halved(pixels, None, alpha=colours)[0]
            row, col = window.row // smaller, window.col // smaller
            _, height, width = pixels.shape
            file.write(pixels, window=((row, row + height), (col, col + width)))
            check()
    with rasterio.open(target, "r+", driver="GTiff") as file:
        count = _halvings(file.width, file.height, BLOCK)
        file.build_overviews([2**level for level in range(1, count + 1)], Resampling.average)


def _halvings(width: int, height: int, most: int) -> int:
    """How often a raster is halved until no side has more than so many pixels."""
    return max(0, math.ceil(math.log2(max(width, height) / most)))
