"""What goes to the terminal and how: errors and warnings as one line, text from strangers' files made harmless.

Results go to stdout, everything else to stderr. The library itself only logs and warns; no other room prints.
"""

import logging
import sys
import warnings
from typing import TextIO

import click

from repmamba.errors import RepmambaWarning


def printable(text: object) -> str:
    """The text on one line, control characters written as escapes: a file's name or tag must not steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in " ".join(str(text).split())
    )


def say_error(text: object) -> None:
    """One line on stderr."""
    click.echo(f"Error: {printable(text)}", err=True)


def show_warnings_as_lines(*, debug: bool) -> None:
    """repmamba's own warnings as one line each; those of libraries are for developers and shown with --debug alone."""
    if not (debug or sys.warnoptions):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RepmambaWarning)
    warnings.showwarning = _show_warning


def hide_warnings() -> None:
    """Of repmamba's own, whatever was to be shown until now."""
    warnings.simplefilter("ignore", RepmambaWarning)


def log_to_stderr(level: int) -> None:
    """Send repmamba's log lines of `level` and above to stderr, as they are."""
    logger = logging.getLogger("repmamba")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    where = "" if issubclass(category, RepmambaWarning) else f" ({category.__name__}, {filename}:{lineno})"
    click.echo(f"Warning: {printable(message)}{where}", err=True)
