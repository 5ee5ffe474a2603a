"""Raster: a file as the scene room sees it. Its grid, bands, tags, and any window of it as numbers and a valid mask.

Everything that GDAL, rasterio or Pillow may raise is caught here and becomes one line. Which pixels are missing is said
by GDAL's dataset mask alone: a mask band, else alpha, else nodata in all bands. What a file stores by rows (strips,
PNG, JPEG) is decoded once, whatever windows are read, as long as they come row by row.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import MaskFlags

from repmamba.errors import CorruptSource, OutOfMemory, RepmambaError, SourceError, UsageError
from repmamba.pixels.radiometry import DTYPES, type_range
from repmamba.scene.grid import Grid
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

Pixels = tuple[NDArray[Any], NDArray[np.bool_]]  # raw (bands, h, w) in the source's type; valid (h, w)

GDAL_SETTINGS = {
    "GDAL_CACHEMAX": 64,  # MB; more was not faster, and memory grows by 1.8 times of it
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # the fast way reads a truncated PNG without a word
}
STRANGERS_SETTINGS = {  # a side-car file of a stranger may name any file of this machine, or another one's address
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}
STRANGERS_DRIVERS = {  # first bytes -> the only driver that is tried
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
PICTURES = ("JPEG", "PNG", "WEBP", "GTiff")  # formats whose files may ask to be turned before they are shown
TURNS: Mapping[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # EXIF orientation -> how to turn (..., h, w) upright
    1: lambda stored: stored,
    2: lambda stored: stored[..., ::-1],
    3: lambda stored: stored[..., ::-1, ::-1],
    4: lambda stored: stored[..., ::-1, :],
    5: lambda stored: stored.swapaxes(-1, -2),
    6: lambda stored: stored.swapaxes(-1, -2)[..., ::-1],
    7: lambda stored: stored.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda stored: stored.swapaxes(-1, -2)[..., ::-1, :],
}
DROPPED_TAGS = ("STATISTICS_", "OVR_", "EXIF_", "NODATA_VALUES", "INTERLEAVE", "COMPRESSION")
DROPPED_NAMESPACES = ("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "RPC", "COLOR_PROFILE", "EXIF")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may declare before memory is taken for it."""

    pixels: int = 1 << 36
    bands: int = 1000
    block_bytes: int = 1 << 32
    pixels_per_byte: float = float("inf")  # of the file

    @classmethod
    def for_strangers(cls) -> Limits:
        """For files whose maker is not the one who runs this."""
        return cls(pixels=1 << 28, bands=200, block_bytes=64 << 20, pixels_per_byte=4000)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source is read."""

    untrusted: bool = False
    max_pixels: int | None = None
    fill_corrupt: bool = False  # blocks that cannot be read are missing pixels, and counted
    expand_palette: bool = False  # colours in place of classes

    @property
    def limits(self) -> Limits:
        """What is allowed, --max-pixels included."""
        usual = Limits.for_strangers() if self.untrusted else Limits()
        if self.max_pixels is None:
            return usual
        return Limits(self.max_pixels, usual.bands, usual.block_bytes)


@dataclass(frozen=True, slots=True)
class RasterFacts:
    """What a raster says of itself; per-band fields have one entry a band, in the order of `read`."""

    name: str  # as the user named it
    driver: str
    grid: Grid
    dtype: str
    nodata: float | None  # where it alone tells what is missing
    missing: str  # how missing pixels are told: "alpha" (the last band), "mask", "nodata", or "" for not at all
    numbers: tuple[int, ...]  # of the bands in the file, from 1
    colorinterp: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str | None, ...]
    tags: Mapping[str, Mapping[str, str]]  # namespace -> tags
    band_tags: tuple[Mapping[str, str], ...]
    gcps: tuple[tuple[GroundControlPoint, ...], CRS | None] | None
    rpcs: Mapping[str, str] | None
    files: tuple[Path, ...]  # that it is read from, where they are files of this machine
    block: tuple[int, int]  # rows and columns that are decoded together

    @property
    def count(self) -> int:
        """Bands, alpha included."""
        return len(self.colorinterp)

    @property
    def colours(self) -> int:
        """Bands without alpha."""
        return self.count - (self.missing == "alpha")

    @property
    def has_place(self) -> bool:
        """Whether it lies somewhere on the ground, as opposed to a picture."""
        return self.grid.crs is not None or self.grid.transform is not None or bool(self.gcps) or bool(self.rpcs)


@contextmanager
def reading(name: str, window: Window | None = None) -> Iterator[None]:
    """Turn what GDAL, rasterio and Pillow raise while a file is read into one line that names it, and the window."""
    try:
        yield
    except RepmambaError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"{name} does not fit into memory while it is read; use a smaller --tile.") from error
    except (rasterio.errors.RasterioError, CPLE_BaseError, OSError, SystemError, SyntaxError, ValueError) as error:
        reason = _reason(error)
        if window is None:
            raise SourceError(f"{name} cannot be read: {reason}") from error
        raise CorruptSource(
            f"{name} is corrupt or truncated: its columns {window.col} to {window.col + window.width - 1}, rows "
            f"{window.row} to {window.row + window.height - 1} cannot be read ({reason}). Get it again, or take what "
            "cannot be read as missing with --on-corrupt fill."
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost message, on one line: rasterio's own says only that there is another."""
    inner = error.__cause__ or error.__context__
    text = str(getattr(inner, "errmsg", None) or (inner if inner is not None else error)) or type(error).__name__
    return " ".join(text.split())


class Raster:
    """An open source. Made by `open_raster`; closed by its `with`. Any thread may read, one at a time."""

    def __init__(self, facts: RasterFacts, pixels: _Stored, watched: Mapping[Path, tuple[int, int]], stack: ExitStack):
        self.facts = facts
        self._pixels = pixels
        self._watched = watched
        self._stack = stack
        self._lock = threading.Lock()

    @property
    def grid(self) -> Grid:
        """Size and place."""
        return self.facts.grid

    @property
    def whole(self) -> Window:
        """All of it."""
        return Window(0, 0, self.grid.height, self.grid.width)

    @property
    def corrupt_pixels(self) -> int:
        """Pixels that could not be read so far and are taken as missing."""
        return self._pixels.corrupt_pixels

    def read(self, window: Window) -> Pixels:
        """raw (bands, h, w) in the source's type, and valid (h, w), False where a pixel is missing.

        Raises CorruptSource that names the window, and SourceError where the file changed since it was opened.
        """
        with self._lock, reading(self.facts.name, window):
            pixels = self._pixels.read(window)
            self.check_unchanged()
        return pixels

    def strips(self) -> Iterator[Window]:
        """Windows that cover it, in the order and of the shape in which it is cheapest to read."""
        height, width = max(256, self.facts.block[0]), self.grid.width if self._pixels.by_rows else 1024
        for row in range(0, self.grid.height, height):
            for col in range(0, self.grid.width, width):
                yield Window(row, col, height, width).clipped(self.whole)

    def check_unchanged(self) -> None:
        """Raise SourceError if a file it is read from is another one than at the start."""
        for path, before in self._watched.items():
            if _stamp(path) != before:
                raise SourceError(f"{path} changed while it was read: run again when nobody writes to it.")

    def memory_of(self, rows: int) -> int:
        """Bytes that reading windows of so many rows keeps in memory, beside the windows themselves."""
        return self._pixels.memory_of(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def open_raster(source: str | os.PathLike[str], how: Reading = Reading()) -> Raster:
    """Open a raster for reading. Raises SourceError, UsageError; one line that says what to do."""
    name = os.fspath(source)
    driver = _check_file(name, how)
    settings = GDAL_SETTINGS | (STRANGERS_SETTINGS if how.untrusted else {})
    stack = ExitStack()
    try:
        with reading(name), warnings.catch_warnings():
            # A picture has no place, and that is no reason to warn.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            stack.enter_context(rasterio.Env(**settings))
            dataset = stack.enter_context(rasterio.open(name, driver=driver, sharing=False))
            _check_dataset(name, dataset, how)
            files = tuple(path for path in map(Path, dataset.files) if path.is_file())
            pixels = _stored(name, dataset, how, files)
            facts = _facts(name, dataset, pixels, files)
            watched = {path: _stamp(path) for path in files}
    except BaseException:
        stack.close()
        raise
    return Raster(facts, pixels, watched, stack)


def _check_file(name: str, how: Reading) -> str | None:
    """Look at the file before GDAL does; the driver to open it with, None for whichever takes it."""
    path = Path(name)
    named_elsewhere = "://" in name or name.startswith("/vsi") or (":" in name and not path.exists())
    if named_elsewhere and not how.untrusted:
        return None
    if not path.exists():
        raise SourceError(f"{name} does not exist: check the path.")
    if path.is_dir() and (how.untrusted or path.suffix.upper() not in (".SAFE", ".ZARR", ".GDB")):
        raise SourceError(f"{name} is a folder: name the files in it.")
    if path.is_dir():
        return None
    if not path.is_file():
        raise SourceError(f"{name} is no regular file: name one that is.")
    if path.stat().st_size == 0:
        raise SourceError(f"{name} is empty: it has 0 bytes.")
    if not how.untrusted:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}.") from error
    for magic, driver in STRANGERS_DRIVERS.items():
        if head.startswith(magic):
            return driver
    raise SourceError(f"{name} is none of the formats taken from strangers: GeoTIFF, JPEG 2000, PNG, JPEG.")


def _check_dataset(name: str, dataset: Any, how: Reading) -> None:
    """Refuse what cannot be enlarged, and what declares more than is allowed, before a pixel is decoded."""
    if dataset.count == 0:
        parts = dataset.subdatasets
        if parts and not how.untrusted:
            raise UsageError(f"{name} holds several rasters; name one of them: {', '.join(parts)}")
        raise SourceError(f"{name} holds no bands.")
    types = sorted(set(dataset.dtypes))
    if len(types) > 1:
        raise SourceError(f"{name} has bands of several types ({', '.join(types)}); give them one type first.")
    if types[0] not in DTYPES:
        raise SourceError(f"{name} has pixels of type {types[0]}; these can be enlarged: {', '.join(DTYPES)}.")
    limits = how.limits
    pixels = dataset.width * dataset.height
    if pixels > limits.pixels:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels, and {limits.pixels} are allowed; "
            "raise --max-pixels if that is meant."
        )
    if dataset.count > limits.bands:
        raise SourceError(f"{name} declares {dataset.count} bands, and {limits.bands} are allowed.")
    rows, cols = dataset.block_shapes[0]
    block_bytes = rows * cols * np.dtype(types[0]).itemsize * (dataset.count if _is_interleaved(dataset) else 1)
    if block_bytes > limits.block_bytes:
        raise SourceError(f"{name} has blocks of {cols} x {rows} pixels, more than may be decoded at once.")
    path = Path(name)
    if path.is_file() and pixels > limits.pixels_per_byte * path.stat().st_size:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels in {path.stat().st_size} bytes, which no image "
            "needs so few for; raise --max-pixels if that is meant."
        )


def _is_interleaved(dataset: Any) -> bool:
    return bool(dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class _Stored:
    """The pixels of a dataset, as they shall be seen: turned upright, colours in place of a palette, alpha last."""

    name: str
    dataset: Any
    by_rows: bool
    fill_corrupt: bool
    bands: tuple[int, ...]  # of the file, from 1, in the order in which they are given out
    lookup: NDArray[Any] | None = None  # (index) -> (bands,), for palettes
    turned: Pixels | None = None  # the whole picture, where it had to be turned
    corrupt_pixels: int = 0
    _first: int = 0  # row at which the buffer begins
    _buffer: Pixels | None = field(default=None, repr=False)

    def read(self, window: Window) -> Pixels:
        if self.turned is not None:
            raw, valid = self.turned
            return raw[:, *window.slices], valid[window.slices]
        if not self.by_rows:
            return self._seen(self._decoded(window))
        raw, valid = self._rows(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        return self._seen((raw[..., cols], valid[..., cols]))

    def whole(self) -> Pixels:
        return self._decoded(Window(0, 0, self.dataset.height, self.dataset.width))

    def memory_of(self, rows: int) -> int:
        if self.turned is not None:
            return sum(part.nbytes for part in self.turned)
        row: int = self.dataset.width * (np.dtype(self.dataset.dtypes[0]).itemsize * len(self.bands) + 1)
        return row * (rows + self.dataset.block_shapes[0][0]) if self.by_rows else 0

    def _rows(self, first: int, end: int) -> Pixels:
        """Whole rows, of which those of the last call are still there: windows come row by row, and overlap."""
        kept = self._buffer
        if kept is None or not self._first <= first <= self._first + kept[0].shape[1]:
            kept = None
            self._first = first
        have = self._first + (kept[0].shape[1] if kept else 0)
        if end > have:
            # To the end of the block that holds the last row: it is decoded anyway.
            block = self.dataset.block_shapes[0][0]
            until = min(self.dataset.height, -(-end // block) * block) if block < self.dataset.height else end
            more = self._decoded(Window(have, 0, until - have, self.dataset.width))
            if kept is not None:
                more = (
                    np.concatenate([kept[0][:, first - self._first :], more[0]], axis=1),
                    np.concatenate([kept[1][first - self._first :], more[1]], axis=0),
                )
                self._first = first
            kept = more
        assert kept is not None
        self._buffer = kept
        rows = slice(first - self._first, end - self._first)
        return kept[0][:, rows], kept[1][rows]

    def _decoded(self, window: Window) -> Pixels:
        try:
            with reading(self.name, window):
                return self._from_file(window)
        except CorruptSource:
            if not self.fill_corrupt:
                raise
        return self._block_by_block(window)

    def _from_file(self, window: Window) -> Pixels:
        rows, cols = window.slices
        place = ((rows.start, rows.stop), (cols.start, cols.stop))
        raw = self.dataset.read(list(self.bands), window=place)
        return raw, self.dataset.dataset_mask(window=place) != 0

    def _block_by_block(self, window: Window) -> Pixels:
        """A window of which something cannot be read: what can, and the rest missing."""
        raw = np.zeros((len(self.bands), window.height, window.width), self.dataset.dtypes[0])
        valid = np.zeros((window.height, window.width), bool)
        height, width = self.dataset.block_shapes[0]
        for row in range(window.row // height * height, window.row + window.height, height):
            for col in range(window.col // width * width, window.col + window.width, width):
                part = Window(row, col, height, width).clipped(window)
                place = part.seen_from(window).slices
                try:
                    with reading(self.name, part):
                        raw[:, *place], valid[place] = self._from_file(part)
                except CorruptSource as damage:
                    logger.warning("%s Taken as missing.", damage)
                    self.corrupt_pixels += part.height * part.width
        return raw, valid

    def _seen(self, stored: Pixels) -> Pixels:
        raw, valid = stored
        if self.lookup is None:
            return raw, valid
        colours = np.moveaxis(self.lookup[raw[0]], -1, 0)
        return colours, valid


def _stored(name: str, dataset: Any, how: Reading, files: Sequence[Path]) -> _Stored:
    alpha = [band for band, colour in enumerate(dataset.colorinterp, 1) if colour.name == "alpha"]
    colours = [band for band in range(1, dataset.count + 1) if band not in alpha[:1]]
    stored = _Stored(
        name=name,
        dataset=dataset,
        by_rows=dataset.block_shapes[0][1] >= dataset.width,
        fill_corrupt=how.fill_corrupt,
        bands=(*colours, *alpha[:1]),
        lookup=_palette(name, dataset, how),
    )
    turn = _orientation(dataset, files)
    if turn != 1:
        raw, valid = stored._seen(stored.whole())
        stored.turned = (np.ascontiguousarray(TURNS[turn](raw)), np.ascontiguousarray(TURNS[turn](valid)))
    return stored


def _palette(name: str, dataset: Any, how: Reading) -> NDArray[Any] | None:
    """The colours of a palette, (entries, 3) or (entries, 4); None where there is no palette. Refuses classes."""
    if dataset.colorinterp[0].name != "palette" or dataset.count != 1:
        return None
    if not how.expand_palette and _is_classes(dataset):
        raise UsageError(
            f"{name} has a palette, and its values look like classes, which cannot be enlarged as imagery. "
            "If its colours are a picture, enlarge those with --expand-palette."
        )
    entries = dataset.colormap(1)
    size = 1 << (8 * np.dtype(dataset.dtypes[0]).itemsize)
    colours = np.zeros((size, 4), np.uint8)
    for index, colour in entries.items():
        colours[index] = colour
    used = colours[list(entries)]
    return colours if (used[:, 3] != 255).any() else colours[:, :3]


def _is_classes(dataset: Any) -> bool:
    """A palette with a place on a map is a legend; one without is a way to store a picture."""
    return dataset.crs is not None or not dataset.transform.is_identity


def _orientation(dataset: Any, files: Sequence[Path]) -> int:
    """How a picture asks to be turned, 1 to 8 as in EXIF; 1 for whatever has a place on a map."""
    if dataset.driver not in PICTURES or not files or dataset.crs is not None or not dataset.transform.is_identity:
        return 1
    if dataset.gcps[0] or dataset.tags(ns="RPC"):
        return 1
    asked = dataset.tags().get("EXIF_Orientation")
    if asked is None and dataset.driver != "JPEG":  # GDAL tells of it for JPEG alone
        asked = _orientation_by_pillow(files[0])
    return int(asked) if str(asked).isdigit() and 1 <= int(asked) <= 8 else 1


def _orientation_by_pillow(path: Path) -> str | None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only the header is read
            with Image.open(path) as image:
                return str(image.getexif().get(0x0112))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _facts(name: str, dataset: Any, pixels: _Stored, files: tuple[Path, ...]) -> RasterFacts:
    order = [band - 1 for band in pixels.bands]
    colours = tuple(dataset.colorinterp[place].name for place in order)
    count = len(order)
    if pixels.lookup is not None:
        colours = ("red", "green", "blue", "alpha")[: pixels.lookup.shape[1]]
        count, order = len(colours), [0] * len(colours)
    missing, nodata = _missing(dataset, pixels)
    if missing == "alpha" and colours[-1] != "alpha":  # colours of a palette of which one means "nothing here"
        missing = "mask"
    height, width = (dataset.height, dataset.width)
    if pixels.turned is not None:
        height, width = pixels.turned[1].shape
    transform = None if dataset.transform.is_identity else dataset.transform
    gcps, gcps_crs = dataset.gcps
    rpcs = dataset.tags(ns="RPC")
    return RasterFacts(
        name=name,
        driver=dataset.driver,
        grid=Grid(width, height, transform, dataset.crs),
        dtype="uint8" if pixels.lookup is not None else dataset.dtypes[0],
        nodata=nodata,
        missing=missing,
        numbers=pixels.bands if pixels.lookup is None else tuple(range(1, count + 1)),
        colorinterp=colours,
        descriptions=_each(dataset.descriptions, order),
        scales=_each(dataset.scales, order),
        offsets=_each(dataset.offsets, order),
        units=tuple(unit or None for unit in _each(dataset.units, order)),
        tags=_tags(dataset),
        band_tags=tuple(_kept(dataset.tags(place + 1)) for place in order) if count == dataset.count else ({},) * count,
        gcps=(tuple(gcps), gcps_crs) if gcps else None,
        rpcs=rpcs or None,
        files=files,
        block=dataset.block_shapes[0],
    )


def _each(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[place] for place in order)


def _missing(dataset: Any, pixels: _Stored) -> tuple[str, float | None]:
    """How the file tells of missing pixels, by GDAL's order: a mask, else alpha, else one nodata for all bands."""
    flags = dataset.mask_flag_enums[0]
    if pixels.lookup is not None:
        tells = MaskFlags.all_valid not in flags
        if pixels.lookup.shape[1] == 4:
            return "alpha", None
        return ("mask" if tells else ""), None
    if MaskFlags.alpha in flags:
        return "alpha", None
    if MaskFlags.per_dataset in flags:
        return "mask", dataset.nodata if MaskFlags.nodata not in flags else None
    if MaskFlags.nodata not in flags or not _is_number_of(dataset.dtypes[0], dataset.nodata):
        return "", None
    one_for_all = len(set(map(str, dataset.nodatavals))) == 1
    return ("nodata", dataset.nodata) if one_for_all else ("mask", None)


def _is_number_of(dtype: str, nodata: float) -> bool:
    """Whether a pixel can have this value at all: some files declare -9999 for unsigned ones."""
    if np.dtype(dtype).kind == "f":
        return True
    low, high = type_range(dtype)
    return float(nodata).is_integer() and low <= nodata <= high


def _tags(dataset: Any) -> dict[str, dict[str, str]]:
    spaces = {"": dataset.tags()} | {
        space: dataset.tags(ns=space)
        for space in dataset.tag_namespaces()
        if space not in DROPPED_NAMESPACES and not space.startswith("xml:")
    }
    return {space: kept for space, tags in spaces.items() if (kept := _kept(tags))}


def _kept(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without statistics of pixels that are no more, ways of storing, and what a camera noted of its owner."""
    return {name: value for name, value in tags.items() if not name.startswith(DROPPED_TAGS)}
