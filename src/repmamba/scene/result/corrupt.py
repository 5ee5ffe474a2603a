"""The unreadable blocks of an input that count as missing, recorded in the job's working folder.

A resumed run does not read the finished tiles again, but still counts their missing pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from repmamba import durable
from repmamba.scene.result.journal import read_note, storage_errors
from repmamba.tiles.window import Window


class CorruptBlocks:
    """All unreadable blocks, in lr pixels, that any run of a job found."""

    def __init__(self, folder: Path) -> None:
        self._note = folder / "corrupt.json"
        self._met = {Window(*block) for block in read_note(self._note) or ()}

    def add(self, blocks: Iterable[Window]) -> None:
        """Record blocks on disk. Call it before a tile that contains them is recorded."""
        if new := set(blocks) - self._met:
            self._met |= new
            noted = sorted([block.row, block.col, block.height, block.width] for block in self._met)
            with storage_errors(self._note):
                durable.write_durable(self._note, json.dumps(noted).encode())

    @property
    def pixels(self) -> int:
        """Number of pixels in these blocks."""
        return sum(block.area for block in self._met)
