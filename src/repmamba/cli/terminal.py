"""Output to the terminal: errors and warnings as one line, text from files made printable.

Results go to stdout, everything else to stderr. With --json, results, progress, warnings and errors
are events on stdout, one JSON object per line. Other rooms only log and warn. Their messages name
options as in Python, tile=256; here they become flags, --tile 256.
"""

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from repmamba.errors import RepmambaWarning


def printable(text: object) -> str:
    """The text on one line, with control characters escaped, since names and tags may have some."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in " ".join(str(text).split())
    )


# flags of the command line, without dashes, that have another name than the keyword in Python
FLAGS = {"value_range": "range", "creation": "co", "methods": "method", "rules": "rule"}
_VALUE = r"(?:True|False|'[^']*'|\([^()]*\)|-?\d+(?:\.\d+)?|[A-Za-z_]\w*)?"
KEYWORD = re.compile(rf"(?<![^\s(])([a-z_]+)=({_VALUE})(?=[,;:)]|\.?(?:\s|$))")


def in_flags(text: str) -> str:
    """A message of the library with flags in place of Python keywords."""
    return KEYWORD.sub(_flag, text)


def _flag(found: re.Match[str]) -> str:
    name, value = FLAGS.get(found[1], found[1].replace("_", "-")), found[2]
    if value in ("", "True"):
        return f"--{name}"
    if value == "False":
        return f"--no-{name}"
    return f"--{name} " + "".join(value.strip("()'").split())


_json = False  # whether events are printed instead of lines


def speak_json(asked: bool) -> None:
    """Print events as JSON from now on, or lines."""
    global _json
    _json = asked


def speaks_json() -> bool:
    """Whether events are printed as JSON."""
    return _json


def tell(event: str, **values: Any) -> None:
    """Print one event as a line of JSON on stdout."""
    click.echo(json.dumps({"event": event, **values}, default=str))


def say_error(error: object, *, source: str | None = None) -> None:
    """Print an error as one line on stderr, or as an event. source: its input, of several."""
    if _json:
        kind = type(error).__name__ if isinstance(error, BaseException) else "Error"
        of_source = {} if source is None else {"source": source}
        tell("error", error=kind, message=in_flags(printable(error)), **of_source)
    else:
        named = "" if source is None or source in str(error) else f"{source}: "
        click.echo(f"Error: {in_flags(printable(f'{named}{error}'))}", err=True)


def show_warnings_as_lines(*, debug: bool) -> None:
    """Show repmamba's warnings as one line each; those of libraries only with --debug."""
    if not (debug or sys.warnoptions):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RepmambaWarning)
    warnings.showwarning = _show_warning


def hide_warnings() -> None:
    """Hide repmamba's own warnings."""
    warnings.simplefilter("ignore", RepmambaWarning)


def log_to_stderr(level: int) -> None:
    """Print repmamba's log records of `level` and above to stderr, message only."""
    logger = logging.getLogger("repmamba")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return in_flags(super().format(record))


@contextmanager
def filter_log(shown: logging.Filter | None) -> Iterator[None]:
    """Filter log records in this context."""
    handlers = logging.getLogger("repmamba").handlers if shown is not None else []
    for handler in handlers:
        handler.addFilter(shown)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(shown)  # type: ignore[arg-type]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = issubclass(category, RepmambaWarning)
    where = "" if ours else f" ({category.__name__}, {filename}:{lineno})"
    if _json:
        tell("warning", warning=category.__name__, message=in_flags(printable(message)))
        return
    click.echo(f"Warning: {in_flags(printable(message))}{where}", err=True)
