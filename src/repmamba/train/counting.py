"""How far something is: a bar on stderr where there is a terminal, elsewhere a log line now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINES_EVERY = 30.0
"""Seconds between log lines where there is no bar."""


@contextmanager
def counting(what: str, *, bar: bool) -> Iterator[Callable[[int, int], None]]:
    """What is to be called with how many of how many are done: shown by a bar on stderr, or now and then by a line."""
    said = time.monotonic()
    with tqdm(desc=what, unit="image", leave=False, disable=not bar) as shown:

        def progress(done: int, total: int) -> None:
            nonlocal said
            shown.total = total
            shown.update(done - shown.n)
            if not bar and time.monotonic() > said + LINES_EVERY:
                said = time.monotonic()
                logger.info("%s: %d of %d.", what, done, total)

        yield progress
