"""A picture rotated as its EXIF orientation asks, without holding it in memory.

Rows of the file become columns of the picture, so each tile needs parts of all rows. Decoded strips
are rotated and written to an unnamed temporary file, which the system deletes with the process.
Windows are read from the strips they intersect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from repmamba import durable
from repmamba.errors import NoSpace
from repmamba.tiles.window import Window

Strip: TypeAlias = tuple[NDArray[Any], NDArray[np.bool_]]  # raw (bands, h, w); valid (h, w)

# EXIF orientation -> how to rotate (..., h, w)
TURNS: Mapping[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[..., ::-1],
    3: lambda stored: stored[..., ::-1, ::-1],
    4: lambda stored: stored[..., ::-1, :],
    5: lambda stored: stored.swapaxes(-1, -2),
    6: lambda stored: stored.swapaxes(-1, -2)[..., ::-1],
    7: lambda stored: stored.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda stored: stored.swapaxes(-1, -2)[..., ::-1, :],
}
TO_COLUMNS = (5, 6, 7, 8)  # orientations in which rows become columns
# orientations in which the first stored rows become the last rows or columns
FROM_THE_END = (3, 4, 6, 7)


def upright_size(height: int, width: int, turn: int) -> tuple[int, int]:
    """Rows and columns of the upright picture, from those of its file."""
    return (width, height) if turn in TO_COLUMNS else (height, width)


@dataclass(frozen=True, slots=True)
class UprightPicture:
    """The rotated strips in their temporary file. Read by one thread at a time."""

    strips: tuple[tuple[Window, int], ...]  # place in the picture, offset in the file
    bands: int
    dtype: np.dtype[Any]
    file: IO[bytes]

    def close(self) -> None:
        """Delete the temporary file."""
        self.file.close()

    def read(self, window: Window) -> Strip:
        """raw (bands, h, w) and valid (h, w) of a window of the upright picture."""
        raw = np.empty((self.bands, window.height, window.width), self.dtype)
        valid = np.empty((window.height, window.width), bool)
        for strip, start in self.strips:
            shared = strip.clipped(window)
            if shared.is_empty:
                continue
            record = _record(self.bands, self.dtype, strip.width)
            inside, there = shared.seen_from(strip), shared.seen_from(window).slices
            self.file.seek(start + inside.row * record.itemsize)
            rows = np.frombuffer(self.file.read(inside.height * record.itemsize), record)
            cols = inside.slices[1]
            raw[:, *there] = rows["raw"][:, :, cols].swapaxes(0, 1)
            valid[there] = rows["valid"][:, cols]
        return raw, valid


def turned_upright(
    name: str, stored: Iterable[Strip], size: tuple[int, int], turn: int
) -> UprightPicture:
    """An upright picture from strips of whole rows, first to last, of a file of that size.

    The temporary folder (TMPDIR) needs room for the pixels and one byte more for each. Raises
    NoSpace.
    """
    height, width = upright_size(*size, turn)
    file = tempfile.TemporaryFile()  # noqa: SIM115  it stays open as long as the picture
    strips: list[tuple[Window, int]] = []
    first = start = bands = 0
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    try:
        for raw, valid in stored:
            end = first + valid.shape[0]
            begin = size[0] - end if turn in FROM_THE_END else first
            rows = end - first
            strip = Window(begin, 0, rows, width)
            if turn in TO_COLUMNS:
                strip = Window(0, begin, height, rows)
            bands, dtype = len(raw), raw.dtype
            records = np.empty(strip.height, _record(bands, dtype, strip.width))
            records["raw"] = TURNS[turn](raw).swapaxes(0, 1)
            records["valid"] = TURNS[turn](valid)
            file.write(records.data)
            strips.append((strip, start))
            first, start = end, start + records.nbytes
        file.flush()
    except OSError as error:
        file.close()
        if error.errno not in durable.FULL:
            raise
        raise NoSpace(
            f"{name} has to be rotated, and {tempfile.gettempdir()} has no room for it: set TMPDIR "
            "to a folder with more room."
        ) from error
    except BaseException:
        file.close()
        raise
    return UprightPicture(tuple(strips), bands, dtype, file)


def _record(bands: int, dtype: np.dtype[Any], width: int) -> np.dtype[Any]:
    """The dtype of one row of a rotated strip in the file."""
    return np.dtype([("raw", dtype, (bands, width)), ("valid", bool, (width,))])
