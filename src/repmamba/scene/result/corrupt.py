"""The blocks of an input that could not be read and are taken as missing, noted in the working
folder of the job.

A run that goes on does not read the tiles of an earlier one again, and still counts what was
missing in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from repmamba import durable
from repmamba.scene.result.journal import read_note, storage_errors
from repmamba.tiles.window import Window


class CorruptBlocks:
    """All blocks, lr, that any run of a job met."""

    def __init__(self, folder: Path) -> None:
        self._note = folder / "corrupt.json"
        self._met = {Window(*block) for block in read_note(self._note) or ()}

    def add(self, blocks: Iterable[Window]) -> None:
        """Make them durable; to be called before a tile that reaches into them is."""
        if new := set(blocks) - self._met:
            self._met |= new
            noted = sorted([block.row, block.col, block.height, block.width] for block in self._met)
            with storage_errors(self._note):
                durable.write_durable(self._note, json.dumps(noted).encode())

    @property
    def pixels(self) -> int:
        """How many pixels lie in them."""
        return sum(block.height * block.width for block in self._met)
