"""How far a run is: a value for whoever shows it, and the log lines of a run that nobody
watches.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

LINES_EVERY = 30.0
"""Seconds between log lines."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is in what it does at the moment."""

    what: str  # it does: reads, or learns by the recipe of that name
    unit: str  # image or step
    done: int
    total: int
    # what was measured last: loss, psnr, lr, img_s
    values: Mapping[str, str] = field(default_factory=dict)
    # of training, at the speed of this call so far, validations left out
    seconds_left: float | None = None

    def __str__(self) -> str:
        measured = "".join(f", {name} {value}" for name, value in self.values.items())
        left = "" if self.seconds_left is None else f"; {_clock(self.seconds_left)} left"
        return f"{self.unit.capitalize()} {self.done} of {self.total}{measured}{left}."


ProgressCallback = Callable[[Progress], None]


def log_lines() -> ProgressCallback:
    """What logs a line of what it is told, once in LINES_EVERY seconds."""
    said = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal said
        if time.monotonic() > said + LINES_EVERY:
            said = time.monotonic()
            logger.info("%s", progress)

    return tell


def image_progress(what: str, tell: ProgressCallback) -> Callable[[int, int], None]:
    """What tells how many of how many images are read."""
    return lambda done, total: tell(Progress(what, "image", done, total))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
