"""The curve of a run, one line of JSON per entry, and its plot.

An entry has a "kind": "step" (step, loss, lr, grad_norm, images_per_s), "validation" (step, psnr,
ssim, rule, images, best) or "note" (step, text). When a run goes on from a save, entries of later
steps are dropped first: a curve never has a step twice.
"""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repmamba.durable import write_durable, write_errors
from repmamba.errors import MissingExtra

logger = logging.getLogger(__name__)

Line = dict[str, Any]


class Curve:
    """The file of a run's curve, continued after `step` steps. Raises TargetError."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in read_curve(path) if line["step"] <= step]
        with write_errors(path):
            write_durable(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, kind: str, step: int, **values: Any) -> Line:
        """Append an entry and return it. A full disk costs the entry, not the run."""
        line: Line = {"kind": kind, "step": step, **values}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as fault:
            logger.warning("A line of %s was lost: %s.", self.path, fault.strerror)
        return line


def read_curve(path: Path) -> Iterator[Line]:
    """The entries of a curve in order, without a line that was only partly written."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def plot_curve(path: Path, target: Path) -> Path:
    """Plot a curve: loss and learning rate over steps, PSNR of the validations.

    Raises MissingExtra, TargetError.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra("A plot needs matplotlib: pip install 'repmamba[train]'.") from missing
    lines = list(read_curve(path))
    steps = [line for line in lines if line["kind"] == "step"]
    validations = [line for line in lines if line["kind"] == "validation"]
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss, psnr = figure.subplots(2, 1, sharex=True)
    loss.plot([line["step"] for line in steps], [line["loss"] for line in steps], linewidth=0.8)
    loss.set(ylabel="loss", yscale="log")
    rate = loss.twinx()
    at = [line["step"] for line in steps]
    rate.plot(at, [line["lr"] for line in steps], color="grey", linewidth=0.8)
    rate.set(ylabel="learning rate (grey)")
    at = [line["step"] for line in validations]
    psnr.plot(at, [line["psnr"] for line in validations], marker=".")
    rule = validations[-1]["rule"] if validations else ""
    psnr.set(xlabel="step", ylabel=f"PSNR, dB, rule {rule}")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    with write_errors(target):
        write_durable(target, picture.getvalue())
    return target
