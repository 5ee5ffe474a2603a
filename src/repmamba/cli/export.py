"""repmamba export: trained weights as one file that other programs run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from repmamba.cli import options

ANY_SIZE = "dynamic"


def _size(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int] | None:
    """ "640x480" as (height, width); None for any."""
    if text == ANY_SIZE:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise click.BadParameter(
            f"'{text}' is neither WIDTHxHEIGHT, such as 256x256, nor {ANY_SIZE}."
        )
    width, height = map(int, found.groups())
    return height, width


@click.command()
@click.argument("weights", metavar="NAME|FILE|FOLDER", type=options.PackagedWeightsOrPath())
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write: .onnx, or .pt2 for PyTorch only (torch.export).",
)
@click.option(
    "--size",
    metavar=f"WIDTHxHEIGHT|{ANY_SIZE}",
    default=ANY_SIZE,
    show_default=True,
    callback=_size,
    help="Size of the input in pixels, for one image at a time; or any size and number of images.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Data type of stored matrices. Everything is computed in float32.",
)
@click.option(
    "--for",
    "program",
    type=click.Choice(["deepness"]),
    help="Follow the rules of a program: deepness, the plugin of QGIS.  [default: none]",
)
@options.overwrite
@options.quiet
@options.as_json
def export(
    weights: str,
    target: Path,
    quiet: bool,
    as_json: bool,
    **arguments: Any,  # of repmamba.export
) -> None:
    """Write trained weights as one file that other programs run.

    The file is first run in ONNX Runtime, and in OpenVINO if that is installed. The difference from
    the network's own results is printed and written into the file; if it exceeds 1e-4 of the range
    from black to white (float16: one grey level), nothing is written.

    \b
    Examples:
      repmamba export x4 -o x4.onnx
      repmamba export x4 -o x4_256.onnx --size 256x256 --precision float16
      repmamba export x2 -o deepness_x2.onnx --for deepness
      repmamba export mine.safetensors -o mine.pt2
    """
    from repmamba.exporting.export import export as write

    written = write(weights, target, **arguments)
    if as_json:
        click.echo(json.dumps(written.as_json()))
    elif not quiet:
        click.echo(written.summary())
