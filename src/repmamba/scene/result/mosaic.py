"""Mosaic: the finished tiles as one raster, read by window."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from repmamba.scene.result.formats import is_lossless
from repmamba.scene.result.journal import Journal
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import Overlaps, band_means
from repmamba.scene.result.receipt import Piece
from repmamba.scene.result.tile_file import TilePixels
from repmamba.tiles.window import Window

CACHE = 48 << 20  # bytes of decoded tiles to keep


class Mosaic:
    """The finished tiles as one raster, read by window. Caches some tiles; not thread-safe."""

    def __init__(self, journal: Journal, profile: OutputProfile) -> None:
        self._journal, self._profile = journal, profile
        self.windows: Sequence[Window] = journal.layout.tiles
        self._overlaps = Overlaps(self.windows)
        self.pieces: dict[int, Piece] = {}  # of the tiles read so far
        self._kept: OrderedDict[int, TilePixels] = OrderedDict()

    def read(self, window: Window) -> TilePixels:
        """The pixels of a window, and the mask if the profile has one."""
        rows = np.empty((window.height, self._profile.count, window.width), self._profile.dtype)
        valid = np.ones((window.height, window.width), bool) if self._profile.mask else None
        for index in self._overlaps.indices(window):
            shared = self.windows[index].clipped(window)
            tile = self.tile(index)
            to_row, to_col = shared.seen_from(window).slices
            from_row, from_col = shared.seen_from(self.windows[index]).slices
            rows[to_row, :, to_col] = tile.rows[from_row, :, from_col]
            if valid is not None and tile.valid is not None:
                valid[to_row, to_col] = tile.valid[from_row, from_col]
        return TilePixels(rows, valid)

    def tile(self, index: int) -> TilePixels:
        """One tile, its bytes verified."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        tile = self._journal.read(index)
        if index not in self.pieces:
            self.pieces[index] = piece_of(self.windows[index], tile, self._profile)
        self._kept[index] = tile
        while len(self._kept) > 1 and sum(kept.rows.nbytes for kept in self._kept.values()) > CACHE:
            self._kept.popitem(last=False)
        return tile


def piece_of(window: Window, pixels: TilePixels, profile: OutputProfile) -> Piece:
    """What a receipt keeps of these pixels."""
    mask = pixels.mask_digest if profile.mask else ""
    means: tuple[float, ...] = ()
    if not is_lossless(profile):
        means = band_means(pixels.rows.sum(axis=(0, 2), dtype=np.float64), window)
    return Piece(window, pixels.pixels_digest, mask, means)
