"""finetune: train a network further on scenes, and keep it only if held-out blocks show a gain.

The network learns the look of this ground and sensor, one scale step away from where it will be
used. The old and the new weights are compared on blocks of ground that no training patch touches,
in any scene.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repmamba.data.pairs import Pair
from repmamba.data.patches import Phase
from repmamba.data.stock import Stock, stock_of
from repmamba.durable import check_local
from repmamba.errors import UsageError
from repmamba.evaluate.metrics import Metric, psnr
from repmamba.evaluate.scores import Paired, paired_difference
from repmamba.finetuning.blocks import Block, blocks_of, split
from repmamba.inference.catalogue import find_weights
from repmamba.inference.loading import load
from repmamba.network.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.scene.source.admission import ReadOptions
from repmamba.train.callbacks import Callback
from repmamba.train.loop import fit
from repmamba.train.progress import ProgressCallback
from repmamba.train.recipe import Checkpoints, Data, Optimiser, Recipe, Schedule, Start, Step
from repmamba.train.run import FitResult
from repmamba.train.validation import predict

PATCH = 32  # largest side of a training patch, in lr pixels


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The outcome of finetuning.

    weights: those to use from now on: the new file, or the old weights.
    gain: PSNR of the new weights minus that of the old on the held-out blocks, in dB, with its
    interval; None if the run is not finished.
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
        gain = self.gain
        seen = f"{gain.difference:+.3f} dB on {gain.count} held-out blocks ({GAIN_METRIC.how})"
        interval = f"95 % interval {gain.low:+.3f} to {gain.high:+.3f}"
        verdict = "not clearly a gain; keep the old weights"
        if self.improved:
            verdict = "a gain; use the new weights"
        return f"{seen}, {interval}: {verdict} {self.weights}"


def finetune(
    scenes: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    weights: str | os.PathLike[str] = "x4",
    *,
    steps: int = 600,
    rate: float = 1e-4,
    seed: int = 1234,
    nodata: float | Sequence[float] | Literal["none"] | None = None,
    device: str | None = None,
    threads: int | None = None,
    nice: int = 0,
    minutes: float | None = None,
    progress: ProgressCallback | None = None,
    callbacks: Sequence[Callback] = (),
) -> FinetuneResult:
    """Train weights further on scenes, and keep them only if they gain on held-out blocks.

    An interrupted run goes on when called again. The new weights are written to
    finetuned.safetensors in the folder only if the interval of their gain lies above zero.

    Args:
        scenes: The path of a raster, or several.
        folder: Of the run; created if needed.
        weights: Where to start: packaged weights, a checkpoint file or folder, or a hub repository.
        steps: Length of the run.
        rate: Highest learning rate.
        seed: Of the held-out blocks and the samples.
        nodata: The nodata value of every scene, or one per band, in place of what it declares.
            "none": no value is nodata.
        device: Default: a CUDA GPU if there is one, otherwise the CPU.
        threads: torch threads of this process.
        nice: Niceness of this process.
        minutes: Save and return after this time; a later call goes on.
        progress: Called with the Progress. Default: log lines.
        callbacks: `repmamba.Callback` objects, called during training.

    Returns:
        The weights to use, and their gain.

    Raises:
        UsageError: The scenes have too few blocks without missing pixels.
        SourceError: A scene cannot be read.
        CheckpointError: The weights cannot be used.
        JobChanged: The folder holds another run.
        TargetError: The folder cannot be written.
    """
    check_local(folder)
    weights = os.fspath(weights)
    several = [scenes] if isinstance(scenes, str | os.PathLike) else scenes
    names = [os.fspath(scene) for scene in several]
    if not names:
        raise UsageError("There is no scene to train on; name at least one.")
    how = ReadOptions(nodata=nodata)  # type: ignore[arg-type]  # it converts the type
    old = read_checkpoint(find_weights(weights).path)
    upscaler = load(weights, device=device)
    blocks = [block for name in names for block in blocks_of(name, upscaler, how)]
    training, held_out = split(blocks, seed)
    stock = stock_of((pair for block in training for pair in block.pairs), upscaler.scale)
    run = fit(
        _recipe(old.config, names, stock, weights, steps=steps, rate=rate, seed=seed),
        Path(folder),
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
    after, before = (scored(one.network(), held_out) for one in (new, old))
    gain = paired_difference(after, before, GAIN_METRIC)
    result = FinetuneResult(run, weights, gain)
    if not result.improved:
        return result
    measured = {"gain_db": [gain.low, gain.difference, gain.high], "gain_rule": GAIN_METRIC.how}
    facts = {**new.training, **measured}
    origin = f"{weights}, trained further on {', '.join(Path(name).name for name in names)}"
    checkpoint = Checkpoint(new.config, new.weights, origin, facts)
    kept = write_checkpoint(Path(folder) / "finetuned.safetensors", checkpoint)
    return FinetuneResult(run, str(kept), gain)


def _recipe(
    network: NetworkConfig,
    scenes: Sequence[str],
    stock: Stock,
    weights: str,
    *,
    steps: int,
    rate: float,
    seed: int,
) -> Recipe:
    return Recipe(
        name="finetune",
        steps=steps,
        seed=seed,
        network=network,
        data=Data(
            train=tuple(scenes),
            patches=(Phase(size=min(PATCH, *(min(size) for size in stock.sizes)), batch=8),),
        ),
        optimiser=Optimiser(lr=rate, decay="matrices"),
        schedule=Schedule(kind="cosine", warmup=steps // 20),
        step=Step(clip=1.0, ema=0.99, precision="bf16"),
        checkpoints=Checkpoints(every=50),
        start=Start(weights=weights),
    )


def scored(network: RepMamba, blocks: Sequence[Block]) -> dict[str, float]:
    """PSNR in dB of each block by its name, the mean over its pairs."""

    def score(pair: Pair) -> float:
        return GAIN_METRIC.measure(predict(network, pair), pair)

    return {block.name: float(np.mean([*map(score, block.pairs)])) for block in blocks}


def _unit_psnr(sr: NDArray[np.generic], pair: Pair) -> float:
    return psnr(sr, _unit(pair.hr), peak=1.0, crop=pair.scale)


# metric of a gain; not one of METRICS, because the unit is the scene's own range
GAIN_METRIC = Metric(
    "finetune.psnr",
    "dB",
    True,
    "images",
    "PSNR of unit values, neither rounded nor clipped, peak 1, border of s pixels cut, the mean "
    "over groups of bands",
    _unit_psnr,
)


def _unit(image: NDArray[np.generic]) -> NDArray[np.float64]:
    return image.astype(np.float64) / (255.0 if image.dtype == np.uint8 else 1.0)
