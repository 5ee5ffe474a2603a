"""Tile plans: which windows of a scene to read, and which part of each result to keep.

Integer geometry only, no raster library and no torch: a plan can be printed, compared and tested
before a pixel is read. The tiles stand on a grid fixed to the scene's first pixel, and what a tile
reads depends on the scene alone; a window asked for only decides which tiles are computed and how
much of each is kept. So a window holds the same pixels as the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from repmamba.errors import UsageError
from repmamba.tiles.window import Window

TILE = 256  # lr pixels on each side of the part that is kept; weights may name a better one
HALO = 8  # lr pixels read around it; decision 5 (how-large-a-halo) has the curve


@dataclass(frozen=True, slots=True)
class Tile:
    """One step of a plan. Windows are in pixels, of the grid named."""

    # lr, inside the scene: halo included, clipped at the scene's edges, where the network pads by
    # itself
    read: Window
    keep: Window  # hr, inside this tile's own result: the part that no cut edge has touched
    write: Window  # hr, inside the output; same size as keep


@dataclass(frozen=True, slots=True)
class TilePlan(Sequence[Tile]):
    """The tiles of one scene, row by row; every pixel of the output belongs to exactly one of
    them.
    """

    height: int  # of the scene, lr
    width: int
    scale: int
    tile: int  # edge of the kept part, lr
    halo: int  # lr
    window: Window  # the part of the scene that is the output, lr
    tiles: tuple[Tile, ...]

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tile, ...]: ...
    def __getitem__(self, index: int | slice) -> Tile | tuple[Tile, ...]:
        return self.tiles[index]

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    @property
    def pixels_read(self) -> int:
        """Lr pixels that go through the network, halos included."""
        return sum(tile.read.height * tile.read.width for tile in self.tiles)


def plan_tiles(
    height: int,
    width: int,
    scale: int,
    *,
    tile: int = TILE,
    halo: int = HALO,
    window: Window | None = None,
) -> TilePlan:
    """The plan for a scene of height x width lr pixels, or for the window of it that is asked for.

    tile, halo, window: in lr pixels. A tile on the scene's edge has no halo there; the last of a
    row or column is as small as what is left. Raises UsageError for sizes below one pixel and for a
    window that leaves the scene.
    """
    if height < 1 or width < 1:
        raise UsageError(
            f"A scene of {width} x {height} pixels has nothing to enlarge: at least 1 x 1 is "
            "needed."
        )
    if tile < 1 or halo < 0:
        raise UsageError(
            f"tile={tile}, halo={halo}: a tile is at least 1 pixel wide, a halo at least 0."
        )
    scene = Window(0, 0, height, width)
    asked = scene if window is None else window
    if asked.is_empty or not scene.contains(asked):
        raise UsageError(
            f"The window of {asked.width} x {asked.height} pixels at column {asked.col}, row "
            f"{asked.row} does not lie "
            f"inside the scene of {width} x {height}: choose one that does."
        )
    output = asked.scaled(scale)
    tiles = []
    for row in range(asked.row // tile * tile, asked.row + asked.height, tile):
        for col in range(asked.col // tile * tile, asked.col + asked.width, tile):
            cell = Window(row, col, tile, tile)
            read = cell.grown(halo).clipped(scene)
            kept = cell.clipped(asked)
            tiles.append(
                Tile(
                    read=read,
                    keep=kept.seen_from(read).scaled(scale),
                    write=kept.scaled(scale).seen_from(output),
                )
            )
    return TilePlan(height, width, scale, tile, halo, asked, tuple(tiles))
