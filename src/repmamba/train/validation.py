"""Validation during training: whole images, by one named rule, and a picture of crops."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from repmamba.data.degradations import generator_for
from repmamba.data.images import write_png
from repmamba.data.pairs import Pair, PairFiles, find_pairs, read_pairs
from repmamba.errors import RecipeError, ShapeMismatch, TargetError, UsageError, warn
from repmamba.evaluate.metrics import average, metrics_of, peak_of, score
from repmamba.network.repmamba import RepMamba
from repmamba.train.batches import chain_of
from repmamba.train.recipe import Recipe

logger = logging.getLogger(__name__)

CROP = 160  # largest side of a pictured crop, in hr pixels


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The scores after `step` steps: psnr in dB and ssim, means by the rule over `images`."""

    step: int
    psnr: float
    ssim: float
    rule: str
    images: int

    def summary(self) -> str:
        """The scores as text."""
        return (
            f"After step {self.step}: {self.psnr:.3f} dB, SSIM {self.ssim:.4f} ({self.rule}, "
            f"{self.images} images)"
        )


class Validator:
    """The validation pairs of a recipe, in memory.

    If the recipe degrades, missing lr images are made once, seeded by the recipe and the image's
    name.
    progress: called with the number of images read, and their total. Raises SourceError,
    UsageError; RecipeError for a pair that the rule cannot score.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        rule = recipe.validation.rule
        self.metrics = metrics_of([f"{rule}.psnr", f"{rule}.ssim"])
        files = _spread(recipe)
        if files:
            logger.info("Reading %d validation images: %s.", len(files), ", ".join(recipe.data.val))
        pairs = zip(files, read_pairs(files, recipe.network.scale, progress=progress), strict=True)
        self.pairs = [pair if one.lr else degraded(pair, recipe) for one, pair in pairs]
        self._check()

    def validate(
        self,
        network: RepMamba,
        step: int,
        *,
        pictured: Callable[[int, NDArray[np.uint8]], None] | None = None,
    ) -> ValidationResult:
        """Score the network; the modes of its parts are restored.

        A picture of crops is written to the run's folder, or a warning if that fails. pictured:
        called with the step and the picture.
        """
        values: dict[str, dict[str, float]] = {}
        shown: list[tuple[Pair, NDArray[np.float32]]] = []
        modes = [(part, part.training) for part in network.modules()]
        network.eval()
        for pair in self.pairs:
            sr = predict(network, pair)
            values[pair.name] = score(sr, pair, self.metrics)
            if len(shown) < self.recipe.validation.crops:
                shown.append((pair, sr))
        for part, mode in modes:
            part.training = mode
        if shown:
            crops = picture(shown)
            if pictured is not None:
                pictured(step, crops)
            try:
                write_png(self.folder / "crops" / f"step-{step:08d}.png", crops)
            except TargetError as fault:
                logger.warning("No picture of this validation: %s", fault)
        psnr, ssim = (
            average({name: one[metric.name] for name, one in values.items()}, metric.mean)
            for metric in self.metrics
        )
        return ValidationResult(step, psnr, ssim, self.recipe.validation.rule, len(self.pairs))

    def _check(self) -> None:
        """Score the smallest pair of each kind against itself, to find errors before step 1."""
        rule, bands = self.recipe.validation.rule, self.recipe.network.in_chans
        largest_first = sorted(self.pairs, key=lambda pair: -min(pair.hr.shape[:2]))
        for pair in {(pair.hr.shape[2], pair.hr.dtype): pair for pair in largest_first}.values():
            if pair.hr.shape[2] != bands:
                raise RecipeError(
                    f"{pair.name}, of data.val, has {pair.hr.shape[2]} bands, but the network "
                    f"takes {bands}; set network.in_chans, or name folders of such images."
                )
            try:
                score(pair.hr, pair, self.metrics)
            except UsageError as fault:
                raise RecipeError(
                    f"validation.rule is {rule}, which cannot score an image: {fault}"
                ) from fault


def degraded(pair: Pair, recipe: Recipe) -> Pair:
    """The pair with an lr made as for training. Raises RecipeError if that is not possible."""
    chain = chain_of(recipe)
    if chain is None:
        return pair
    try:
        return replace(pair, lr=chain(pair.hr, generator_for(recipe.seed, pair.name)))
    except ShapeMismatch as fault:
        raise RecipeError(
            f"The recipe degrades, and {pair.name}, of data.val, cannot be degraded: {fault}"
        ) from fault


def warn_of_shared(files: Sequence[PairFiles], recipe: Recipe) -> None:
    """Warn if images are in data.train and in data.val: the validation would favour overfitting."""
    learnt = {one.hr.resolve() for one in files}
    shared = [one.hr for one in _found(recipe) if one.hr.resolve() in learnt]
    if shared:
        warn(
            f"{len(shared)} images are in data.train and in data.val, such as {shared[0]}: the "
            "validation says nothing about other images, but chooses the best weights. Hold some "
            "out, as prepare --val does."
        )


@torch.inference_mode()
def predict(network: RepMamba, pair: Pair) -> NDArray[np.float32]:
    """The network's result on a whole pair: (s h, s w, C), unit, not clamped."""
    lr = torch.from_numpy(np.ascontiguousarray(pair.lr)).to(network.mean.device)
    lr = lr.permute(2, 0, 1)[None]
    unit = lr.float() / (peak_of(pair.lr) if np.issubdtype(pair.lr.dtype, np.integer) else 1.0)
    sr: NDArray[np.float32] = network(unit)[0].permute(1, 2, 0).float().cpu().numpy()
    return sr


def picture(shown: Sequence[tuple[Pair, NDArray[np.float32]]]) -> NDArray[np.uint8]:
    """(rows, columns, 3), one row per pair: the middle of lr (pixels as squares), sr and hr."""
    rows = []
    for pair, sr in shown:
        side = min(CROP // pair.scale, *pair.lr.shape[:2])
        lr = _middle(pair.lr, side).repeat(pair.scale, axis=0).repeat(pair.scale, axis=1)
        large = (_middle(image, side * pair.scale) for image in (_levels(sr, pair), pair.hr))
        panels = [lr, *large]
        rows.append(np.concatenate([_shown(panel, pair) for panel in panels], axis=1))
    width = max(row.shape[1] for row in rows)
    margins = (((0, 4), (0, width - row.shape[1]), (0, 0)) for row in rows)
    return np.concatenate([*map(np.pad, rows, margins)])


def _found(recipe: Recipe) -> list[PairFiles]:
    # with the folder's name, because two folders may have files of the same name
    return [
        replace(one, name=f"{folder}/{one.name}")
        for folder in recipe.data.val
        for one in find_pairs(Path(folder))
    ]


def _spread(recipe: Recipe) -> list[PairFiles]:
    files = _found(recipe)
    count = min(recipe.validation.images or len(files), len(files))
    chosen = np.linspace(0, len(files) - 1, count).round().astype(int)
    return [files[index] for index in chosen]


def _middle(image: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _levels(sr: NDArray[np.float32], pair: Pair) -> NDArray[np.generic]:
    if not np.issubdtype(pair.hr.dtype, np.integer):
        return sr
    peak = peak_of(pair.hr)
    levels: NDArray[np.generic] = np.clip(sr * peak, 0, peak).round().astype(pair.hr.dtype)
    return levels


def _shown(panel: NDArray[np.generic], pair: Pair) -> NDArray[np.uint8]:
    """Three 8-bit bands: the first three, or the first thrice; other types scaled to hr's range."""
    bands = panel[..., :3] if panel.shape[2] >= 3 else panel[..., :1].repeat(3, axis=2)
    low, high = 0.0, 255.0
    if bands.dtype != np.uint8:
        low, high = float(pair.hr.min()), float(pair.hr.max())
    unit: NDArray[np.float64] = (bands.astype(np.float64) - low) / max(high - low, 1e-12)
    return (np.clip(unit, 0, 1) * 255).astype(np.uint8)
