"""repmamba export: trained weights as one file that other programs run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from repmamba.cli import options

ANY_SIZE = "dynamic"


def _size(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int] | None:
    """ "640x480" as height and width; None for any."""
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
    help="Where it goes: .onnx, or .pt2 for PyTorch alone (torch.export).",
)
@click.option(
    "--size",
    metavar=f"WIDTHxHEIGHT|{ANY_SIZE}",
    default=ANY_SIZE,
    show_default=True,
    callback=_size,
    help="Size of the input in pixels, of one image at a time; or any size and number of images.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="In which matrices are stored. All is computed in float32.",
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
    size: tuple[int, int] | None,
    precision: str,
    program: str | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write trained weights as one file that other programs run.

    The file is run first in ONNX Runtime, and in OpenVINO where that is installed. How far its
    results are from the network's own is printed and written into it; where that is more than 1e-4
    of the range from black to white (float16: one grey level), nothing is written.

    \b
    Examples:
      repmamba export x4 -o x4.onnx
      repmamba export x4 -o x4_256.onnx --size 256x256 --precision float16
      repmamba export x2 -o deepness_x2.onnx --for deepness
      repmamba export mine.safetensors -o mine.pt2
    """
    from repmamba.exporting.export import export as write

    written = write(
        weights,
        target,
        size=size,
        precision=precision,
        program=program,
        overwrite=overwrite,
    )
    if as_json:
        click.echo(json.dumps(written.as_json()))
    elif not quiet:
        click.echo(written.summary())
