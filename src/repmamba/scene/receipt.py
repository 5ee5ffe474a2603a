"""The receipt beside a result: what was written, piece by piece, so that anybody can check it later without the input.

A piece is a tile of the result, or a square of one of its overviews. Nothing in a receipt depends on when, where or in
how many runs the result was made: equal jobs have equal receipts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba.errors import VerificationError
from repmamba.scene import durable
from repmamba.scene.job import Json, canonical_json
from repmamba.tiles.window import Window

VERSION = 1
SUFFIX = ".receipt.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """What the pixels of a window are, as decoded. A lossless format is held to digests, another one to means."""

    window: Window
    pixels: str  # digest, rows outermost (see tile_file.TilePixels)
    mask: str  # digest of the mask's bits; "" where the result has no mask
    means: tuple[float, ...]  # of each band; only compared where the format is lossy, and empty elsewhere


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the result: the full one (level 0, pieces are tiles), or an overview."""

    width: int
    height: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was written, by what. Sizes in bytes and pixels."""

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

    def as_text(self) -> str:
        """The receipt as it stands in its file."""
        levels = [
            {
                "width": level.width,
                "height": level.height,
                "pieces": [
                    [
                        [piece.window.row, piece.window.col, piece.window.height, piece.window.width],
                        piece.pixels,
                        piece.mask,
                        list(piece.means),
                    ]
                    for piece in level.pieces
                ],
            }
            for level in self.levels
        ]
        values = {name: getattr(self, name) for name in self.__slots__ if name != "levels"}
        return canonical_json({"receipt": VERSION, **values, "levels": levels}) + "\n"


def receipt_path(target: Path) -> Path:
    """Where the receipt of a result lies: beside it, its name with .receipt.json added."""
    return target.with_name(target.name + SUFFIX)


def read_receipt(path: Path) -> Receipt:
    """A receipt from its file. Raises VerificationError where there is none, or one that cannot be read."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values.pop("receipt") != VERSION:
            raise VerificationError(f"{path} is a receipt of another version; this repmamba reads version {VERSION}.")
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
        return Receipt(levels=levels, **values)
    except FileNotFoundError as missing:
        raise VerificationError(f"There is no receipt {path}; only results that repmamba wrote have one.") from missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as damage:
        if isinstance(damage, VerificationError):
            raise
        raise VerificationError(f"{path} is no receipt that can be read ({type(damage).__name__}).") from damage


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(durable.PIECE):
            state.update(piece)
    return state.hexdigest()
