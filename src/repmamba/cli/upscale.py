"""repmamba upscale: enlarge rasters, in place on the map."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from repmamba.cli import options
from repmamba.cli.progress import megapixels, shows_bars
from repmamba.cli.terminal import say_error
from repmamba.errors import RepmambaError, TargetError, UsageError


def _numbers(kind: type, count: int | None) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns "1,2,3" into a tuple of that many numbers."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            numbers = tuple(kind(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if not numbers or (count is not None and len(numbers) != count):
            raise click.BadParameter(f"'{text}' is not {count or 'a list of'} numbers with commas between.")
        return numbers

    return read


def _range(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    return text if text in (None, "robust", "type") else _numbers(float, 2)(ctx, param, text)


def _creation(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"'{pair}' is no NAME=VALUE.")
    return dict(pair.split("=", 1) for pair in pairs)


@click.command()
@options.sources
@options.target
@options.scale
@options.weights
@options.device
@options.backend
@options.precision
@options.tile
@options.halo
@click.option(
    "--window", metavar="COL,ROW,WIDTH,HEIGHT", callback=_numbers(int, 4), help="Only this part, in input pixels."
)
@click.option(
    "--bbox", metavar="LEFT,BOTTOM,RIGHT,TOP", callback=_numbers(float, 4), help="Only this part, in the input's CRS."
)
@click.option(
    "--bands", metavar="N,N,...", callback=_numbers(int, None), help="Only these bands, from 1.  [default: all]"
)
@click.option(
    "--rgb",
    metavar="R,G,B",
    callback=_numbers(int, 3),
    help="Which bands are red, green and blue. Each other band goes through the network alone, at the cost "
    "of a whole pass.  [default: as the file says]",
)
@click.option(
    "--range",
    "value_range",
    metavar="LOW,HIGH|robust|type",
    callback=_range,
    help="What is black and white to the network.  [default: type for 8 bit, robust percentiles for others]",
)
@click.option(
    "--consistent/--no-consistent",
    default=None,
    help="Let the result, made small again, be the input, but for spikes and what the type's ends clip.  "
    "[default: on where the input has a place on the map]",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Take the mean over the eight flips and rotations, for eight times the work.",
)
@click.option(
    "--confidence",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write a raster (.tif) of the error to expect in each pixel; the result is then that of --ensemble.",
)
@click.option("--format", "format_name", metavar="NAME", help="GTiff, COG, PNG, JPEG.  [default: by OUTPUT's ending]")
@click.option(
    "--co", "creation", metavar="NAME=VALUE", multiple=True, callback=_creation, help="A creation option of GDAL."
)
@click.option("--workers", type=click.IntRange(min=1), help="Tiles computed side by side.  [default: CPU cores]")
@click.option(
    "--cluster",
    metavar="ADDRESS|FILE",
    help="Compute on a Dask cluster: the address of its scheduler, tcp://host:8786, or its scheduler file (.json).",
)
@options.overwrite
@click.option("--restart", is_flag=True, help="Do not go on with a stopped run; begin anew.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with size, memory and time, and do nothing.")
@click.option(
    "--untrusted",
    is_flag=True,
    help="Read as a stranger's file: GeoTIFF, PNG, JPEG or JPEG 2000, without side-cars, of at most 268,435,456 "
    "pixels, 200 bands, blocks of 64 MiB and 4,000 pixels a byte.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Allow an input of so many pixels, in however few bytes.  [default: 68,719,476,736; with --untrusted "
    "268,435,456]",
)
@click.option(
    "--on-corrupt",
    type=click.Choice(["error", "fill"]),
    default="error",
    show_default=True,
    help="What to do where the input cannot be read: stop, or take it as missing.",
)
@click.option("--expand-palette", is_flag=True, help="Enlarge the colours of a palette, even of one with classes.")
@options.quiet
@options.as_json
def upscale(
    sources: tuple[str, ...],
    target: Path,
    window: tuple[int, int, int, int] | None,
    format_name: str | None,
    overwrite: bool,
    restart: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Enlarge each INPUT into OUTPUT, in place on the map.

    OUTPUT is a file for one INPUT, a folder for several (or where it is one already): names are kept, with _x4 added.
    What was stopped goes on with the same command. Of several, one that fails is named, and the others go on.

    \b
    Examples:
      repmamba upscale scene.tif -o scene_x4.tif
      repmamba upscale photo.jpg -o photo_x2.png --scale 2
      repmamba upscale sentinel2.tif -o out.cog.tif --rgb 3,2,1 --range 0,4000
      repmamba upscale *.tif -o enlarged/
      repmamba upscale huge.tif -o part.tif --window 4096,2048,512,512
    """
    from repmamba.inference.upscaler import load
    from repmamba.scene.choice import Chooser
    from repmamba.scene.engine import plan_file, upscale_file
    from repmamba.tiles.window import Window

    network = {name: settings.pop(name) for name in ("weights", "scale", "device", "backend", "precision", "ensemble")}
    if window is not None:
        col, row, width, height = window
        settings["window"] = Window(row, col, height, width)
    settings["format"] = format_name
    if settings["confidence"] is not None and len(sources) > 1:
        raise UsageError(f"--confidence names one file, and there are {len(sources)} inputs: enlarge them one by one.")
    named = network.pop("weights")
    # Named weights are for all inputs; without a name, each input has those that fit it.
    upscaler = Chooser.loading(**network) if named is None else load(named, **network)
    targets = outputs(sources, target, upscaler.scale, dry_run=dry_run)

    def enlarge(source: str, output: Path) -> None:
        shown: Any
        if dry_run:
            # A run makes the folder for several results; before it is there, nothing in it can be in the way.
            new = len(sources) > 1 and not os.path.exists(output.parent)
            place = next(filter(os.path.isdir, output.parents)) / output.name if new else output
            how: Any = {"overwrite": overwrite or new, "restart": restart or new}
            shown = replace(plan_file(source, place, upscaler, **how, **settings), target=output)
        else:
            name = Path(source).name
            unseen = not shows_bars(quiet=quiet)  # in a log, the lines of the computing are enough
            with megapixels(name, quiet=quiet) as progress, megapixels(f"{name}, written", quiet=unseen) as assembling:
                how = {"overwrite": overwrite, "restart": restart, "progress": progress, "assembling": assembling}
                shown = upscale_file(source, output, upscaler, **how, **settings)
        if as_json:
            click.echo(json.dumps(shown.as_json()))
        elif dry_run or not quiet:
            click.echo(shown.summary())

    one_by_one(enlarge, sources, targets)


def one_by_one(enlarge: Callable[[str, Path], None], sources: Sequence[str], targets: Sequence[Path]) -> None:
    """enlarge each source into its target; of several, those that fail are named, and raise when all had their turn."""
    failed = []
    for source, target in zip(sources, targets, strict=True):
        try:
            enlarge(source, target)
        except RepmambaError as error:
            if len(sources) == 1:
                raise
            say_error(error if source in str(error) else f"{source}: {error}")
            failed.append(source)
    if failed:
        raise RepmambaError(f"{len(failed)} of {len(sources)} inputs were not enlarged: {', '.join(failed)}.")


def outputs(sources: Sequence[str], target: Path, scale: int, *, dry_run: bool) -> list[Path]:
    """Where each result goes: the target for one input; a folder, made if need be, for several."""
    if len(sources) == 1 and not os.path.isdir(target):
        return [target]
    if os.path.exists(target) and not os.path.isdir(target):
        raise UsageError(f"{target} is a file, and there are {len(sources)} inputs: give a folder.")
    names = [named_larger(source, scale) for source in sources]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"Several inputs would be written to {target / min(twice)}: enlarge them one by one.")
    targets = [target / name for name in names]
    refuse_inputs(sources, targets)
    if not dry_run:
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"The folder {target} cannot be made: {error.strerror}. Choose another one.") from error
    return targets


def refuse_inputs(sources: Sequence[str], targets: Sequence[Path]) -> None:
    """Raise UsageError where any result would replace any input, even one that has had its turn by then."""
    inputs = {_file_at(source): source for source in sources}
    for source, target in zip(sources, targets, strict=True):
        place = _file_at(target)
        if place is not None and place in inputs:
            raise UsageError(
                f"{target}, the result of {source}, would be the input {inputs[place]}: name another folder."
            )


def _file_at(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from any other, whatever its names; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def named_larger(source: str, scale: int) -> str:
    """The name of a result in a folder: scene.tif becomes scene_x4.tif; .tif for formats that are not written."""
    from repmamba.scene.formats import FORMATS

    name = Path(source).name
    endings = sorted((end for entry in FORMATS.values() for end in entry.suffixes), key=len, reverse=True)
    ending = next((end for end in endings if name.lower().endswith(end)), None)
    if ending is None:
        return f"{Path(name).stem}_x{scale}.tif"
    return f"{name[: -len(ending)]}_x{scale}{name[-len(ending) :]}"
