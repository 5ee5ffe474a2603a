"""Options that several verbs share, declared once so that they mean the same everywhere.

Each is a decorator for a click command. Lengths are in pixels of the input.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import click

from repmamba.cli.terminal import hide_warnings, log_to_stderr, speak_json


def _set_loudness(ctx: click.Context, param: click.Parameter, quiet: bool) -> bool:
    """--quiet turns off log lines and warnings. Without a terminal, log lines replace bars."""
    logger = logging.getLogger("repmamba")
    if quiet:
        log_to_stderr(logging.ERROR)
        hide_warnings()
    elif not sys.stderr.isatty() and logger.level != logging.DEBUG:
        log_to_stderr(logging.INFO)
    return quiet


def _set_json(ctx: click.Context, param: click.Parameter, asked: bool) -> bool:
    speak_json(asked)
    return asked


def _device_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in ("cpu", "cuda", "cuda:0", "mps") if name.startswith(incomplete)]


def numbers(
    kind: type, count: int | None
) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns "1,2,3" into a tuple of that many numbers."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            numbers = tuple(kind(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if not numbers or (count is not None and len(numbers) != count):
            raise click.BadParameter(
                f"'{text}' is not {count or 'a list of'} comma-separated numbers."
            )
        return numbers

    return read


def bands(count: int | None) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns "3,2,1" or "B04,B03,B02" into a tuple of that many bands."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        parts = [part.strip() for part in text.split(",")]
        if not all(parts) or (count is not None and len(parts) != count):
            wanted = count or "a list of"
            raise click.BadParameter(
                f"'{text}' is not {wanted} comma-separated numbers or names of bands."
            )
        return tuple(int(part) if part.isdecimal() else part for part in parts)

    return read


def _nodata(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    return text if text == "none" else numbers(float, None)(ctx, param, text)


class PackagedWeightsOrPath(click.Path):
    """The name of packaged weights or a path, with completion for both."""

    name = "weights"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[Any]:
        """Matching names, then paths."""
        from repmamba.inference.catalogue import packaged_weights

        names = [entry.name for entry in packaged_weights() if entry.name.startswith(incomplete)]
        return [
            click.shell_completion.CompletionItem(name) for name in names
        ] + super().shell_complete(ctx, param, incomplete)


sources = click.argument(
    "sources", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=str)
)
target = click.option(
    "-o",
    "--output",
    "target",
    metavar="OUTPUT",
    required=True,
    type=click.Path(path_type=str),  # a Path would lose the trailing slash
    help="A file for one input, a folder (such as results/) for several.",
)
weights = click.option(
    "--weights",
    metavar="NAME|FILE|FOLDER",
    type=PackagedWeightsOrPath(),
    help="Packaged weights by name (x4), or a checkpoint, ours or published.  [default: those of "
    "--scale]",
)
scale = click.option(
    "--scale",
    type=click.IntRange(2, 4),
    help="Upscaling factor.  [default: that of the weights, else 4]",
)
device = click.option(
    "--device",
    shell_complete=_device_names,
    help="cpu, cuda, cuda:1, mps. GPUs are untested so far; cpu avoids them.  [default: cuda if "
    "there is one, else cpu]",
)
backend = click.option(
    "--backend",
    metavar="NAME",
    help="How the scan is computed; 'repmamba info' lists the names.  [default: the fastest on the "
    "device]",
)
precision = click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Data type that the network computes in.  [default: float32]",
)
tile = click.option(
    "--tile",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Edge of the part kept of each tile, in input pixels, even.  [default: from the weights]",
)
halo = click.option(
    "--halo",
    type=click.IntRange(min=0),
    metavar="PIXELS",
    help="Margin read around each tile, in input pixels, even.  [default: from the weights]",
)
nodata = click.option(
    "--nodata",
    metavar="VALUE[,VALUE...]",
    callback=_nodata,
    help="Nodata value for all bands, or one per band; may be nan. 'none': no value is nodata.  "
    "[default: from the file]",
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads.  [default: one per core]",
)
nice = click.option(
    "--nice",
    type=click.IntRange(0, 19),
    default=0,
    metavar="N",
    help="Niceness of the process: 19 gives way to all other work.",
)
minutes = click.option(
    "--minutes",
    type=float,
    metavar="N",
    help="Save and exit after N minutes; the same command continues.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_set_loudness,
    help="Print errors only: no progress, log lines or warnings.",
)
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,  # so that errors in other options are JSON too
    callback=_set_json,
    help="Print results, errors and progress as JSON, one object per line.",
)
