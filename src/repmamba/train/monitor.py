"""What a run shows: its heading, then the curve, the progress and the callbacks."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from repmamba.evaluate.cost import parameters
from repmamba.train.callbacks import Callback
from repmamba.train.curves import Curve
from repmamba.train.distributed import Processes
from repmamba.train.progress import Progress, ProgressCallback
from repmamba.train.recipe import Recipe
from repmamba.train.validation import ValidationResult

logger = logging.getLogger(__name__)


def heading(recipe: Recipe, device: torch.device, processes: Processes) -> list[str]:
    """Lines for the user about what will be trained, and on what."""
    first, *later = recipe.data.patches
    patches = f"{first.batch} patches of {first.size}x{first.size} LR pixels"
    patches += "".join(
        f", {one.batch} of {one.size}x{one.size} from {one.start:,} on" for one in later
    )
    sources = " and ".join([recipe.start.weights, *recipe.start.mean_with])
    mean = "the mean of " * bool(recipe.start.mean_with)
    start = f"begun from {mean}{sources}" if sources else f"from a {recipe.start.kind} start"
    network = (
        f"x{recipe.network.scale} network of {parameters(recipe.network):,} parameters, {start}"
    )
    losses = " + ".join(
        term.name if term.weight == 1 else f"{term.weight:g} {term.name}" for term in recipe.losses
    )
    place = f"threads: {torch.get_num_threads()}"
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    norm = {
        "process": "of each one alone",
        "synchronised": "over all of them",
        "frozen": "with frozen statistics",
    }[recipe.step.batch_norm]
    shared = f", one of {processes.world} processes, BatchNorm {norm}" * (processes.world > 1)
    return [
        f"{recipe.name}: {network}; {recipe.steps:,} {recipe.unit}s of {patches}, loss {losses}, "
        f"learning rate up to {recipe.optimiser.lr:g}.",
        f"On {device} ({place}{shared}), in {recipe.step.precision}.",
    ]


class Monitor:
    """Writes the curve of a run from `step` steps on, and calls progress and callbacks; a context.

    writes: False for all but the first process, which show nothing.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        step: int,
        *,
        writes: bool,
        tell: ProgressCallback,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._curve = Curve(folder / "curve.jsonl", step) if writes else None
        self._callbacks = tuple(callbacks) if writes else ()
        self._recipe, self._folder = recipe, folder
        self._ends = ExitStack()
        self._shown: dict[str, str] = {}
        self._tell = tell
        self._name, self._steps = recipe.name, recipe.steps
        self._step, self._first = step, step
        self._images = 0
        self._begun = self._since = self._paused = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            for callback in self._callbacks:
                callback.begin(self._recipe, self._folder, self._step)
                ends.callback(callback.end)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    def stepped(self, images: int) -> None:
        """A step is done. images: its batch size over all processes."""
        self._images += images
        self._step += 1
        each = (time.monotonic() - self._begun) / (self._step - self._first)
        left = (self._steps - self._step) * each
        self._tell(Progress(self._name, "step", self._step, self._steps, dict(self._shown), left))

    def log(self, step: int, loss: float, gradient_norm: float, rate: float) -> None:
        """Write an entry for the steps since the last one, with their speed."""
        now = time.monotonic()
        speed = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        values = {"loss": loss, "lr": rate, "grad_norm": gradient_norm}
        values["images_per_s"] = round(speed, 2)
        self._write("step", step, values)
        for callback in self._callbacks:
            callback.step(step, values)
        self._shown |= {"loss": f"{loss:.5f}", "lr": f"{rate:.2e}", "img_s": f"{speed:.1f}"}

    def validated(self, result: ValidationResult, *, best: bool) -> None:
        """Write an entry for a validation; its time does not count as training."""
        pause = time.monotonic() - self._paused
        self._since += pause
        self._begun += pause
        values = {name: getattr(result, name) for name in ("psnr", "ssim", "rule", "images")}
        self._write("validation", result.step, values | {"best": best})
        for callback in self._callbacks:
            callback.validation(result, best=best)
        self._shown["psnr"] = f"{result.psnr:.3f}{'*' if best else ''}"
        logger.info("%s%s", result.summary(), "; the best so far." if best else ".")

    def pictured(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Pass a validation's picture to the callbacks."""
        for callback in self._callbacks:
            callback.picture(step, picture)

    def pause(self) -> None:
        """Stop the clock of the speed until the next `validated`."""
        self._paused = time.monotonic()

    def note(self, step: int, text: str) -> None:
        """Write a note."""
        self._write("note", step, {"text": text})

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._curve is not None:
            self._curve.add(kind, step, **values)
