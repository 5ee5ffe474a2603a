"""Blocks of a scene for finetuning: where they are, what the network sees, and which test it.

Nobody has the truth at a finer resolution than that of a scene. So the scene is the truth, and the
scene downsampled by the network's scale is the input.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from repmamba.data.pairs import Pair, pair_from_hr
from repmamba.errors import UsageError
from repmamba.inference.planes import NETWORK_RANGE
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.nodata import usable
from repmamba.scene.options import SceneOptions
from repmamba.scene.plan import ScenePlan, plan_scene
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.raster import Raster, open_raster
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

# sides of a block in scene pixels: the largest that gives FEWEST blocks; multiples of 2, 3 and 4
EDGES = (192, 96, 48)

# blocks that a run needs and uses: fewer give no interval, and a short run does not see more
FEWEST, MOST = 24, 600

# share of the blocks that are never trained on: those for testing, and those on the same ground
HELD_OUT = 0.25

TOUCHING = 1e-6  # overlap of neighbouring blocks, as a share of their size, that counts as rounding


@dataclass(frozen=True, slots=True)
class Block:
    """A square of a scene without missing pixels: one pair per group of bands.

    corners: (x, y) of its four corners, in order, on the map.
    map: what the coordinates refer to: a CRS, None for an unnamed one, or without georeferencing
    the scene's file, in pixels.
    """

    name: str
    pairs: tuple[Pair, ...]
    corners: tuple[tuple[float, float], ...]
    map: CRS | str | None


def blocks_of(
    scene: str | os.PathLike[str], upscaler: Upscaler, how: ReadOptions | None = None
) -> list[Block]:
    """Disjoint blocks of a scene without missing pixels, as the network sees them.

    Bands that go through the network together are one pair; every other band is a pair of its own,
    grey. hr is uint8 for 8-bit scenes, otherwise unit float32.
    """
    with open_raster(scene, how) as raster:
        options = SceneOptions(consistent=False)
        plan = plan_scene(raster, Path("enlarged.tif"), upscaler, options, how)
        for edge in EDGES:
            blocks = list(_blocks(raster, plan, edge, upscaler.bands))
            if len(blocks) >= FEWEST:
                break
    logger.info("%s: %d blocks of %d pixels.", scene, len(blocks), edge)
    return blocks


def split(blocks: Sequence[Block], seed: int) -> tuple[list[Block], list[Block]]:
    """Blocks for training and for testing, the same for the same seed.

    No two test blocks share ground, and no training block shares ground with one: blocks that
    overlap a test block, in an image of another day, are in neither. Raises UsageError for too few.
    """
    order = np.random.default_rng(seed).permutation(len(blocks))[:MOST]
    held_out: list[Block] = []
    training = [blocks[index] for index in order]
    fewest = FEWEST // 3
    while training and (
        len(held_out) < fewest or len(order) - len(training) < round(HELD_OUT * len(order))
    ):
        held_out.append(training[0])
        training = [block for block in training if not share_ground(block, held_out[-1])]
    if len(held_out) < fewest or len(training) < FEWEST - fewest:
        raise UsageError(
            f"The scenes have {len(blocks)} blocks of at least {EDGES[-1]} x {EDGES[-1]} pixels "
            f"without missing ones: {len(held_out)} for testing, and {len(training)} for training "
            f"on other ground. At least {fewest} and {FEWEST - fewest} are needed, {FEWEST} in "
            "all. Give larger scenes, or more scenes of other ground."
        )
    return training, held_out


def share_ground(one: Block, other: Block) -> bool:
    """Whether two blocks on the same map overlap by more than an edge.

    They do not if a line along an edge of either separates them.
    """
    for (x0, y0), (x1, y1), _, (x3, y3) in (one.corners, other.corners):
        for dx, dy in ((x1 - x0, y1 - y0), (x3 - x0, y3 - y0)):
            places = [one.corners, other.corners]
            a, b = ([(x - x0) * dy - (y - y0) * dx for x, y in corners] for corners in places)
            shared = min(max(a), max(b)) - max(min(a), min(b))
            if shared <= TOUCHING * min(max(a) - min(a), max(b) - min(b)):
                return False
    return one.map == other.map


def _blocks(raster: Raster, plan: ScenePlan, edge: int, bands: int) -> Iterator[Block]:
    grid, scene = raster.grid, raster.facts.name
    for number, window in enumerate(_windows(grid.height, grid.width, edge)):
        raw, valid = raster.read(window)
        raw = raw[list(plan.places)]
        if not usable(raw, valid, plan.band_nodata).all():
            continue
        name = f"{scene}, block {number}"
        seen = raw if raw.dtype == np.uint8 else plan.radiometry.to_unit(raw).clip(*NETWORK_RANGE)
        pairs = []
        for group in plan.groups:
            together = seen[list(group)]
            if len(group) != bands:
                together = together.repeat(bands, axis=0)
            hr = np.ascontiguousarray(np.moveaxis(together, 0, -1))
            pairs.append(pair_from_hr(f"{name}, bands {group}", hr, plan.scale))
        placed = replace(grid, transform=grid.transform or Affine.identity())
        where = str(Path(scene).resolve()) if grid.transform is None else grid.crs
        yield Block(name, tuple(pairs), placed.cut(window).corners(), where)


def _windows(height: int, width: int, edge: int) -> list[Window]:
    """All blocks inside, row by row; at most MOST, evenly spread."""
    windows = [
        Window(row, col, edge, edge)
        for row in range(0, height - edge + 1, edge)
        for col in range(0, width - edge + 1, edge)
    ]
    chosen = np.linspace(0, len(windows) - 1, min(MOST, len(windows))).round().astype(int).tolist()
    return [windows[index] for index in chosen]
