"""Raster: an open file with its grid, bands and tags, and windows as numbers and a valid mask.

A pixel is missing where a dataset mask says so, else where alpha is 0, else where all bands are
nodata. A single band is also missing where it has its own nodata value. admission.py decides what
may be opened, pixels.py how pixels are decoded.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import MaskFlags

from repmamba.errors import SourceError
from repmamba.gdal import bounded_cache, opened, settings
from repmamba.pixels.radiometry import type_range
from repmamba.scene.source.admission import (
    GDAL_SETTINGS,
    UNTRUSTED_SETTINGS,
    ReadOptions,
    check_dataset,
    check_file,
)
from repmamba.scene.source.grid import Grid, lacking_rpcs
from repmamba.scene.source.origin import file_behind, names_read
from repmamba.scene.source.pixels import (
    PixelReader,
    Pixels,
    is_called_data,
    is_georeferenced,
    pixel_reader,
    read_errors,
)
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

CELL = 512  # pixels, edge of a cell where blocks are small
# formats whose readers decode all rows above a window
READ_FROM_THE_TOP = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

DROPPED_TAGS = (
    *("STATISTICS_", "TIFFTAG_MINSAMPLEVALUE", "TIFFTAG_MAXSAMPLEVALUE"),
    *("OVR_", "EXIF_", "NODATA_VALUES", "INTERLEAVE", "COMPRESSION"),
)
DROPPED_NAMESPACES = (
    *("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "RPC", "COLOR_PROFILE", "EXIF"),
    *("NITF_METADATA", "TRE"),  # the file's own header, with size and place
)
DROPPED_TEXTS = ("xml:", "json:")  # namespaces that hold one text, such as XMP
DROPPED_OF_ENVI = (  # besides these, lists of bands and places
    "samples lines bands header_offset file_type data_type interleave byte_order "
    "data_ignore_value x_start y_start"
).split()


@dataclass(frozen=True, slots=True)
class RasterFacts:
    """What a raster declares. Per-band fields have one entry per band, in the order of `read`."""

    name: str  # as given by the user
    driver: str
    grid: Grid
    dtype: str
    largest: float | None  # largest value, if the file has fewer bits than its type (NBITS)
    nodata: float | None  # of all bands, if it marks missing pixels or comes from the options
    nodata_given: bool  # by the options
    band_nodata: tuple[float | None, ...]  # each band's own nodata
    # how a result marks missing pixels: "mask", "alpha", "nodata", or "" for not at all
    missing: str
    # what marks them in the file: "mask", "alpha", "bands" (each band), or "" for nothing
    missing_from: str
    alpha: int | None  # index of the alpha band, from 0, even where a mask marks missing pixels
    numbers: tuple[int, ...]  # numbers of the bands in the file, from 1
    colorinterp: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str | None, ...]
    tags: Mapping[str, Mapping[str, str]]  # namespace -> tags
    band_tags: tuple[Mapping[str, Mapping[str, str]], ...]  # the same for each band
    gcps: tuple[tuple[GroundControlPoint, ...], CRS | None] | None
    rpcs: Mapping[str, str] | None
    read_from: tuple[str, ...]  # GDAL names of files, archive members and URLs
    block: tuple[int, int]  # rows and columns decoded together

    @property
    def count(self) -> int:
        """Bands, alpha included."""
        return len(self.colorinterp)

    @property
    def colours(self) -> tuple[int, ...]:
        """The bands that are not alpha, from 0."""
        return tuple(place for place in range(self.count) if place != self.alpha)

    @property
    def texts(self) -> list[str]:
        """The texts of all tags."""
        spaces = [*self.tags.values(), *(tags for one in self.band_tags for tags in one.values())]
        return [text for tags in spaces for text in tags.values()]

    @property
    def has_place(self) -> bool:
        """Whether it is georeferenced: a CRS, a transform, GCPs or RPCs."""
        placed = self.grid.crs is not None or self.grid.transform is not None
        return placed or bool(self.gcps) or bool(self.rpcs)


class Raster:
    """An open source from `open_raster`, closed by `with`. Threads may share it."""

    def __init__(
        self,
        facts: RasterFacts,
        pixels: PixelReader,
        watched: Mapping[Path, tuple[int, int]],
        stack: ExitStack,
        options: Mapping[str, str],
    ):
        self.facts = facts
        self._pixels = pixels
        self._watched = watched
        self._stack = stack
        self._options = options  # of GDAL
        self._lock = threading.Lock()

    @property
    def grid(self) -> Grid:
        """Size and place."""
        return self.facts.grid

    @property
    def whole(self) -> Window:
        """The window that covers it."""
        return Window(0, 0, self.grid.height, self.grid.width)

    @property
    def corrupt_blocks(self) -> frozenset[Window]:
        """Blocks that could not be read so far and count as missing."""
        return frozenset(self._pixels.corrupt_blocks)

    def read(self, window: Window) -> Pixels:
        """raw (bands, h, w) in the source's type, and valid (h, w), False where a pixel is missing.

        Raises CorruptSource with the window, and SourceError if the file changed since it was
        opened.
        """
        with self._lock, settings(self._options), read_errors(self.facts.name, window):
            pixels = self._pixels.read(window)
            self.check_unchanged()
        return pixels

    def strips(self) -> Iterator[Window]:
        """Windows that cover the raster, in the order and shape that are cheapest to read."""
        height = max(256, self.facts.block[0])
        width = self.grid.width if self._pixels.by_rows else 1024
        for row in range(0, self.grid.height, height):
            for col in range(0, self.grid.width, width):
                yield Window(row, col, height, width).clipped(self.whole)

    def cells(self) -> list[Window]:
        """Windows of whole blocks that cover the raster, as small as is efficient to read."""
        height, width = self.facts.block
        rows, cols = max(1, CELL // height) * height, max(1, CELL // width) * width
        if self._pixels.by_rows:
            rows, cols = max(1, CELL**2 // self.grid.width // height) * height, self.grid.width
        return [
            Window(row, col, rows, cols).clipped(self.whole)
            for row in range(0, self.grid.height, rows)
            for col in range(0, self.grid.width, cols)
        ]

    @property
    def reads_anywhere(self) -> bool:
        """Whether a window can be read without decoding all rows above it."""
        return self._pixels.turn == 1 and self.facts.driver not in READ_FROM_THE_TOP

    def is_unwritten(self, window: Window) -> bool:
        """Whether a TIFF has no bytes for any block of a window, and no mask for it."""
        with self._lock:
            return self._pixels.is_unwritten(window)

    def check_unchanged(self) -> None:
        """Raise SourceError if a file it is read from changed since it was opened."""
        for path, before in self._watched.items():
            if _stamp(path) != before:
                raise SourceError(
                    f"{path} changed while it was read: run again when it is no longer written to."
                )

    def memory_of(self, rows: int) -> int:
        """Bytes that reading windows of this many rows keeps in memory, besides the windows."""
        return self._pixels.memory_of(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


def open_raster(source: str | os.PathLike[str], how: ReadOptions | None = None) -> Raster:
    """Open a raster for reading. Raises SourceError, UsageError."""
    how = how or ReadOptions()
    name = os.fspath(source)
    driver = check_file(name, how)
    options = GDAL_SETTINGS | (UNTRUSTED_SETTINGS if how.untrusted else {})
    stack = ExitStack()
    try:
        stack.enter_context(bounded_cache())
        stack.enter_context(rasterio.Env())
        with settings(options), read_errors(name):
            dataset = stack.enter_context(opened(name, driver=driver))
            check_dataset(name, dataset, how)
            if others := dataset.subdatasets[1:]:  # pages of a TIFF
                named = ", ".join(others[:8]) + f" and {len(others) - 8} more" * (len(others) > 8)
                logger.warning(
                    "%s contains more rasters; only the first is read. The others are: %s.",
                    *(name, named),
                )
            names = names_read(dataset)
            files = tuple(path for path in map(file_behind, names) if path is not None)
            pixels = pixel_reader(name, dataset, how, files)
            stack.callback(pixels.close)
            facts = _facts(name, dataset, pixels, names, how)
            watched = {path: _stamp(path) for path in files}
    except BaseException:
        stack.close()
        raise
    return Raster(facts, pixels, watched, stack, options)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def _facts(
    name: str, dataset: Any, pixels: PixelReader, names: tuple[str, ...], how: ReadOptions
) -> RasterFacts:
    order = list(range(dataset.count))
    colours = tuple(
        "undefined"
        if colour.name == "alpha" and is_called_data(dataset, place, how)
        else colour.name
        for place, colour in enumerate(dataset.colorinterp)
    )
    count, alpha, band_nodata = pixels.count, pixels.alpha, _band_nodata(dataset, pixels)
    if pixels.lookup is not None:
        colours = ("gray",) if count == 1 else ("red", "green", "blue", "alpha")[:count]
        order, alpha, band_nodata = [0] * count, 3 if count == 4 else None, (None,) * count
    missing, nodata = _missing(dataset, pixels, band_nodata)
    height, width = pixels.size
    gcps, gcps_crs = dataset.gcps
    if gcps and not dataset.transform.is_identity:
        logger.warning(
            "%s has ground control points and a transform; files hold only one of them, and the "
            "transform is kept.",
            name,
        )
        gcps = []
    rpcs = dataset.tags(ns="RPC")
    if rpcs and (lacking := lacking_rpcs(rpcs)):
        logger.warning(
            "%s has RPCs without %s: they are incomplete and left out.", name, ", ".join(lacking)
        )
        rpcs = {}
    # GDAL only uses GCPs and RPCs without a transform; an identity counts as none, even with a CRS.
    placed_otherwise = (
        gcps or (rpcs and dataset.transform == Affine.identity()) or not is_georeferenced(dataset)
    )
    return RasterFacts(
        name=name,
        driver=dataset.driver,
        grid=Grid(width, height, None if placed_otherwise else dataset.transform, dataset.crs),
        dtype=dataset.dtypes[0] if pixels.lookup is None else str(pixels.lookup.dtype),
        largest=_largest(dataset) if pixels.lookup is None else None,
        nodata=nodata,
        nodata_given=pixels.nodata is not None,
        band_nodata=band_nodata,
        missing=missing,
        missing_from=pixels.missing,
        alpha=alpha,
        numbers=tuple(range(1, count + 1)),
        colorinterp=colours,
        descriptions=_each(dataset.descriptions, order),
        scales=_each(dataset.scales, order),
        offsets=_each(dataset.offsets, order),
        units=tuple(unit or None for unit in _each(dataset.units, order)),
        tags=_tags(dataset),
        band_tags=tuple(_tags(dataset, place + 1) for place in order)
        if count == dataset.count
        else ({},) * count,
        gcps=(tuple(gcps), gcps_crs) if gcps else None,
        rpcs=rpcs or None,
        read_from=names,
        block=dataset.block_shapes[0],
    )


def _each(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[place] for place in order)


def _missing(
    dataset: Any, pixels: PixelReader, band_nodata: tuple[float | None, ...]
) -> tuple[str, float | None]:
    """How a result marks missing pixels, and the nodata of all bands, if declared or given."""
    if pixels.lookup is not None:
        return ("alpha" if pixels.count == 4 else "mask" if pixels.missing else ""), None
    of_bands = [nodata for place, nodata in enumerate(band_nodata) if place != pixels.alpha]
    # NaN only equals itself as text.
    one = of_bands[0] if len(set(map(str, of_bands))) == 1 else None
    if pixels.missing != "bands":
        return pixels.missing, one if pixels.nodata is not None else None
    if one is not None:
        return "nodata", one
    if dataset.nodata is not None and not _is_within(dataset.dtypes[0], dataset.nodata):
        return "", None
    return "mask", None  # bands differ in nodata, or GDAL rounds it


def _largest(dataset: Any) -> float | None:
    """The largest value of unsigned integers that have fewer bits than their type (NBITS)."""
    dtype = np.dtype(dataset.dtypes[0])
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "")
    if dtype.kind != "u" or not bits.isdecimal() or not 1 <= int(bits) < 8 * dtype.itemsize:
        return None
    return float((1 << int(bits)) - 1)


def _band_nodata(dataset: Any, pixels: PixelReader) -> tuple[float | None, ...]:
    """The nodata of each band: from the options, or as declared where it marks missing pixels."""
    if pixels.nodata is not None:
        given = dict(zip(pixels.colours, pixels.nodata, strict=True))
        return tuple(given.get(band) for band in pixels.bands)
    declared = zip(dataset.nodatavals, dataset.mask_flag_enums, strict=True)
    numbers = (nodata if MaskFlags.nodata in flags else None for nodata, flags in declared)
    dtype = dataset.dtypes[0]
    return tuple(
        number
        if number is not None
        and _is_within(dtype, number)
        and (np.dtype(dtype).kind == "f" or float(number).is_integer())
        else None
        for number in numbers
    )


def _is_within(dtype: str, nodata: float) -> bool:
    """Whether the type can hold the value, rounded: some unsigned files declare -9999."""
    low, high = type_range(dtype)
    return np.dtype(dtype).kind == "f" or low <= nodata <= high


def _tags(dataset: Any, band: int = 0) -> dict[str, dict[str, str]]:
    """Tags of a dataset or of a band (namespace -> tags) that also apply to a result."""
    spaces = {"": dataset.tags(band)} | {
        space: dataset.tags(band, ns=space)
        for space in dataset.tag_namespaces(band)
        if space not in DROPPED_NAMESPACES and not space.startswith(DROPPED_TEXTS)
    }
    if "ENVI" in spaces:
        spaces["ENVI"] = {
            name: text for name, text in spaces["ENVI"].items() if _holds_of_a_result(name, text)
        }
    return {space: kept for space, tags in spaces.items() if (kept := _kept(tags))}


def _holds_of_a_result(name: str, text: str) -> bool:
    """Whether an ENVI header entry is neither about grid and storage nor about each band."""
    return name not in DROPPED_OF_ENVI and (name == "description" or not text.startswith("{"))


def _kept(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without statistics, storage details and what a camera recorded."""
    return {name: value for name, value in tags.items() if not name.startswith(DROPPED_TAGS)}
