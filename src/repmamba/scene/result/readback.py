"""Reads a written raster back, piece by piece, and compares it with what was computed.

On a full disk, GDAL can lose blocks silently, and the file then opens and reads as zeros. So every
pixel of every level is decoded through a new handle and compared by digest, before the result is
moved to the target and again on request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window as GdalWindow

from repmamba.errors import VerificationError
from repmamba.gdal import bounded_cache, opened, settings
from repmamba.scene.result.formats import FORMATS
from repmamba.scene.result.receipt import Level, Piece, Receipt, file_sha256
from repmamba.scene.result.tile_file import packed_rows
from repmamba.tiles.window import Window

GDAL_FAILURES = (RasterioError, CPLE_BaseError, OSError, SystemError)
# Our own side-cars and overviews are read even while an untrusted file is open, for which both are
# disabled.
OWN_FILES = {"GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "GDAL_PAM_ENABLED": "YES"}
READING = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO", **OWN_FILES}
STRIP = 64  # rows read at once from formats that are only read from top to bottom
# largest difference of means, in grey levels, between two decoders of the same JPEG
LOSSY_DRIFT = 1.0

PartProgress = Callable[[float], None]  # the fraction done
# window, rows (h, count, w), mask (h, w)
Inspect = Callable[[Window, NDArray[Any], NDArray[np.bool_] | None], None]


@contextmanager
def open_level(path: Path, level: int = 0) -> Iterator[Any]:
    """A level of a raster through a new handle; level 1 is the first overview."""
    choice = {} if level == 0 else {"overview_level": level - 1}
    with bounded_cache(), settings(READING), opened(path, **choice) as dataset:
        yield dataset


def gdal_window(window: Window) -> GdalWindow:
    """A window as a rasterio Window."""
    return GdalWindow(window.col, window.row, window.width, window.height)


def squares(width: int, height: int, edge: int) -> tuple[Window, ...]:
    """A raster cut into squares, row by row; smaller at the far edges."""
    return tuple(
        Window(row, col, min(edge, height - row), min(edge, width - col))
        for row in range(0, height, edge)
        for col in range(0, width, edge)
    )


class Overlaps:
    """Finds the windows that overlap a window, fast for tens of thousands."""

    def __init__(self, windows: Sequence[Window]) -> None:
        edges = [(window.row, window.col, window.bottom, window.right) for window in windows]
        self._top, self._left, self._bottom, self._right = np.array(edges).reshape(-1, 4).T

    def indices(self, window: Window) -> list[int]:
        """The indices of the windows that overlap this one, in order."""
        rows = (self._top < window.bottom) & (self._bottom > window.row)
        cols = (self._left < window.right) & (self._right > window.col)
        return [int(index) for index in np.flatnonzero(rows & cols)]


class _Measure:
    """The digests and means of one window, fed with rows from top to bottom."""

    def __init__(self, window: Window, count: int) -> None:
        self.window = window
        self._pixels, self._mask = hashlib.sha256(), hashlib.sha256()
        self._sums: NDArray[np.float64] = np.zeros(count)
        self._has_mask = False

    def feed(self, rows: NDArray[Any], mask: NDArray[np.bool_] | None, *, means: bool) -> None:
        self._pixels.update(np.ascontiguousarray(rows).data)
        if mask is not None:
            self._has_mask = True
            self._mask.update(packed_rows(mask).data)
        if means:
            self._sums += rows.sum(axis=(0, 2), dtype=np.float64)

    def result(self, *, means: bool) -> Piece:
        return Piece(
            self.window,
            self._pixels.hexdigest()[:32],
            self._mask.hexdigest()[:32] if self._has_mask else "",
            band_means(self._sums, self.window) if means else (),
        )


def band_means(sums: NDArray[np.float64], window: Window) -> tuple[float, ...]:
    """The mean of each band over a window, from the sums of its pixels."""
    return tuple(round(float(total) / window.area, 3) for total in sums)


def measure(
    dataset: Any,
    windows: Sequence[Window],
    *,
    mask: bool,
    lossless: bool,
    one_pass: bool,
    inspect: Inspect | None = None,
    progress: PartProgress | None = None,
) -> Iterator[Piece]:
    """What each window of an open raster holds, in order. Raises VerificationError if unreadable.

    one_pass: read strips of whole rows from top to bottom.
    inspect: called with everything that is read.
    """
    measures = [_Measure(window, dataset.count) for window in windows]
    overlaps = Overlaps(windows)
    pending = 0
    for index, part in _order(dataset, windows, one_pass):
        rows, valid = _read(dataset, part, mask)
        if inspect is not None:
            inspect(part, rows, valid)
        for at in [index] if index is not None else overlaps.indices(part):
            slices = windows[at].clipped(part).seen_from(part).slices
            measures[at].feed(
                rows[slices[0], :, slices[1]],
                None if valid is None else valid[slices],
                means=not lossless,
            )
        while pending < len(windows) and (
            windows[pending].bottom <= part.bottom if index is None else pending <= index
        ):
            yield measures[pending].result(means=not lossless)
            pending += 1
        if progress is not None:
            progress(part.bottom / dataset.height)
    for rest in measures[pending:]:
        yield rest.result(means=not lossless)


def _order(
    dataset: Any, windows: Sequence[Window], one_pass: bool
) -> Iterator[tuple[int | None, Window]]:
    if not one_pass:
        yield from enumerate(windows)
        return
    for row in range(0, dataset.height, STRIP):
        yield None, Window(row, 0, min(STRIP, dataset.height - row), dataset.width)


def _read(
    dataset: Any, window: Window, mask: bool
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    place = gdal_window(window)
    try:
        data = dataset.read(window=place)
        valid = dataset.read_masks(1, window=place) != 0 if mask else None
    except GDAL_FAILURES as damage:
        raise VerificationError(f"{_described(window)} cannot be decoded ({damage}).") from damage
    return data.transpose(1, 0, 2), valid


def missing_block(dataset: Any, level: int) -> str | None:
    """The first block of a TIFF level without bytes in the file, as text; None if complete."""
    with open_level(Path(dataset.name), level) as opened_level:
        height, width = opened_level.height, opened_level.width
        block_shapes = opened_level.block_shapes
    layout = dataset.interleaving
    by_band = layout is not None and layout.value == "BAND"
    for band in dataset.indexes if by_band else (1,):
        block_height, block_width = block_shapes[band - 1]
        for row in range(-(-height // block_height)):
            for col in range(-(-width // block_width)):
                tag = f"BLOCK_OFFSET_{col}_{row}"
                overview = None if level == 0 else level - 1
                if not dataset.get_tag_item(tag, "TIFF", bidx=band, ovr=overview):
                    return f"block {row}, {col} of band {band}"
    return None


def check_levels(path: Path, receipt: Receipt, progress: PartProgress | None = None) -> int:
    """Compare all pieces of all levels; returns their number. Raises VerificationError."""
    chosen, checked = FORMATS[receipt.format], 0
    total = sum(len(level.pieces) for level in receipt.levels)
    for number, level in enumerate(receipt.levels):
        name = "" if number == 0 else f" of overview {number}"
        try:
            with open_level(path, number) as dataset:
                check_shape(path, dataset, level, receipt, name)
                if chosen.driver in ("GTiff", "COG"):
                    with open_level(path) as whole:
                        if (lost := missing_block(whole, number)) is not None:
                            raise VerificationError(f"{path}: {lost}{name} was never written.")
                found = measure(
                    dataset,
                    [piece.window for piece in level.pieces],
                    mask=receipt.mask,
                    lossless=receipt.lossless,
                    one_pass=chosen.one_pass,
                )
                for index, (expected, piece) in enumerate(
                    zip(level.pieces, _located(path, found, name), strict=True)
                ):
                    if not _agree(expected, piece, receipt.lossless):
                        raise VerificationError(
                            f"{path}: tile {index}{name} ({_described(expected.window)}) is not "
                            "what was computed."
                        )
                    checked += 1
                    if progress is not None:
                        progress(checked / total)
        except GDAL_FAILURES as damage:
            raise VerificationError(f"{path}{name} cannot be opened ({damage}).") from damage
    return checked


def _located(path: Path, pieces: Iterator[Piece], name: str) -> Iterator[Piece]:
    try:
        yield from pieces
    except VerificationError as damage:
        raise VerificationError(f"{path}{name}: {damage}") from damage


def check_shape(path: Path, dataset: Any, level: Level, receipt: Receipt, name: str) -> None:
    """Raise VerificationError if size, type or band count differ from the receipt."""
    found = (dataset.width, dataset.height, dataset.count, dataset.dtypes[0])
    expected = (level.width, level.height, receipt.count, receipt.dtype)
    if found != expected:
        raise VerificationError(
            f"{path}{name} is {found} (width, height, bands, type), not {expected} as in its "
            "receipt."
        )


def _agree(expected: Piece, found: Piece, lossless: bool) -> bool:
    if lossless:
        return (expected.pixels, expected.mask) == (found.pixels, found.mask)
    near = np.allclose(expected.means, found.means, rtol=0, atol=LOSSY_DRIFT)
    return bool(near) and expected.mask == found.mask


def _described(window: Window) -> str:
    return f"rows {window.row} to {window.bottom}, columns {window.col} to {window.right}"


def verify_result(path: Path, receipt: Receipt, progress: PartProgress | None = None) -> int:
    """Verify all pieces, levels and bytes of a result and its side-cars; counts the pieces."""
    checked = check_levels(path, receipt, progress)
    if path.stat().st_size != receipt.bytes or file_sha256(path) != receipt.sha256:
        raise VerificationError(
            f"{path}: all {checked} tiles have the right pixels, but the file was changed after it "
            "was written: its metadata or unused bytes differ."
        )
    for name, expected in receipt.sidecars.items():
        sidecar = path.with_name(name)
        if not sidecar.is_file() or file_sha256(sidecar) != expected:
            raise VerificationError(
                f"{sidecar}, which georeferences {path.name}, is missing or was changed."
            )
    return checked
