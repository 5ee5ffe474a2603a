"""The receipt beside a result: digests of what was written, to verify it later without the input.

A piece is a tile of the result or a square of an overview. Receipts do not depend on when, where or
in how many runs a result was made: equal jobs have equal receipts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repmamba import durable
from repmamba.errors import UsageError, VerificationError
from repmamba.scene.result.formats import FORMATS
from repmamba.scene.result.job import Json, canonical_json
from repmamba.tiles.window import Window

VERSION = 1
SUFFIX = ".receipt.json"
_KINDS: dict[str, type] = {  # types of the fields of a Receipt
    **dict.fromkeys(("file", "format", "sha256", "dtype"), str),
    **dict.fromkeys(("bytes", "count"), int),
    **dict.fromkeys(("mask", "lossless"), bool),
    **dict.fromkeys(("job", "sidecars", "creation"), dict),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """The decoded pixels of a window: as digests if the format is lossless, else as means."""

    window: Window
    pixels: str  # digest, rows outermost (see tile_file.TilePixels)
    mask: str  # digest of the mask's bits; "" where the result has no mask
    means: tuple[float, ...]  # of each band; empty if the format is lossless


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the result: the full one (level 0, pieces are tiles), or an overview."""

    width: int
    height: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was written, and by which job. Sizes in bytes and pixels."""

    file: str  # name of the result
    format: str
    bytes: int
    sha256: str  # of the whole file
    count: int
    dtype: str
    mask: bool
    lossless: bool
    levels: tuple[Level, ...]
    job: Mapping[str, Json]  # JobIdentity.as_json()
    sidecars: Mapping[str, str]  # name -> SHA-256
    # GDAL's options when the file was created; empty in older receipts
    creation: Mapping[str, str] = field(default_factory=dict)

    def as_text(self) -> str:
        """The content of the receipt file."""
        levels = [
            {
                "width": level.width,
                "height": level.height,
                "pieces": [
                    [list(astuple(piece.window)), piece.pixels, piece.mask, list(piece.means)]
                    for piece in level.pieces
                ],
            }
            for level in self.levels
        ]
        values = {name: getattr(self, name) for name in self.__slots__ if name != "levels"}
        return canonical_json({"receipt": VERSION, **values, "levels": levels}) + "\n"


def receipt_path(target: Path) -> Path:
    """The file of a receipt: beside the result, with .receipt.json added to its name."""
    return target.with_name(target.name + SUFFIX)


def read_receipt(path: Path) -> Receipt:
    """Read a receipt. Raises VerificationError if there is none, or it is not valid."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values.pop("receipt") != VERSION:
            raise VerificationError(
                f"{path} has another receipt version; this repmamba reads version {VERSION}."
            )
        levels = tuple(
            Level(
                level["width"],
                level["height"],
                tuple(
                    Piece(Window(*window), pixels, mask, tuple(means))
                    for window, pixels, mask, means in level["pieces"]
                ),
            )
            for level in values.pop("levels")
        )
        receipt = Receipt(levels=levels, **values)
        _check(receipt)
        return receipt
    except FileNotFoundError as missing:
        raise VerificationError(
            f"There is no receipt {path}: only results that repmamba wrote have one."
        ) from missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as damage:
        if isinstance(damage, VerificationError):
            raise
        raise VerificationError(
            f"{path} is not a valid receipt ({type(damage).__name__}: {damage})."
        ) from damage


def _check(receipt: Receipt) -> None:
    """Raise TypeError or ValueError for values that no writer produces."""
    for name, kind in _KINDS.items():
        _check_kind(name, getattr(receipt, name), kind)
    if receipt.format not in FORMATS:
        raise ValueError(f"format {receipt.format}")
    for name, digest in receipt.sidecars.items():
        _check_kind("a side-car", digest, str)
        if name != Path(name).name:
            raise ValueError(f"side-car {name}")
    if not receipt.levels:
        raise ValueError("no levels")
    for level in receipt.levels:
        for piece in level.pieces:
            for number in (level.width, level.height, *astuple(piece.window)):
                _check_kind("a size", number, int)
            for mean in piece.means:
                _check_kind("a mean", mean, float)
        check_cover([piece.window for piece in level.pieces], level.width, level.height)


def _check_kind(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:  # not isinstance: True is not a number here
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def check_cover(tiles: Sequence[Window], width: int, height: int) -> None:
    """Raise UsageError unless the windows cover each pixel of width x height exactly once."""
    inside = all(
        not tile.is_empty
        and tile.row >= 0
        and tile.col >= 0
        and tile.bottom <= height
        and tile.right <= width
        for tile in tiles
    )
    rows = sorted({0, height, *(edge for tile in tiles for edge in (tile.row, tile.bottom))})
    cols = sorted({0, width, *(edge for tile in tiles for edge in (tile.col, tile.right))})
    times = np.zeros((len(rows), len(cols)), np.int64)
    if inside:
        for tile in tiles:
            top, bottom = np.searchsorted(rows, [tile.row, tile.bottom])
            left, right = np.searchsorted(cols, [tile.col, tile.right])
            times[top:bottom, left:right] += 1
    if not inside or not (times[:-1, :-1] == 1).all():
        raise UsageError(f"The tiles do not cover each pixel of {width} x {height} exactly once.")


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(durable.PIECE):
            state.update(piece)
    return state.hexdigest()
