"""The pixels of a file as viewers show them: upright, palettes as colours, grey from 0 to 255.

Files stored by rows (strips, PNG, JPEG) are decoded once if windows are read row by row, because
the rows of the last window are kept. `read_errors` turns errors of GDAL, rasterio and Pillow into
one line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags

from repmamba.errors import CorruptSource, OutOfMemory, RepmambaError, SourceError, UsageError
from repmamba.gdal import CACHE_BYTES
from repmamba.pixels.nodata import as_nodata, missing_everywhere
from repmamba.scene.source.admission import ReadOptions, block_bytes
from repmamba.scene.source.exif import UprightPicture, turned_upright, upright_size
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

# raw (bands, h, w) in the source's type; valid (h, w)
Pixels = tuple[NDArray[Any], NDArray[np.bool_]]

MAY_BE_ROTATED = ("JPEG", "PNG", "WEBP", "GTiff")  # formats that may have an EXIF orientation
ROTATED_ROWS = 128  # rows of the file that are decoded and rotated at once
_PAGE = re.compile(r"GTIFF_DIR:(\d+):", re.IGNORECASE)  # a page of a TIFF, from 1, as GDAL names it


@contextmanager
def read_errors(name: str, window: Window | None = None) -> Iterator[None]:
    """Turn errors of GDAL, rasterio and Pillow into one line that names file and window."""
    try:
        yield
    except RepmambaError:
        raise
    except MemoryError as error:
        raise OutOfMemory(
            f"{name} does not fit into memory while it is read: use a smaller tile=."
        ) from error
    except (
        rasterio.errors.RasterioError,
        CPLE_BaseError,
        OSError,
        SystemError,
        SyntaxError,
        ValueError,
    ) as error:
        reason = _reason(error)
        if window is None:
            raise SourceError(f"{name} cannot be read: {reason}") from error
        raise CorruptSource(
            f"{name} is corrupt or truncated: its columns {window.col} to {window.right - 1}, rows "
            f"{window.row} to {window.bottom - 1} cannot be read ({reason}). Get it again, or "
            "treat unreadable blocks as missing with on_corrupt='fill'."
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost message on one line; that of rasterio only refers to it."""
    inner = error.__cause__ or error.__context__
    text = getattr(inner, "errmsg", None) or (error if inner is None else inner)
    return " ".join(str(text).split()) or type(error).__name__


@dataclass(slots=True)
class PixelReader:
    """The pixels of a dataset, read by one thread at a time."""

    name: str
    dataset: Any
    by_rows: bool
    fill_corrupt: bool
    # what marks missing pixels: "mask", "alpha", "bands" (usually nodata), or "" for nothing
    missing: str
    alpha: int | None = None  # index of the alpha band, from 0
    # of each band but alpha, if the options give it; None for each if they say that there is none
    nodata: tuple[float | None, ...] | None = None
    # (number) -> (bands,), for palettes and grey that is not shown as stored
    lookup: NDArray[Any] | None = None
    turn: int = 1  # EXIF orientation
    corrupt_blocks: set[Window] = field(default_factory=set)  # found so far
    _first: int = 0  # first row of the buffer
    _buffer: Pixels | None = field(default=None, repr=False)
    _upright: UprightPicture | None = field(default=None, repr=False)

    @property
    def bands(self) -> tuple[int, ...]:
        """All bands of the file, from 1."""
        return tuple(range(1, self.dataset.count + 1))

    @property
    def colours(self) -> tuple[int, ...]:
        """The bands that are not alpha."""
        return tuple(band for band in self.bands if band - 1 != self.alpha)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns as returned by `read`."""
        return upright_size(self.dataset.height, self.dataset.width, self.turn)

    @property
    def count(self) -> int:
        """Bands as returned by `read`."""
        return int(self.dataset.count) - 1 + (1 if self.lookup is None else self.lookup.shape[1])

    def read(self, window: Window) -> Pixels:
        """raw (bands, h, w) and valid (h, w) of a window."""
        if self.turn != 1:
            if self._upright is None:
                size = self.dataset.height, self.dataset.width
                self._upright = turned_upright(self.name, self._strips(), size, self.turn)
            return self._upright.read(window)
        if not self.by_rows:
            return self.shown(self._decoded(window))
        raw, valid = self._rows(window.row, window.bottom)
        cols = slice(window.col, window.right)
        return self.shown((raw[..., cols], valid[..., cols]))

    def is_unwritten(self, window: Window) -> bool:
        """Whether a TIFF has no bytes for any block of a window, and no mask for it."""
        if self.dataset.driver != "GTiff" or self.missing == "mask" or self.turn != 1:
            return False
        height, width = self.dataset.block_shapes[0]
        rows = range(window.row // height, -(-window.bottom // height))
        cols = range(window.col // width, -(-window.right // width))
        names = (f"BLOCK_OFFSET_{col}_{row}" for row in rows for col in cols)
        return all(
            self.dataset.get_tag_item(name, "TIFF", bidx=band) is None
            for name in names
            for band in self.bands
        )

    def close(self) -> None:
        """Free what reading allocated besides the dataset."""
        if self._upright is not None:
            self._upright.close()

    def _strips(self) -> Iterator[Pixels]:
        """All pixels in strips of rows, as the file stores them."""
        height, width = self.dataset.height, self.dataset.width
        block = self.dataset.block_shapes[0][0]
        rows = -(-ROTATED_ROWS // block) * block
        for row in range(0, height, rows):
            yield self.shown(self._decoded(Window(row, 0, min(rows, height - row), width)))

    def memory_of(self, rows: int) -> int:
        """Bytes kept in memory while windows of this many rows are read."""
        row: int = self.dataset.width * (
            np.dtype(self.dataset.dtypes[0]).itemsize * self.dataset.count + 1
        )
        block: int = self.dataset.block_shapes[0][0]
        decoded = block_bytes(self.dataset)
        # A block larger than the cache is decoded outside it, from up to as many compressed bytes.
        large = 2 * decoded if decoded > CACHE_BYTES else 0
        if self.turn != 1:
            # a strip, the same one rotated, and the next one
            return large + 3 * row * -(-ROTATED_ROWS // block) * block
        return large + (row * (rows + block) if self.by_rows else 0)

    def _rows(self, first: int, end: int) -> Pixels:
        """Whole rows. Those of the last call are kept, since windows overlap from row to row."""
        kept = self._buffer
        if kept is None or not self._first <= first <= self._first + kept[0].shape[1]:
            kept = None
            self._first = first
        have = self._first + (kept[0].shape[1] if kept else 0)
        if end > have:
            # Up to the end of the last row's block, which is decoded anyway.
            block = self.dataset.block_shapes[0][0]
            whole = min(self.dataset.height, -(-end // block) * block)
            until = whole if block < self.dataset.height else end
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
            with read_errors(self.name, window):
                return self._from_file(window)
        except CorruptSource:
            if not self.fill_corrupt:
                raise
        return self._block_by_block(window)

    def _from_file(self, window: Window) -> Pixels:
        rows, cols = window.slices
        place = ((rows.start, rows.stop), (cols.start, cols.stop))
        raw = self.dataset.read(window=place)
        return raw, self._valid(raw, place)

    def _valid(
        self, raw: NDArray[Any], place: tuple[tuple[int, int], tuple[int, int]]
    ) -> NDArray[np.bool_]:
        valid = np.ones(raw.shape[1:], bool)
        colours = [band - 1 for band in self.colours]
        if self.missing == "alpha":
            valid = raw[self.alpha] != 0
        elif self.missing == "mask":
            valid = self.dataset.read_masks(self.colours[0], window=place) != 0
        elif self.missing == "bands" and (self.nodata is None or None in self.nodata):
            # Not dataset_mask: with four bands it uses the nodata of the last one for all.
            valid = self.dataset.read_masks(list(self.colours), window=place).any(axis=0)
        if self.nodata is not None:
            valid = valid & ~missing_everywhere(raw[colours], self.nodata)
        return valid

    def _block_by_block(self, window: Window) -> Pixels:
        """A window with unreadable blocks: these are missing, the others are read."""
        raw = np.zeros((self.dataset.count, window.height, window.width), self.dataset.dtypes[0])
        valid = np.zeros((window.height, window.width), bool)
        height, width = self.dataset.block_shapes[0]
        for row in range(window.row // height * height, window.bottom, height):
            for col in range(window.col // width * width, window.right, width):
                block = Window(row, col, height, width)
                part = block.clipped(window)
                place = part.seen_from(window).slices
                try:
                    with read_errors(self.name, part):
                        raw[:, *place], valid[place] = self._from_file(part)
                except CorruptSource as damage:
                    self._note(
                        block.clipped(Window(0, 0, self.dataset.height, self.dataset.width)), damage
                    )
        return raw, valid

    def _note(self, block: Window, damage: CorruptSource) -> None:
        # Every tile and halo that contains the block meets it again.
        if block not in self.corrupt_blocks:
            logger.warning("%s Treated as missing.", damage)
            self.corrupt_blocks.add(block)

    def shown(self, stored: Pixels) -> Pixels:
        """Stored pixels with colours in place of palette numbers, and grey as viewers show it."""
        raw, valid = stored
        if self.lookup is None:
            return raw, valid
        colours = np.moveaxis(self.lookup[raw[0]], -1, 0)
        if len(raw) > 1:  # alpha beside the palette
            colours = np.concatenate([colours, raw[1:]])
        if len(colours) == 4:
            # Unreadable pixels are 0, and the colour of 0 may be opaque.
            valid = valid & (colours[3] != 0)
            colours[3][~valid] = 0
        return colours, valid


def pixel_reader(name: str, dataset: Any, how: ReadOptions, files: Sequence[Path]) -> PixelReader:
    """The reader of an open dataset. Raises UsageError for a palette of classes."""
    alpha = _alpha(dataset, how)
    grey = _grey_as_shown(dataset)
    return PixelReader(
        name=name,
        dataset=dataset,
        by_rows=dataset.block_shapes[0][1] >= dataset.width,
        fill_corrupt=how.fill_corrupt,
        missing=_marks_of_missing(dataset, alpha, how.nodata),
        alpha=alpha,
        nodata=_given_nodata(name, dataset, alpha, how),
        lookup=_palette(name, dataset, how) if grey is None else grey,
        turn=_orientation(dataset, files),
    )


def is_called_data(dataset: Any, place: int, how: ReadOptions) -> bool:
    """Whether the options say that a band, from 0, is data even if the file calls it alpha."""
    names = {str(place + 1), (dataset.descriptions[place] or "").strip().lower()}
    return not how.alpha or bool(names & {str(band).strip().lower() for band in how.bands or ()})


def _alpha(dataset: Any, how: ReadOptions) -> int | None:
    """The alpha band, from 0: the first that the file names and the options do not call data."""
    if dataset.count == 1:
        return None
    called = (place for place, colour in enumerate(dataset.colorinterp) if colour.name == "alpha")
    return next((place for place in called if not is_called_data(dataset, place, how)), None)


def _marks_of_missing(
    dataset: Any, alpha: int | None, given: tuple[float, ...] | Literal["none"] | None
) -> str:
    """What marks missing pixels: a dataset mask, else alpha, else nodata or band masks."""
    flags = [each for band, each in enumerate(dataset.mask_flag_enums) if band != alpha]
    if MaskFlags.per_dataset in flags[0] and MaskFlags.alpha not in flags[0]:
        return "mask"
    if alpha is not None:
        return "alpha"
    no_marks = {MaskFlags.all_valid, MaskFlags.alpha}
    if given == "none":
        no_marks.add(MaskFlags.nodata)
    elif given is not None:
        return "bands"
    return "" if any(no_marks & set(each) for each in flags) else "bands"


def _given_nodata(
    name: str, dataset: Any, alpha: int | None, how: ReadOptions
) -> tuple[float | None, ...] | None:
    """The nodata values from the options, for each band but alpha, in the file's type.

    Raises UsageError if their number does not fit.
    """
    if how.nodata is None:
        return None
    count = int(dataset.count) - (alpha is not None)
    if how.nodata == "none":
        return (None,) * count
    if len(how.nodata) not in (1, count):
        raise UsageError(
            f"nodata= has {len(how.nodata)} numbers, and {name} has {count} "
            f"band{'s' * (count > 1)}: give one number, or one per band."
        )
    return tuple(
        as_nodata(number, dataset.dtypes[0]) for number in how.nodata * (count // len(how.nodata))
    )


def _palette(name: str, dataset: Any, how: ReadOptions) -> NDArray[Any] | None:
    """The colours of a palette, (entries, 3) or (entries, 4); None without one.

    Raises UsageError for a palette of classes.
    """
    palettes = [
        band for band, colour in enumerate(dataset.colorinterp, 1) if colour.name == "palette"
    ]
    if not palettes:
        return None
    # Georeferenced palettes are legends; other palettes are a way to store a picture.
    if not how.expand_palette and is_georeferenced(dataset):
        raise UsageError(
            f"{name} has a palette and is georeferenced, so its values are probably classes, which "
            "cannot be upscaled. If the colours are imagery, upscale them with expand_palette=True."
        )
    beside = [colour.name for colour in dataset.colorinterp[1:]]
    has_alpha = beside == ["alpha"] and dataset.dtypes[0] == "uint8"
    if palettes != [1] or (dataset.count != 1 and not has_alpha):
        raise UsageError(
            f"{name} has a palette in band {palettes[0]} besides other bands, and palette numbers "
            "cannot be upscaled. Write the imagery bands to another file: gdal_translate -b."
        )
    dtype = np.dtype(dataset.dtypes[0])
    if dtype not in (np.uint8, np.uint16):
        raise UsageError(
            f"{name} has a palette for {dtype} numbers; only uint8 and uint16 palettes are "
            "supported. Remove it with gdal_translate -colorinterp gray, or convert the numbers "
            "with -ot Byte or -ot UInt16."
        )
    colours = np.zeros((np.iinfo(dtype).max + 1, 4), np.uint8)
    used = [number for number in dataset.colormap(1) if number < len(colours)]
    colours[used] = [dataset.colormap(1)[number] for number in used]
    return colours if (colours[used, 3] != 255).any() and not has_alpha else colours[:, :3]


def _grey_as_shown(dataset: Any) -> NDArray[Any] | None:
    """The grey level that viewers show for each number, (numbers, 1); None if it is the number.

    One, two and four bits are scaled to 255, and MINISWHITE is inverted. Georeferenced files keep
    their numbers, which may be measurements.
    """
    dtype, colour = np.dtype(dataset.dtypes[0]), dataset.colorinterp[0].name
    if (
        dataset.count != 1
        or dtype not in (np.uint8, np.uint16)
        or colour == "palette"
        or is_georeferenced(dataset)
    ):
        return None
    inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
    few = bits in (1, 2, 4)
    if not inverted and not (few and colour == "gray"):
        return None
    largest = (1 << bits) - 1
    numbers = np.minimum(np.arange(np.iinfo(dtype).max + 1), largest)
    shown = (largest - numbers if inverted else numbers) * (255 // largest if few else 1)
    return shown.astype(dtype)[:, None]


def is_georeferenced(dataset: Any) -> bool:
    """Whether a dataset has a CRS or a transform; GDAL reports identity for none."""
    return dataset.crs is not None or dataset.transform != Affine.identity()


def _orientation(dataset: Any, files: Sequence[Path]) -> int:
    """EXIF orientation, 1 to 8; 1 for anything georeferenced."""
    # The name does not say which page.
    by_offset = dataset.name.upper().startswith("GTIFF_DIR:OFF:")
    if dataset.driver not in MAY_BE_ROTATED or not files or by_offset or is_georeferenced(dataset):
        return 1
    if dataset.gcps[0] or dataset.tags(ns="RPC"):
        return 1
    asked = dataset.tags().get("EXIF_Orientation")
    if asked is None and dataset.driver != "JPEG":  # GDAL only reports it for JPEG
        page = _PAGE.match(dataset.name)
        asked = _orientation_by_pillow(
            files[0], dataset.driver, 1 if page is None else int(page[1])
        )
    return int(asked) if str(asked).isdigit() and 1 <= int(asked) <= 8 else 1


def _orientation_by_pillow(path: Path, driver: str, page: int) -> str | None:
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    # Only the header is read, so the size does not matter; Image.open would warn of a large one.
    opener: Any = {"PNG": PngImageFile, "GTiff": TiffImageFile, "WEBP": WebPImageFile}[driver]
    try:
        with opener(path) as image:
            if page > 1:
                image.seek(page - 1)
            # getexif of the PNG class decodes the whole picture first.
            return str(Image.Image.getexif(image).get(0x0112))
    except (OSError, EOFError, SyntaxError, ValueError):
        return None
