"""finetune: a network trained further on scenes of one's own, and kept only where held-back ground
shows a gain.

Nobody has the truth at a finer resolution than a scene's own. So the scene is the truth, and the
scene reduced by the network's scale is the input: what is learnt is the look of this ground and
this sensor, one step of scale away from where it will be used. Blocks of ground that no training
patch touches, in whichever scene, judge the old weights and the new ones, block by block.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from repmamba.data.pairs import Pair, pair_from_hr
from repmamba.data.patches import Phase
from repmamba.data.stock import stock_of
from repmamba.durable import check_local
from repmamba.errors import UsageError
from repmamba.evaluate.metrics import Metric, psnr
from repmamba.evaluate.scores import Paired, paired_difference
from repmamba.inference.catalogue import find_weights
from repmamba.inference.upscaler import SEEN, Upscaler, load
from repmamba.network.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from repmamba.network.repmamba import RepMamba
from repmamba.pixels.nodata import usable
from repmamba.scene.options import SceneOptions
from repmamba.scene.plan import ScenePlan, plan_scene
from repmamba.scene.source.raster import Raster, open_raster
from repmamba.tiles.window import Window
from repmamba.train.callbacks import Callback
from repmamba.train.loop import fit
from repmamba.train.reached import Tell
from repmamba.train.recipe import Checkpoints, Data, Optimiser, Recipe, Schedule, Start, Step
from repmamba.train.run import FitResult
from repmamba.train.validation import enlarged

logger = logging.getLogger(__name__)

EDGES = (192, 96, 48)
"""Edges of a block in scene pixels, the largest first that gives FEWEST blocks; each a multiple of
2, 3 and 4.
"""

FEWEST, MOST = 24, 600
"""Blocks a run needs and takes: below, an interval says nothing; above, a short run does not see
them all.
"""

HELD_BACK = 0.25
"""Share of the blocks that are never learnt from: those that are judged on, and those on the same
ground.
"""

TOUCHING = 1e-6
"""Largest share of a block's extent by which it may reach into another that is only its neighbour:
rounding.
"""

PATCH = 32
"""Largest side of a training patch, in lr pixels."""


@dataclass(frozen=True, slots=True)
class Block:
    """A square of a scene without missing pixels, as one pair for each group of bands that the
    network takes together.

    corners: (x, y) of its four, in turn, on the map.  map: what these coordinates are of, a CRS or
    None for one that is
    not named; of a scene without a place, its file, in pixels.
    """

    name: str
    pairs: tuple[Pair, ...]
    corners: tuple[tuple[float, float], ...]
    map: CRS | str | None


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What finetuning came to.

    weights: those to use from now on, the new file or what was begun from.  gain: PSNR of the new
    weights less that of
    the old on the held-back blocks, in dB, with its interval; None while the run is not finished.
    """

    run: FitResult
    weights: str
    gain: Paired | None

    def __repr__(self) -> str:
        return f"<FinetuneResult {self.summary()}>"

    @property
    def improved(self) -> bool:
        """Whether the interval of the gain lies above zero."""
        return self.gain is not None and self.gain.low > 0

    def summary(self) -> str:
        """One line for the user."""
        if self.gain is None:
            return self.run.summary()
        seen = (
            f"{self.gain.difference:+.3f} dB on {self.gain.count} held-back blocks ({JUDGED.how}), "
        )
        interval = f"95 % interval {self.gain.low:+.3f} to {self.gain.high:+.3f}"
        verdict = (
            "a gain; the new weights are"
            if self.improved
            else "no gain that this supports; the old weights stay:"
        )
        return f"{seen}{interval}: {verdict} {self.weights}"


def finetune(
    scenes: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    weights: str | os.PathLike[str] = "x4",
    *,
    steps: int = 600,
    rate: float = 1e-4,
    seed: int = 1234,
    device: str | None = None,
    threads: int | None = None,
    nice: int = 0,
    minutes: float | None = None,
    progress: Tell | None = None,
    callbacks: Sequence[Callback] = (),
) -> FinetuneResult:
    """Train weights further on scenes, one or several, in a folder where a stopped run goes on.

    steps, rate: of the run, and its highest learning rate. The others as in `fit`. The new weights
    are written to finetuned.safetensors in the folder only if the interval of their gain lies above
    zero. Raises UsageError if the scenes have too few blocks without missing pixels, SourceError,
    CheckpointError.
    """
    check_local(folder)
    scenes, weights, folder = _several(scenes), os.fspath(weights), Path(folder)
    path = find_weights(weights).path
    checkpoint = read_checkpoint(path)
    upscaler = load(weights, device=device)
    learnt, judged = split(
        [block for scene in scenes for block in blocks_of(scene, upscaler)], seed
    )
    stock = stock_of((pair for block in learnt for pair in block.pairs), upscaler.scale)
    recipe = Recipe(
        name="finetune",
        steps=steps,
        seed=seed,
        network=checkpoint.config,
        data=Data(
            train=tuple(os.fspath(scene) for scene in scenes),
            patches=(Phase(size=min(PATCH, *(min(size) for size in stock.sizes)), batch=8),),
        ),
        optimiser=Optimiser(lr=rate, decay="matrices"),
        schedule=Schedule(kind="cosine", warmup=steps // 20),
        step=Step(clip=1.0, ema=0.99, precision="bf16"),
        checkpoints=Checkpoints(every=50),
        start=Start(weights=weights),
    )
    run = fit(
        recipe,
        folder,
        stock=stock,
        device=device,
        threads=threads,
        nice=nice,
        minutes=minutes,
        progress=progress,
        callbacks=callbacks,
    )
    if not run.finished:
        return FinetuneResult(run, weights, None)
    new = read_checkpoint(run.weights)
    gain = paired_difference(
        scored(new.network(), judged), scored(checkpoint.network(), judged), JUDGED
    )
    result = FinetuneResult(run, weights, gain)
    if not result.improved:
        return result
    facts = {
        **new.training,
        "gain_db": [gain.low, gain.difference, gain.high],
        "gain_rule": JUDGED.how,
    }
    origin = f"{weights}, trained further on {', '.join(Path(scene).name for scene in scenes)}"
    kept = write_checkpoint(
        Path(folder) / "finetuned.safetensors", Checkpoint(new.config, new.weights, origin, facts)
    )
    return FinetuneResult(run, str(kept), gain)


def _several(scenes: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The names of one scene or of several. Raises UsageError."""
    several = [scenes] if isinstance(scenes, str | os.PathLike) else list(scenes)
    if not several or not all(isinstance(scene, str | os.PathLike) for scene in several):
        raise UsageError(f"scenes is {scenes!r:.80}; it takes the path of a raster, or several.")
    return [os.fspath(scene) for scene in several]


def blocks_of(scene: str | os.PathLike[str], upscaler: Upscaler) -> list[Block]:
    """The scene as disjoint blocks without a missing pixel, as the network would see them when it
    enlarges it.

    Bands that the network takes together are a pair; every other band is one of its own, grey. hr
    is uint8 for scenes of 8 bit, otherwise unit float32.
    """
    with open_raster(scene) as raster:
        plan = plan_scene(raster, Path("enlarged.tif"), upscaler, SceneOptions(consistent=False))
        for edge in EDGES:
            blocks = list(_blocks(raster, plan, edge, upscaler.bands))
            if len(blocks) >= FEWEST:
                break
    logger.info("%s: %d blocks of %d pixels.", scene, len(blocks), edge)
    return blocks


def split(blocks: Sequence[Block], seed: int) -> tuple[list[Block], list[Block]]:
    """Blocks to learn from, and blocks to judge on: the same ones for the same seed.

    No two that are judged on share ground, nor does one that is learnt from share any with them:
    what lies on judged ground, in the picture of another day, is in neither. Raises UsageError for
    too few.
    """
    order = np.random.default_rng(seed).permutation(len(blocks))[:MOST]
    judged: list[Block] = []
    learnt = [blocks[index] for index in order]
    fewest = FEWEST // 3
    while learnt and (
        len(judged) < fewest or len(order) - len(learnt) < round(HELD_BACK * len(order))
    ):
        judged.append(learnt[0])
        learnt = [block for block in learnt if not share_ground(block, judged[-1])]
    if len(judged) < fewest or len(learnt) < FEWEST - fewest:
        raise UsageError(
            f"The scenes give {len(blocks)} blocks of at least {EDGES[-1]} x {EDGES[-1]} pixels "
            "without missing ones: "
            f"{len(judged)} to judge on, and {len(learnt)} to learn from that share no ground with "
            "these. At least "
            f"{fewest} and {FEWEST - fewest} are needed, {FEWEST} in all. Give larger scenes, or "
            "more of other ground."
        )
    return learnt, judged


def share_ground(one: Block, other: Block) -> bool:
    """Whether two blocks overlap on one map, by more than an edge: no line along an edge of either
    has them apart.
    """
    for (x0, y0), (x1, y1), _, (x3, y3) in (one.corners, other.corners):
        for dx, dy in ((x1 - x0, y1 - y0), (x3 - x0, y3 - y0)):
            a, b = (
                [(x - x0) * dy - (y - y0) * dx for x, y in block.corners] for block in (one, other)
            )
            shared = min(max(a), max(b)) - max(min(a), min(b))
            if shared <= TOUCHING * min(max(a) - min(a), max(b) - min(b)):
                return False
    return one.map == other.map


def scored(network: RepMamba, blocks: Sequence[Block]) -> dict[str, float]:
    """PSNR in dB of each block by its name, the mean over its pairs, each as JUDGED has it."""
    return {
        block.name: float(
            np.mean([JUDGED.measure(enlarged(network, pair), pair) for pair in block.pairs])
        )
        for block in blocks
    }


def _unit_psnr(sr: NDArray[np.generic], pair: Pair) -> float:
    return psnr(sr, _unit(pair.hr), peak=1.0, crop=pair.scale)


JUDGED = Metric(
    "finetune.psnr",
    "dB",
    True,
    "images",
    "PSNR of unit values, neither rounded nor clipped, peak 1, border of s pixels cut, the mean "
    "over groups of bands",
    _unit_psnr,
)
"""What a gain is measured by. None of METRICS: the scene's own range is the unit, whatever its
type.
"""


def _blocks(raster: Raster, plan: ScenePlan, edge: int, bands: int) -> Iterator[Block]:
    grid, scene = raster.grid, raster.facts.name
    for number, window in enumerate(_windows(grid.height, grid.width, edge)):
        raw, valid = raster.read(window)
        raw = raw[list(plan.places)]
        if not usable(raw, valid, plan.band_nodata).all():
            continue
        name = f"{scene}, block {number}"
        seen = raw if raw.dtype == np.uint8 else plan.radiometry.to_unit(raw).clip(*SEEN)
        pairs = []
        for group in plan.groups:
            together = (
                seen[list(group)]
                if len(group) == bands
                else seen[list(group)].repeat(bands, axis=0)
            )
            hr = np.ascontiguousarray(np.moveaxis(together, 0, -1))
            pairs.append(pair_from_hr(f"{name}, bands {group}", hr, plan.scale))
        placed = replace(grid, transform=grid.transform or Affine.identity())
        where = str(Path(scene).resolve()) if grid.transform is None else grid.crs
        yield Block(name, tuple(pairs), placed.cut(window).corners(), where)


def _windows(height: int, width: int, edge: int) -> list[Window]:
    """The blocks that lie wholly inside, row by row; of more than MOST, as many, evenly spread."""
    windows = [
        Window(row, col, edge, edge)
        for row in range(0, height - edge + 1, edge)
        for col in range(0, width - edge + 1, edge)
    ]
    chosen = np.linspace(0, len(windows) - 1, min(MOST, len(windows))).round().astype(int).tolist()
    return [windows[index] for index in chosen]


def _unit(image: NDArray[np.generic]) -> NDArray[np.float64]:
    return image.astype(np.float64) / (255.0 if image.dtype == np.uint8 else 1.0)
