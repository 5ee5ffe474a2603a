"""What a run shows while it goes on: its curve, a bar on stderr, TensorBoard's files."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from repmamba.errors import MissingExtra
from repmamba.train.curves import Curve
from repmamba.train.recipe import Recipe
from repmamba.train.validation import Judgement


class Monitor:
    """The lines, the bar and the events of one run, from `step` steps on; used as a context.

    writes: False for all but the first process, which then shows nothing at all.
    """

    def __init__(self, folder: Path, recipe: Recipe, step: int, *, writes: bool, bar: bool, tensorboard: bool) -> None:
        self._curve = Curve(folder / "curve.jsonl", step) if writes else None
        self._bar = tqdm(total=recipe.steps, initial=step, desc=recipe.name, unit="step", disable=not (bar and writes))
        self._events = event_writer(folder) if tensorboard and writes else None
        self._shown: dict[str, str] = {}
        self._images = 0
        self._since = self._paused = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._events is not None:
            self._events.close()

    def stepped(self, images: int) -> None:
        """One step more, of so many images over all processes."""
        self._images += images
        self._bar.update()

    def log(self, step: int, loss: float, gradient_norm: float, rate: float) -> None:
        """A line of what happened since the last one; the speed is measured from there, too."""
        now = time.monotonic()
        speed = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        values = {"loss": loss, "lr": rate, "grad_norm": gradient_norm, "images_per_s": round(speed, 2)}
        self._write("step", step, values)
        self._show(loss=f"{loss:.5f}", lr=f"{rate:.2e}", img_s=f"{speed:.1f}")

    def judged(self, judgement: Judgement, *, best: bool) -> None:
        """A line of a validation; the time that it took does not count as training."""
        self._since += time.monotonic() - self._paused
        values = {"psnr": judgement.psnr, "ssim": judgement.ssim, "rule": judgement.rule, "images": judgement.images}
        self._write("validation", judgement.step, values | {"best": best})
        self._show(psnr=f"{judgement.psnr:.3f}{'*' if best else ''}")

    def pause(self) -> None:
        """From here to the next `judged`, the clock of the speed stands still."""
        self._paused = time.monotonic()

    def note(self, step: int, text: str) -> None:
        """A line of something out of the ordinary."""
        self._write("note", step, {"text": text})

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._curve is not None:
            self._curve.add(kind, step, **values)
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def _show(self, **values: str) -> None:
        self._shown |= values
        self._bar.set_postfix(self._shown, refresh=False)


def event_writer(folder: Path) -> Any:
    """TensorBoard's writer into the folder. Raises MissingExtra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise MissingExtra("TensorBoard's files need tensorboard: pip install 'repmamba[train]'.") from missing
    return SummaryWriter(str(folder))
