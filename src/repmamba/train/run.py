"""Run: the state of a training run between steps, and its folder.

The folder contains recipe.toml; curve.jsonl, one line per entry; best.safetensors, last.safetensors
and step-N.safetensors of archived steps, for `load`; saves/, to go on from; crops/, a picture of
each validation; and curve.png at the end.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmamba.errors import MissingExtra, TargetError, TrainingStopped
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.train.curves import plot_curve
from repmamba.train.distributed import Processes
from repmamba.train.learner import Learner
from repmamba.train.monitor import Monitor
from repmamba.train.recipe import Recipe
from repmamba.train.saves import newest_save, prune_saves, write_save
from repmamba.train.step import Batch
from repmamba.train.validation import ValidationResult

logger = logging.getLogger(__name__)

SMOOTHING = 0.98  # share of the smoothed loss kept at each step: a memory of about 50 steps
SETTLING = 100  # steps before the smoothed loss is compared with its minimum


@dataclass(frozen=True, slots=True)
class FitResult:
    """The outcome of a call of fit.

    weights: the best weights, or the last if nothing was validated.
    steps: done so far, by all calls.
    psnr: of the best validation, in dB by the recipe's rule, or None.
    """

    weights: Path
    steps: int
    finished: bool
    psnr: float | None
    best_step: int
    rule: str

    def __repr__(self) -> str:
        return f"<FitResult {self.summary()}>"

    def summary(self) -> str:
        """One line for the user."""
        state = "Finished" if self.finished else "Interrupted"
        best = ""
        if self.psnr is not None:
            best = f"; best {self.psnr:.3f} dB ({self.rule}), at step {self.best_step}"
        return f"{state} after {self.steps} steps{best}; weights in {self.weights}."


@dataclass(slots=True)
class RunState:
    """Counters and losses of a run: plain values, saved with it.

    step: steps done.
    pending: losses and gradient norms since the last entry of the curve.
    smoothed, lowest: the smoothed loss and its minimum.
    best, best_step: the highest PSNR in dB, and its step.
    """

    step: int = 0
    pending: list[list[float]] = field(default_factory=list)
    smoothed: float = math.nan
    lowest: float = math.inf
    best: float = -math.inf
    best_step: int = 0


class Run:
    """A run between steps: the learner, the counters and the folder that stores both.

    images: checksums of the training images, saved with the run; only in the first process.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        learner: Learner,
        processes: Processes,
        images: Tensor | None = None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.learner = learner
        self.processes = processes
        self.images = images
        self.progress = RunState()
        # losses and gradient norms of steps that the device may not have finished
        self._unread: list[Tensor] = []
        self._rate = 0.0
        self._unsaved: TargetError | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    def due(self, every: int) -> bool:
        """Whether something that happens every `every` steps is due; at the end everything is."""
        return self.step % every == 0 or self.step == self.recipe.steps

    def agreed(self, leave: bool) -> bool:
        """Whether all processes stop now, as the first one says.

        Several processes only ask at every tenth step.
        """
        return (self.processes.world == 1 or self.step % 10 == 0) and self.processes.agree(leave)

    def take(self, batch: Batch, *, surplus: bool) -> None:
        """Train one step."""
        result = self.learner.step(batch, self.recipe.rate(self.step), surplus=surplus)
        self._unread.append(torch.stack([result.loss, result.gradient_norm]))
        self._rate = result.learning_rate
        self.progress.step += 1

    def measured(self) -> tuple[float, float, float]:
        """Mean loss and gradient norm since the last call, and the learning rate.

        Raises TrainingStopped.
        """
        self.watch()
        losses, norms = zip(*self.progress.pending, strict=True)
        self.progress.pending = []
        return math.fsum(losses) / len(losses), math.fsum(norms) / len(norms), self._rate

    def watch(self) -> None:
        """Read the losses of the last steps.

        Raises TrainingStopped if one is not finite, or the loss diverges.
        """
        if not self._unread:
            return
        progress = self.progress
        seen = self.processes.mean(torch.stack(self._unread)).tolist()
        first = progress.step - len(seen) + 1
        for step, (loss, norm) in enumerate(seen, first):
            if not math.isfinite(loss) or not math.isfinite(norm):
                what = f"the loss is {loss:g} and the gradient norm {norm:g}"
                raise TrainingStopped(self._fault(step, what))
            kept = SMOOTHING if math.isfinite(progress.smoothed) else 0.0
            progress.smoothed = loss if not kept else kept * progress.smoothed + (1 - kept) * loss
            if step >= SETTLING:
                progress.lowest = min(progress.lowest, progress.smoothed)
            if progress.smoothed > self.recipe.divergence * progress.lowest:
                grown = (
                    f"more than {self.recipe.divergence:g} times its lowest, {progress.lowest:.4g}"
                )
                what = f"the loss, {progress.smoothed:.4g}, has grown to {grown}"
                raise TrainingStopped(self._fault(step, what))
        progress.pending += seen
        self._unread = []

    def ranked(self, result: ValidationResult) -> bool:
        """Whether this is the best validation so far; then its weights are in best.safetensors."""
        if not result.psnr > self.progress.best:
            return False
        try:
            self._write_weights("best.safetensors", result)
        except TargetError as fault:
            logger.warning("The best weights so far were not written: %s", fault)
            return False
        self.progress.best, self.progress.best_step = result.psnr, result.step
        return True

    def save(self, monitor: Monitor) -> None:
        """Save the run. If the disk is full, warn and go on without this save."""
        self.watch()
        if not self.processes.first:
            return
        state = {
            "progress": asdict(self.progress),
            "learner": self.learner.state(),
            "images": self.images,
        }
        self._unsaved = None
        self._try(monitor, lambda: write_save(self.saves, self.step, state))
        self._try(monitor, lambda: self._write_weights("last.safetensors", None))
        if self._archived(self.step):
            name = f"step-{self.step:08d}.safetensors"
            self._try(monitor, lambda: self._write_weights(name, None))
        prune_saves(self.saves, self.recipe.checkpoints.keep, self._archived)

    def close(self) -> None:
        """Plot the curve. Raises TargetError if part of the last save could not be written."""
        if self.processes.first:
            try:
                plot_curve(self.folder / "curve.jsonl", self.folder / "curve.png")
            except MissingExtra as missing:
                logger.info("No picture of the curve: %s", missing)
            except TargetError as fault:
                logger.warning("No picture of the curve: %s", fault)
        if self._unsaved is not None:
            raise self._unsaved
        self.processes.wait()

    def result(self) -> FitResult:
        """The outcome so far."""
        progress = self.progress
        judged = progress.best_step > 0
        return FitResult(
            weights=self.folder / ("best.safetensors" if judged else "last.safetensors"),
            steps=progress.step,
            finished=progress.step == self.recipe.steps,
            psnr=progress.best if judged else None,
            best_step=progress.best_step,
            rule=self.recipe.validation.rule,
        )

    @property
    def saves(self) -> Path:
        """The folder of saves."""
        return self.folder / "saves"

    def _archived(self, step: int) -> bool:
        every = self.recipe.checkpoints.archive
        return every > 0 and step % every == 0

    def _try(self, monitor: Monitor, write: Callable[[], object]) -> None:
        try:
            write()
        except TargetError as fault:
            logger.warning("%s Training continues; earlier files are unchanged.", fault)
            monitor.note(self.step, str(fault))
            self._unsaved = self._unsaved or fault

    def _write_weights(self, name: str, result: ValidationResult | None) -> None:
        facts: dict[str, Any] = {"recipe": self.recipe.to_dict(), "steps": self.step}
        if self.learner.begun_from is not None:
            facts["begun_from"] = self.learner.begun_from
        if result is not None:
            facts["validation"] = asdict(result)
        origin = f"repmamba train, recipe {self.recipe.name}, {self.step} steps"
        checkpoint = Checkpoint.of(self.learner.best_network, origin=origin, training=facts)
        write_checkpoint(self.folder / name, checkpoint)

    def _fault(self, step: int, what: str) -> str:
        if not self.processes.first:
            return f"Stopped at step {step}: {what}. The first process prints the last good save."
        newest = newest_save(self.saves)
        good = f"there is no good save in {self.saves}"
        if newest:
            good = f"the last good save is {newest[0]}"
        advice = "Try a lower optimiser.lr, a longer schedule.warmup or step.clip, in a new folder"
        return f"Stopped at step {step}: {what}; {good}. {advice}."
