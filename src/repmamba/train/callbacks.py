"""Callbacks: who is told what a run sees, while it runs. TensorBoard's files are written by one of
them.

The first process of a run calls them, in their order; what one raises ends the run, which then goes
on from its last save. To write for W&B, MLflow or a page of your own is to override the methods
that you need (docs/how-to/training.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import MissingExtra
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import recipe_text
from repmamba.train.validation import Judgement


class Callback:
    """The base of all: each method does nothing."""

    def begin(self, recipe: Recipe, folder: Path, step: int) -> None:
        """The run begins, or goes on after `step` steps. recipe: counted in steps.  folder: of the
        run.
        """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the curve, every `log_every` steps: loss, lr and grad_norm since the last one,
        images_per_s.
        """

    def validation(self, judgement: Judgement, *, best: bool) -> None:
        """The validation images were scored. best: higher than ever before in this run."""

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """A picture of that validation, (rows, columns, 3): one row an image, its lr, sr and hr
        side by side.
        """

    def end(self) -> None:
        """The run is over, has stopped to be gone on with, or has failed. Called once for each
        `begin`.
        """


class TensorBoard(Callback):
    """TensorBoard's files in the run's folder: curves, pictures, and the recipe as text. Raises
    MissingExtra.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise MissingExtra(
                "TensorBoard's files need tensorboard: pip install 'repmamba[train]'."
            ) from missing
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, recipe: Recipe, folder: Path, step: int) -> None:
        """Open the files, in which nothing after `step` steps counts any more."""
        self._writer = self._make(str(folder), purge_step=step + 1)
        # code, to TensorBoard
        indented = "\n".join(f"    {line}" for line in recipe_text(recipe).splitlines())
        self._writer.add_text("recipe", indented, step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Each value as a curve of its own."""
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def validation(self, judgement: Judgement, *, best: bool) -> None:
        """PSNR and SSIM as curves."""
        self._writer.add_scalar("validation/psnr", judgement.psnr, judgement.step)
        self._writer.add_scalar("validation/ssim", judgement.ssim, judgement.step)

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """The picture as it is."""
        self._writer.add_image("validation/lr, sr, hr", picture, step, dataformats="HWC")

    def end(self) -> None:
        """Close the files."""
        self._writer.close()
