"""repmamba upscale: enlarge rasters, in place on the map."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repmamba.cli import batch, options
from repmamba.cli.batch import Job
from repmamba.cli.progress import megapixels, shows_bars
from repmamba.cli.terminal import filter_log, in_flags, speaks_json, tell
from repmamba.errors import RepmambaError, UsageError

if TYPE_CHECKING:
    from repmamba.scene.estimate import Estimate
    from repmamba.scene.scene_result import SceneResult

logger = logging.getLogger(__name__)


def _range(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    return text if text in (None, "robust", "type") else options.numbers(float, 2)(ctx, param, text)


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
    "--window",
    metavar="COL,ROW,WIDTH,HEIGHT",
    callback=options.numbers(int, 4),
    help="Only this part, in input pixels.",
)
@click.option(
    "--bbox",
    metavar="LEFT,BOTTOM,RIGHT,TOP",
    callback=options.numbers(float, 4),
    help="Only this part, in the input's CRS.",
)
@click.option(
    "--bands",
    metavar="N,N,...",
    callback=options.bands(None),
    help="Only these bands, by number from 1 or by name.  [default: all]",
)
@click.option(
    "--rgb",
    metavar="R,G,B",
    callback=options.bands(3),
    help="Which bands are red, green and blue, by number or by name (B04,B03,B02; red,green,blue). "
    "Each other band goes through the network alone, at the cost of a whole pass.  [default: as "
    "the file says]",
)
@click.option(
    "--nodata",
    metavar="VALUE[,VALUE...]",
    callback=options.numbers(float, None),
    help="This number is missing, in all bands, or one for each; nan too.  [default: as the file "
    "says]",
)
@click.option(
    "--no-alpha",
    "no_alpha",
    is_flag=True,
    help="Enlarge a band that the input calls alpha as data; so does --bands that names it.",
)
@click.option(
    "--range",
    "value_range",
    metavar="LOW,HIGH|robust|type",
    callback=_range,
    help="What is black and white to the network.  [default: type for 8 bit, robust percentiles "
    "for others]",
)
@click.option(
    "--consistent/--no-consistent",
    default=None,
    help="Let the result, made small again, be the input, but for spikes and what the type's ends "
    "clip.  "
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
    help="Also write a raster (.tif) of the error to expect in each pixel; the result is then that "
    "of --ensemble.",
)
@click.option(
    "--format",
    metavar="NAME",
    help="GTiff, COG, PNG, JPEG.  [default: by OUTPUT's ending]",
)
@click.option(
    "--co",
    "creation",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_creation,
    help="A creation option of GDAL.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Tiles computed side by side.  [default: CPU cores]",
)
@click.option(
    "--cluster",
    metavar="ADDRESS|FILE",
    help="Compute on a Dask cluster: the address of its scheduler, tcp://host:8786, or its "
    "scheduler file (.json).",
)
@click.option("--recursive", is_flag=True, help="Of folders as inputs, also the folders in them.")
@options.overwrite
@click.option("--restart", is_flag=True, help="Do not go on with a stopped run; begin anew.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, with size, memory and time, and do nothing.",
)
@click.option(
    "--untrusted",
    is_flag=True,
    help="Read as a stranger's file: GeoTIFF, PNG, JPEG or JPEG 2000, without side-cars, of at "
    "most 268,435,456 "
    "pixels, 200 bands, blocks of 64 MiB and 4,000 pixels a byte.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Allow an input of so many pixels, in however few bytes.  [default: 68,719,476,736; with "
    "--untrusted "
    "268,435,456]",
)
@click.option(
    "--on-corrupt",
    type=click.Choice(["error", "fill"]),
    default="error",
    show_default=True,
    help="What to do where the input cannot be read: stop, or take it as missing.",
)
@click.option(
    "--expand-palette",
    is_flag=True,
    help="Enlarge the colours of a palette, even of one with classes.",
)
@options.quiet
@options.as_json
def upscale(
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    overwrite: bool,
    restart: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Enlarge each INPUT into OUTPUT, in place on the map.

    OUTPUT is a file for one INPUT, a folder for several, or where it ends in a slash or is one
    already: names are kept, with _x4 added. A folder as INPUT stands for the rasters in it. What
    was stopped goes on with the same command, and what is done already stays as it is. Of several,
    one that fails is named, and the others go on.

    \b
    Examples:
      repmamba upscale scene.tif -o scene_x4.tif
      repmamba upscale photo.jpg -o photo_x2.png --scale 2
      repmamba upscale sentinel2.tif -o out.cog.tif --rgb 3,2,1 --range 0,4000
      repmamba upscale *.tif -o enlarged/
      repmamba upscale tiles/ -o enlarged/ --recursive
      repmamba upscale huge.tif -o part.tif --window 4096,2048,512,512
    """
    from repmamba.inference.upscaler import load
    from repmamba.scene.choice import Chooser
    from repmamba.scene.engine import plan_file, upscale_file

    network = {
        name: settings.pop(name)
        for name in ("weights", "scale", "device", "backend", "precision", "ensemble")
    }
    settings["alpha"] = not settings.pop("no_alpha")
    folders = batch.names_folders(sources)
    batch.check_output(target, len(sources), folders=folders)
    inputs = batch.find_inputs(sources, target, recursive=recursive)
    if settings["confidence"] is not None and len(inputs) > 1:
        raise UsageError(
            f"--confidence names one file, and there are {len(inputs)} inputs: enlarge them one by "
            "one."
        )
    named = network.pop("weights")
    # Named weights are for all inputs; without a name, each input has those that fit it.
    upscaler = Chooser.loading(**network) if named is None else load(named, **network)
    jobs = batch.plan_outputs(inputs, target, upscaler.scale, folders=folders, dry_run=dry_run)
    several, shown, begun = len(jobs) > 1, list[Any](), time.monotonic()
    once = batch.SayOnce()

    def enlarge(job: Job) -> None:
        place = jobs.index(job) + 1
        name = (
            f"{place} of {len(jobs)}: {Path(job.source).name}" if several else Path(job.source).name
        )
        once.source = job.source
        how: Any = {"overwrite": overwrite, "restart": restart, "keep_finished": True}
        with ExitStack() as bars:

            def bar(what: str, *, hidden: bool = False) -> Any:
                return bars.enter_context(
                    megapixels(what, quiet=quiet or hidden, source=job.source)
                )

            how["measuring"] = bar(f"{name}, range")
            if dry_run:
                # A run makes the folder of the results; before it is there, nothing in it can be in
                # the way.
                new = not os.path.exists(job.target.parent) and (
                    several or folders or str(job.target) != target
                )
                output = (
                    next(filter(os.path.isdir, job.target.parents)) / job.target.name
                    if new
                    else job.target
                )
                how |= {"overwrite": overwrite or new, "restart": restart or new}
                found: Any = replace(
                    plan_file(job.source, output, upscaler, **how, **settings), target=job.target
                )
            else:
                how["progress"] = bar(name)
                # in a log, the lines of the computing are enough
                unseen = not shows_bars(quiet=quiet)
                how["assembling"] = bar(f"{name}, written", hidden=unseen)
                found = upscale_file(job.source, job.target, upscaler, **how, **settings)
        shown.append(found)
        if speaks_json():
            tell("plan" if dry_run else "result", source=job.source, **found.as_json())
        elif dry_run or not quiet:
            click.echo(in_flags(found.brief() if several else found.summary()))

    with filter_log(once if several else None):
        if several:
            logger.info(
                "%d inputs; what is said of one holds for the next, until something else is said.",
                len(jobs),
            )
        failed = batch.one_by_one(enlarge, jobs)
    if several and shown and (dry_run or not quiet or speaks_json()):
        _tell_total(shown, failed, time.monotonic() - begun, dry_run=dry_run)
    if failed:
        raise RepmambaError(
            f"{len(failed)} of {len(jobs)} inputs were not enlarged: {', '.join(failed)}. "
            "The same command tries these again."
        )


def _tell_total(
    shown: Sequence[Any], failed: Sequence[str], seconds: float, *, dry_run: bool
) -> None:
    """What became of several inputs, or would, in a few lines or one event."""
    from repmamba.scene.estimate import total_of

    count, new = len(shown) + len(failed), [one for one in shown if not one.kept]
    kept = len(shown) - len(new)
    if dry_run:
        if speaks_json():
            tell(
                "total",
                inputs=count,
                done_already=kept,
                failed=list(failed),
                **total_of(new).as_json(),
            )
        else:
            rest = f": {total_of(new).summary()}" if new else ""
            click.echo(f"{count} inputs{_already(kept, count)}{_not_done(failed)}{rest}")
            _say_common(new)
    elif speaks_json():
        tell("summary", inputs=count, enlarged=len(new), done_already=kept, failed=list(failed))
    else:
        click.echo(
            f"{count} inputs: {len(new)} enlarged in {seconds:.1f} "
            f"s{_already(kept, count)}{_not_done(failed)}"
        )
        _say_common(new)


def _say_common(shown: Sequence[SceneResult | Estimate]) -> None:
    if shown:
        click.echo(f"  {batch.common([one.method for one in shown])}")


def _already(kept: int, count: int) -> str:
    if not kept:
        return ""
    return f"; {kept} of {count} {'was' if kept == 1 else 'were'} done already"


def _not_done(failed: Sequence[str]) -> str:
    return f"; {len(failed)} failed" if failed else ""
