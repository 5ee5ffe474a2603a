"""repmamba upscale: upscale rasters at the same place on the map."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
            raise click.BadParameter(f"'{pair}' is not NAME=VALUE.")
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
    help="Which bands are red, green and blue, by number or name (B04,B03,B02; red,green,blue). "
    "Every other band takes a pass of the network of its own, as grey.  [default: from the file]",
)
@options.nodata
@click.option(
    "--no-alpha",
    "no_alpha",
    is_flag=True,
    help="Treat a band that the input calls alpha as data. Naming it in --bands does the same.",
)
@click.option(
    "--range",
    "value_range",
    metavar="LOW,HIGH|robust|type",
    callback=_range,
    help="Values that are black and white to the network.  [default: type for 8 bit, robust "
    "(percentiles) for others]",
)
@click.option(
    "--consistent/--no-consistent",
    default=None,
    help="Adjust the result so that downsampling it gives back the input (except outliers and "
    "clipped values).  [default: on if the input is georeferenced and the weights do not remove "
    "noise]",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Average over the eight flips and rotations, for eight times the work.",
)
@click.option(
    "--confidence",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write a raster (.tif) of the expected error of each pixel; turns --ensemble on.",
)
@click.option(
    "--format", metavar="NAME", help="GTiff, COG, PNG or JPEG.  [default: by the suffix of OUTPUT]"
)
@click.option(
    "--co",
    "creation",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_creation,
    help="A GDAL creation option; may be repeated.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Tiles computed at the same time.  [default: CPU cores]",
)
@click.option(
    "--cluster",
    metavar="ADDRESS|FILE",
    help="Compute on a Dask cluster: the address of its scheduler (tcp://host:8786) or its "
    "scheduler file (.json).",
)
@click.option("--recursive", is_flag=True, help="Also search subfolders of input folders.")
@options.overwrite
@click.option("--restart", is_flag=True, help="Start again instead of continuing a stopped run.")
@click.option(
    "--dry-run", is_flag=True, help="Only report what would be done, with size, memory and time."
)
@click.option(
    "--untrusted",
    is_flag=True,
    help="For files of unknown origin: only GeoTIFF, PNG, JPEG and JPEG 2000, no side-car files, "
    "at most 268,435,456 pixels, 200 bands, blocks of 64 MiB and 4,000 pixels per byte.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Largest number of input pixels, without a limit per byte.  [default: 68,719,476,736; "
    "with --untrusted 268,435,456]",
)
@click.option(
    "--on-corrupt",
    type=click.Choice(["error", "fill"]),
    default="error",
    show_default=True,
    help="Where the input cannot be read: stop, or treat pixels as missing.",
)
@click.option(
    "--expand-palette",
    is_flag=True,
    help="Upscale the colours of a palette, even if they are classes.",
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
    """Upscale each INPUT into OUTPUT, at the same place on the map.

    OUTPUT is a file for one INPUT. It is a folder for several, or if it exists as a folder or ends
    in a slash: names are kept, with _x4 added. A folder as INPUT means the rasters in it. The same
    command continues a stopped run and keeps finished results. If one of several inputs fails, it
    is reported, and the others continue.

    \b
    Examples:
      repmamba upscale scene.tif -o scene_x4.tif
      repmamba upscale photo.jpg -o photo_x2.png --scale 2
      repmamba upscale sentinel2.tif -o out.cog.tif --rgb 3,2,1 --range 0,4000
      repmamba upscale *.tif -o enlarged/
      repmamba upscale tiles/ -o enlarged/ --recursive
      repmamba upscale huge.tif -o part.tif --window 4096,2048,512,512
    """
    from repmamba.inference.loading import load
    from repmamba.scene.choice import Chooser

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
            f"--confidence names one file, and there are {len(inputs)} inputs: upscale them one by "
            "one."
        )
    named = network.pop("weights")
    # Named weights are for all inputs; without a name, each input has those that fit it.
    upscaler = Chooser.loading(**network) if named is None else load(named, **network)
    jobs = batch.plan_outputs(inputs, target, upscaler.scale, folders=folders, dry_run=dry_run)
    several, begun = len(jobs) > 1, time.monotonic()
    run = _Run(upscaler, settings, overwrite, restart, dry_run, quiet)
    once = batch.ShowOnce()

    def upscale_one(job: Job) -> None:
        place, name = jobs.index(job) + 1, Path(job.source).name
        once.source = job.source
        run(job, f"{place} of {len(jobs)}: {name}" if several else name, brief=several)

    with filter_log(once if several else None):
        if several:
            logger.info(
                "%d inputs; a log line that is the same for the next input is not repeated.",
                len(jobs),
            )
        failed = batch.one_by_one(upscale_one, jobs)
    if several and run.finished and (dry_run or not quiet or speaks_json()):
        _tell_total(run.finished, failed, time.monotonic() - begun, dry_run=dry_run)
    if failed:
        raise RepmambaError(
            f"{len(failed)} of {len(jobs)} inputs were not upscaled: {', '.join(failed)}. "
            "The same command tries them again."
        )


@dataclass(slots=True)
class _Run:
    """Upscales or plans one input after the other, with progress bars and a line for each."""

    upscaler: Any  # an Upscaler, or a Chooser among those that fit
    settings: dict[str, Any]  # keywords of upscale_file
    overwrite: bool
    restart: bool
    dry_run: bool
    quiet: bool
    finished: list[Any] = field(default_factory=list)

    def __call__(self, job: Job, name: str, *, brief: bool) -> None:
        """name: for the progress bar.  brief: print the short form of the line."""
        with ExitStack() as bars:

            def bar(what: str, *, hidden: bool = False) -> Any:
                quiet = self.quiet or hidden
                return bars.enter_context(megapixels(what, quiet=quiet, source=job.source))

            made = self._plan(job, name, bar) if self.dry_run else self._upscale(job, name, bar)
        self.finished.append(made)
        if speaks_json():
            tell("plan" if self.dry_run else "result", source=job.source, **made.as_json())
        elif self.dry_run or not self.quiet:
            click.echo(in_flags(made.brief() if brief else made.summary()))

    def _upscale(self, job: Job, name: str, bar: Callable[..., Any]) -> SceneResult:
        from repmamba.scene.engine import upscale_file

        return upscale_file(
            job.source,
            job.target,
            self.upscaler,
            overwrite=self.overwrite,
            restart=self.restart,
            keep_finished=True,
            measuring=bar(f"{name}, range"),
            progress=bar(name),
            # In a log, the lines of the computing are enough.
            assembling=bar(f"{name}, written", hidden=not shows_bars(quiet=self.quiet)),
            **self.settings,
        )

    def _plan(self, job: Job, name: str, bar: Callable[..., Any]) -> Estimate:
        from repmamba.scene.engine import plan_file

        # A run creates the folder of the results; before that, nothing in it can be in the way.
        new = job.makes_folder and not os.path.exists(job.target.parent)
        output = job.target
        if new:
            output = next(filter(os.path.isdir, job.target.parents)) / job.target.name
        estimate = plan_file(
            job.source,
            output,
            self.upscaler,
            overwrite=self.overwrite or new,
            restart=self.restart or new,
            keep_finished=True,
            measuring=bar(f"{name}, range"),
            **self.settings,
        )
        return replace(estimate, target=job.target)


def _tell_total(
    shown: Sequence[Any], failed: Sequence[str], seconds: float, *, dry_run: bool
) -> None:
    """Print what several inputs came to, or would, in a few lines or one event."""
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
            f"{count} inputs: {len(new)} upscaled in {seconds:.1f} "
            f"s{_already(kept, count)}{_not_done(failed)}"
        )
        _say_common(new)


def _say_common(shown: Sequence[SceneResult | Estimate]) -> None:
    if shown:
        click.echo(f"  {batch.common([one.method for one in shown])}")


def _already(kept: int, count: int) -> str:
    if not kept:
        return ""
    return f"; {kept} of {count} {'was' if kept == 1 else 'were'} already done"


def _not_done(failed: Sequence[str]) -> str:
    return f"; {len(failed)} failed" if failed else ""
