"""Callbacks, called during a run, and the one that writes TensorBoard files.

The first process of a run calls them, in their order. An exception ends the run, which can then go
on from its last save. To log to W&B, MLflow or a page of your own, override the methods that you
need (docs/how-to/training.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import MissingExtra
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import recipe_text
from repmamba.train.validation import ValidationResult


class Callback:
    """Base class; each method does nothing."""

    def begin(self, recipe: Recipe, folder: Path, step: int) -> None:
        """The run begins, or goes on after `step` steps.

        recipe: in steps.  folder: of the run.
        """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Every `log_every` steps: loss, lr and grad_norm since the last call, images_per_s."""

    def validation(self, result: ValidationResult, *, best: bool) -> None:
        """After each validation. best: whether it is the best of this run so far."""

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """A picture of that validation, (rows, columns, 3): per row lr, sr and hr of an image."""

    def end(self) -> None:
        """The run is finished, interrupted or failed. Called once for each `begin`."""


class TensorBoard(Callback):
    """Writes TensorBoard files to the run's folder: curves, pictures and the recipe.

    Raises MissingExtra.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise MissingExtra(
                "TensorBoard files need tensorboard: pip install 'repmamba[train]'."
            ) from missing
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, recipe: Recipe, folder: Path, step: int) -> None:
        """Open the files; entries after `step` steps are discarded."""
        self._writer = self._make(str(folder), purge_step=step + 1)
        # shown as code
        indented = "\n".join(f"    {line}" for line in recipe_text(recipe).splitlines())
        self._writer.add_text("recipe", indented, step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each value."""
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def validation(self, result: ValidationResult, *, best: bool) -> None:
        """Add points to the curves of PSNR and SSIM."""
        self._writer.add_scalar("validation/psnr", result.psnr, result.step)
        self._writer.add_scalar("validation/ssim", result.ssim, result.step)

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Add the picture."""
        self._writer.add_image("validation/lr, sr, hr", picture, step, dataformats="HWC")

    def end(self) -> None:
        """Close the files."""
        self._writer.close()
