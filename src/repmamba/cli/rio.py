"""rio repmamba: `repmamba upscale` as a command of rasterio's rio, with rio's arguments.

Loaded by rio through the entry point `rasterio.rio_plugins`. Options that rio spells in another way
are declared here, and all others are those of `repmamba upscale`.
"""

from __future__ import annotations

from typing import Any

import click
from rasterio.rio import options as rio_options

from repmamba.cli import options
from repmamba.cli.main import set_thread_variables
from repmamba.cli.terminal import in_flags, printable, show_warnings_as_lines, speak_json
from repmamba.cli.upscale import upscale
from repmamba.errors import RepmambaError, UsageError

SPELLED_BY_RIO = ("sources", "target", "bbox", "bands", "format", "creation", "quiet", "as_json")


def _bands(ctx: click.Context, param: click.Parameter, parts: tuple[str, ...]) -> Any:
    return options.bands(None)(ctx, param, ",".join(parts) or None)


@click.command(
    short_help="Upscale rasters 2, 3 or 4 times.",
    params=[param for param in upscale.params if param.name not in SPELLED_BY_RIO],
)
@click.argument("files", metavar="INPUT... OUTPUT", nargs=-1, required=True, type=click.Path())
@rio_options.output_opt  # type: ignore[untyped-decorator]
@click.option(
    "--bounds",
    "--bbox",
    "bbox",
    callback=rio_options.bounds_handler,
    help="Only this part, in the input's CRS: 'left bottom right top'.",
)
@click.option(
    "-b",
    "--bidx",
    "--bands",
    "bands",
    multiple=True,
    callback=_bands,
    help="Only this band, by number from 1 or by name; may be repeated.  [default: all]",
)
@rio_options.format_opt  # type: ignore[untyped-decorator]
@rio_options.creation_options  # type: ignore[untyped-decorator]
@click.pass_context
def repmamba(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    output: str | None,
    driver: str | None,
    creation_options: dict[str, str | None],
    **settings: Any,
) -> None:
    """Upscale INPUT into OUTPUT, 2, 3 or 4 times, at the same place on the map.

    OUTPUT is a folder if there are several inputs. The same command continues a stopped run.

    \b
    Examples:
      rio repmamba scene.tif scene_x4.tif
      rio repmamba scene.tif -o part.tif --bounds "519470 4311640 519490 4311660"
      rio repmamba sentinel2.tif out.tif -b 4 -b 3 -b 2 --rgb 4,3,2 --co compress=zstd
    """
    sources, target = (files, output) if output else (files[:-1], files[-1])
    if not sources:
        raise click.UsageError(f"There is only one file, {target}: give INPUT and OUTPUT.")
    verbosity = ctx.obj["verbosity"]
    set_thread_variables()
    speak_json(False)
    show_warnings_as_lines(debug=verbosity > 1)
    try:
        with ctx.obj["env"]:
            ctx.invoke(
                upscale,
                sources=sources,
                target=target,
                format=driver,
                # rio's option turns "none" into None
                creation={name: value or "none" for name, value in creation_options.items()},
                quiet=verbosity < 0,
                as_json=False,
                **settings,
            )
    except RepmambaError as error:
        kind = click.UsageError if isinstance(error, UsageError) else click.ClickException
        raise kind(in_flags(printable(error))) from error
