"""Progress of a run: a value for displays, and log lines where there is no display."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

LINES_EVERY = 30.0  # seconds between log lines


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is in its current activity."""

    what: str  # Reading ..., or the name of the recipe
    unit: str  # "image" or "step"
    done: int
    total: int
    values: Mapping[str, str] = field(default_factory=dict)  # last measured: loss, psnr, lr, img_s
    # of training, at the speed of this call so far, without validations
    seconds_left: float | None = None

    def __str__(self) -> str:
        measured = "".join(f", {name} {value}" for name, value in self.values.items())
        left = "" if self.seconds_left is None else f"; {_clock(self.seconds_left)} left"
        return f"{self.unit.capitalize()} {self.done} of {self.total}{measured}{left}."


ProgressCallback = Callable[[Progress], None]


def log_lines() -> ProgressCallback:
    """A callback that logs a line at most once in LINES_EVERY seconds."""
    said = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal said
        if time.monotonic() > said + LINES_EVERY:
            said = time.monotonic()
            logger.info("%s", progress)

    return tell


def image_progress(what: str, tell: ProgressCallback) -> Callable[[int, int], None]:
    """A callback for the number of images read, and their total."""
    return lambda done, total: tell(Progress(what, "image", done, total))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
