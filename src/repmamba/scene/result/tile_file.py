"""A finished tile as a file that can be verified on its own.

The header holds the job, the window and a digest of the payload: the pixels, and the bits of the
mask if there is one. The same pixels give the same bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import ShapeMismatch, VerificationError
from repmamba.scene.result.job import Json, canonical_json, differences, digest128
from repmamba.tiles.window import Window


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of the result and its tiles, which finished tiles must fit."""

    job: str  # JobIdentity.id
    tiles: tuple[Window, ...]  # hr
    count: int
    dtype: str
    mask: bool

    def as_json(self) -> dict[str, Json]:
        """What a resumed run must have in common; the windows as one digest."""
        windows = [list(astuple(window)) for window in self.tiles]
        return {
            "tiles": len(self.tiles),
            "windows": digest128(canonical_json(windows).encode()),
            "count": self.count,
            "dtype": self.dtype,
            "mask": self.mask,
        }


@dataclass(frozen=True, slots=True)
class TilePixels:
    """One finished tile, rows outermost: the order of the digest and of reading by rows."""

    rows: NDArray[Any]  # (h, count, w)
    valid: NDArray[np.bool_] | None  # (h, w), True where there is data; None: everywhere

    @property
    def data(self) -> NDArray[Any]:
        """(count, h, w), a view."""
        return self.rows.transpose(1, 0, 2)

    @property
    def pixels_digest(self) -> str:
        """Digest of the pixels."""
        return digest128(self.rows.data)

    @property
    def mask_digest(self) -> str:
        """Digest of the mask, each row packed to bits."""
        return digest128(packed_rows(self.mask).data)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), all True if everything is valid."""
        height, _, width = self.rows.shape
        return np.ones((height, width), bool) if self.valid is None else self.valid


def packed_rows(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask (h, w) as bits, each row padded to whole bytes."""
    return np.ascontiguousarray(np.packbits(valid, axis=1))


_PREFIX = struct.Struct("<8sII")  # magic, length of the header, CRC-32 of the header
_MAGIC = b"rmtile1\n"
_PROBE = 1 << 16


def encode_tile(layout: Layout, index: int, pixels: TilePixels) -> tuple[bytes, bytes]:
    """A finished tile as (header, payload): the same pixels give the same bytes."""
    payload = pixels.rows.tobytes()
    if pixels.valid is not None:
        payload += packed_rows(pixels.valid).tobytes()
    codec = "zlib" if _is_worth_packing(payload) else "raw"
    if codec == "zlib":
        payload = zlib.compress(payload, 1)
    header = canonical_json(
        {
            **_place(layout, index),
            "all_valid": pixels.valid is None,
            "codec": codec,
            "bytes": len(payload),
            "digest": digest128(payload),
        }
    ).encode()
    return _PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)) + header, payload


def _place(layout: Layout, index: int) -> dict[str, Json]:
    """The part of a header that is known before the pixels."""
    return {
        "job": layout.job,
        "index": index,
        "window": list(astuple(layout.tiles[index])),
        "count": layout.count,
        "dtype": layout.dtype,
    }


def _is_worth_packing(payload: bytes) -> bool:
    # Imagery shrinks by less than half, in 13 ms a megabyte; missing pixels shrink to nothing.
    middle = max(0, len(payload) // 2 - _PROBE // 2)
    probe = payload[middle : middle + _PROBE]
    return 2 * len(zlib.compress(probe, 1)) < len(probe)


def read_header(path: Path, layout: Layout, index: int) -> dict[str, Json]:
    """The header of a tile file. Raises VerificationError unless it fits layout and file size."""
    with path.open("rb") as file:
        magic, length, crc = _prefix(file.read(_PREFIX.size))
        header = file.read(length)
    if magic != _MAGIC or zlib.crc32(header) != crc or len(header) != length:
        raise VerificationError(f"{path} does not start like a finished tile.")
    fields: dict[str, Json] = json.loads(header)
    expected = _place(layout, index)
    if unlike := differences(expected, {name: fields.get(name) for name in expected}):
        raise VerificationError(f"{path} is a tile of another job ({'; '.join(unlike)}).")
    if path.stat().st_size != _PREFIX.size + length + fields["bytes"]:
        raise VerificationError(
            f"{path} has {path.stat().st_size} bytes, not the number in its header."
        )
    return {**fields, "start": _PREFIX.size + length}


def _prefix(head: bytes) -> tuple[bytes, int, int]:
    if len(head) < _PREFIX.size:
        return b"", 0, 0
    magic, length, crc = _PREFIX.unpack(head)
    return magic, min(length, _PROBE), crc


def decode_tile(path: Path, layout: Layout, index: int) -> TilePixels:
    """A tile read from its file, every byte verified. Raises VerificationError."""
    fields = read_header(path, layout, index)
    with path.open("rb") as file:
        file.seek(fields["start"])
        payload = file.read(fields["bytes"])
    if digest128(payload) != fields["digest"]:
        raise VerificationError(f"{path}: its pixels differ from those that were written.")
    if fields["codec"] == "zlib":
        payload = zlib.decompress(payload)
    window, dtype = layout.tiles[index], np.dtype(layout.dtype)
    samples = window.height * layout.count * window.width
    rows = np.frombuffer(payload, dtype, samples).reshape(window.height, layout.count, window.width)
    if fields["all_valid"]:
        return TilePixels(rows, None)
    bits = np.frombuffer(payload, np.uint8, offset=samples * dtype.itemsize).reshape(
        window.height, -1
    )
    return TilePixels(rows, np.unpackbits(bits, axis=1, count=window.width).astype(bool))


def tile_pixels(
    layout: Layout, index: int, data: NDArray[Any], valid: NDArray[np.bool_] | None
) -> TilePixels:
    """A tile from data (count, h, w) and valid (h, w) or None. Raises ShapeMismatch."""
    window = layout.tiles[index]
    expected = (layout.count, window.height, window.width)
    if data.shape != expected or data.dtype != np.dtype(layout.dtype):
        raise ShapeMismatch(
            f"Tile {index} is {data.dtype} {data.shape}; the plan has {layout.dtype} {expected}."
        )
    if valid is not None and valid.shape != expected[1:]:
        raise ShapeMismatch(
            f"The valid mask of tile {index} is {valid.shape}; the plan has {expected[1:]}."
        )
    kept = None if not layout.mask or valid is None or valid.all() else valid.astype(bool)
    return TilePixels(np.ascontiguousarray(data.transpose(1, 0, 2)), kept)
