"""Progress on stderr: a bar on a terminal, log lines elsewhere, nothing with --quiet.

The rooms call back with what is done and the total; this module decides how to show it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from repmamba.cli.terminal import speaks_json, tell

if TYPE_CHECKING:
    from repmamba.train.progress import Progress

logger = logging.getLogger(__name__)

LINES_EVERY = 30.0  # seconds between log lines of images
LOG_EVERY = 0.1  # of the work, between log lines of megapixels
TELL_EVERY = 0.5  # seconds between events of JSON

MEGAPIXELS = (
    "{desc}: {percentage:3.0f}% |{bar}| {n:.1f}/{total:.1f} MP [{elapsed}<{remaining}, {rate_fmt}]"
)
PARTS = "{desc}: {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}]"


def shows_bars(*, quiet: bool) -> bool:
    """Whether to show progress bars: on a terminal, unless --quiet or --json is given."""
    return not quiet and not speaks_json() and sys.stderr.isatty()


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A callback for images done and their total."""
    if shows_bars(quiet=quiet):
        with _bar(what, unit="image") as progress:
            yield progress
    else:
        yield _lines_of_images(what)


@contextmanager
def megapixels(
    name: str, *, quiet: bool, source: str | None = None
) -> Iterator[Callable[[int, int], None] | None]:
    """A callback for pixels done and their total; the bar shows their speed.

    source: the input, as events name it.
    """
    if quiet:
        yield None
    elif speaks_json():
        yield _events(name, source)
    elif shows_bars(quiet=quiet):
        with _bar(name, unit="MP", bar_format=MEGAPIXELS) as progress:
            yield lambda done, total: progress(done / 1e6, total / 1e6)
    else:
        yield _lines_of_megapixels(name)


@contextmanager
def parts(name: str, *, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """A callback for the fraction done, 0 to 1; None without a bar."""
    if not shows_bars(quiet=quiet):
        yield None
        return
    with _bar(name, unit="", bar_format=PARTS) as progress:
        yield lambda done: progress(done, 1)


@contextmanager
def training(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A callback for fit and finetune, with a bar for each stage; None if they log themselves."""
    if not shows_bars(quiet=quiet):
        yield None
        return
    from tqdm import tqdm

    bars: dict[str, Any] = {}
    with ExitStack() as shown:

        def progress(progress: Progress) -> None:
            if progress.what not in bars:
                shown.close()  # what came before is done
                learns = progress.unit == "step"  # and its bar stays
                start = {"total": progress.total, "initial": progress.done}
                bar = tqdm(desc=progress.what, unit=progress.unit, leave=learns, **start)
                bars[progress.what] = shown.enter_context(bar)
            bar = bars[progress.what]
            bar.set_postfix(progress.values, refresh=False)
            bar.update(progress.done - bar.n)

        yield progress


@contextmanager
def _bar(name: str, **looks: str) -> Iterator[Callable[[float, float], None]]:
    """A bar that appears at the first call and closes when all is done."""
    from tqdm import tqdm

    bars: list[Any] = []
    with ExitStack() as shown:

        def progress(done: float, total: float) -> None:
            if bars:
                bars[0].total = total  # a sample can grow
            else:  # start where an earlier run stopped, to show the speed of this one
                start = {"total": total, "initial": done}
                bar = tqdm(desc=name, leave=False, dynamic_ncols=True, **looks, **start)
                bars.append(shown.enter_context(bar))
            bars[0].update(done - bars[0].n)

        yield progress


def _lines_of_images(what: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() > last + LINES_EVERY:
            last = time.monotonic()
            logger.info("%s: %d of %d.", what, done, total)

    return progress


def _events(what: str, source: str | None) -> Callable[[int, int], None]:
    last = -math.inf

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() > last + TELL_EVERY:
            last = time.monotonic()
            tell("progress", what=what, source=source, done=done, total=total, unit="pixels")

    return progress


def _lines_of_megapixels(name: str) -> Callable[[int, int], None]:
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done / total >= last + LOG_EVERY or (done == total and last < 1):
            last = done / total
            logger.info("%s: %.0f %% of %.1f megapixels", name, 100 * last, total / 1e6)

    return progress
