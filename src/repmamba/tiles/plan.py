"""Tile plans: which windows of a scene to read, and which part of each result to keep.

Only integer geometry, without a raster library or torch: a plan can be printed, compared and tested
before a pixel is read. The tile grid is fixed to the scene's first pixel, and what a tile reads
depends only on the scene; a window only selects tiles and how much of each is kept. So a window has
the same pixels as the whole scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from repmamba.errors import UsageError
from repmamba.tiles.window import Window

TILE = 256  # side of the kept part, in lr pixels; weights may set another
HALO = 8  # lr pixels read around it; see decision 5, how-large-a-halo
LEAST = {"tile": 2, "halo": 0}  # lr pixels


@dataclass(frozen=True, slots=True)
class Tile:
    """One step of a plan. Windows are in pixels of the named grid."""

    # lr, inside the scene; halo included, clipped at the edges, where the network pads
    read: Window
    keep: Window  # hr, inside this tile's result: the part without edge effects
    write: Window  # hr, inside the output; same size as keep


@dataclass(frozen=True, slots=True)
class TilePlan(Sequence[Tile]):
    """The tiles of a scene, row by row; every output pixel belongs to exactly one tile."""

    height: int  # of the scene, lr
    width: int
    scale: int
    tile: int  # side of the kept part, lr
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
        """lr pixels that pass through the network, halos included."""
        return sum(tile.read.area for tile in self.tiles)


def check_cut(tile: int | None, halo: int | None) -> None:
    """Raise UsageError for an odd or too small tile or halo; None is that of the weights."""
    for name, length in (("tile", tile), ("halo", halo)):
        if length is not None and not cuts(name, length):
            raise UsageError(
                f"{name}={length}: expected an even number of pixels from {LEAST[name]} up, "
                "because the network pools two by two."
            )


def cuts(name: str, length: int) -> bool:
    """Whether a "tile" or a "halo" may have this length: an odd one would pool other pixels."""
    return length % 2 == 0 and length >= LEAST[name]


def plan_tiles(
    height: int,
    width: int,
    scale: int,
    *,
    tile: int = TILE,
    halo: int = HALO,
    window: Window | None = None,
) -> TilePlan:
    """Plan the tiles of a scene, or of a window of it.

    A tile has no halo at the scene's edge; the last tile of a row or column may be smaller.

    height: Of the scene, in lr pixels.  width: Of the scene, in lr pixels.  scale: Of the network.
    tile: Side of the kept part, in lr pixels.  halo: lr pixels read on each side.
    window: Part of the scene to output, in lr pixels; by default all.
    Raises UsageError: a size is below one pixel, or the window leaves the scene.
    """
    if height < 1 or width < 1:
        raise UsageError(f"The scene has {width} x {height} pixels; at least 1 x 1 is needed.")
    if tile < 1 or halo < 0:
        raise UsageError(
            f"tile={tile}, halo={halo}: a tile needs at least 1 pixel, a halo at least 0."
        )
    scene = Window(0, 0, height, width)
    asked = scene if window is None else window
    if asked.is_empty or not scene.contains(asked):
        raise UsageError(
            f"The window of {asked.width} x {asked.height} pixels at column {asked.col}, row "
            f"{asked.row} does not lie inside the scene of {width} x {height}: choose one that "
            "does."
        )
    output = asked.scaled(scale)
    tiles = []
    for row in range(asked.row // tile * tile, asked.bottom, tile):
        for col in range(asked.col // tile * tile, asked.right, tile):
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
