"""repmamba serve: upscale for other programs and for browsers, over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from repmamba.cli import options
from repmamba.errors import UsageError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# where an input of the service is not called as the option of upscale that explains it
EXPLAINED_BY = {"alpha": "no_alpha"}


def _quantity(units: dict[str, int]) -> Callable[[click.Context, click.Parameter, str], float]:
    """A callback that turns 7d or 2GB into seconds or bytes."""

    def read(ctx: click.Context, param: click.Parameter, text: str) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]+)", text)
        if found is None or found[2] not in units or float(found[1]) == 0:
            raise click.BadParameter(f"'{text}' is not a number with a unit ({', '.join(units)}).")
        return float(found[1]) * units[found[2]]

    return read


DURATION, SIZE = _quantity(SECONDS), _quantity(BYTES)


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("repmamba-service"),
    show_default=True,
    help="Where jobs, uploads and results are kept, on a local disk. The service resumes from it.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="URL under which clients reach the service, behind a proxy for example. Requests to other "
    "hosts are refused.  [default: from host and port]",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the token that clients must send; also REPMAMBA_TOKEN. Required unless the "
    "address is of this machine only.",
)
@click.option(
    "--allow-reference",
    "references",
    metavar="URL|FOLDER",
    multiple=True,
    help="Allow inputs below this URL or folder; may be repeated.  [default: uploads only]",
)
@click.option(
    "--weights",
    metavar="NAME|FILE",
    type=options.PackagedWeightsOrPath(),
    multiple=True,
    help="Weights that clients may choose; may be repeated.  [default: all packaged weights]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Jobs that run at the same time.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Tiles of a job computed at the same time.  [default: CPU cores divided by --jobs]",
)
@click.option(
    "--keep",
    metavar="DURATION",
    callback=DURATION,
    default="7d",
    show_default=True,
    help="How long results and uploads are kept: 7d, 12h, 30m.",
)
@click.option(
    "--max-upload",
    metavar="SIZE",
    callback=SIZE,
    default="1GB",
    show_default=True,
    help="Largest input file.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 1 << 28),
    metavar="N",
    default=1 << 26,
    show_default=True,
    help="Largest number of input pixels.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    callback=SIZE,
    default="4GB",
    show_default=True,
    help="Memory of a job's process (on Linux).",
)
@click.option(
    "--max-disk",
    metavar="SIZE",
    callback=SIZE,
    default="20GB",
    show_default=True,
    help="Disk space of a job.",
)
@click.option(
    "--max-time",
    metavar="DURATION",
    callback=DURATION,
    default="1h",
    show_default=True,
    help="How long a job may run.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Jobs that may wait; more are refused.",
)
@click.option(
    "--reserve",
    metavar="SIZE",
    callback=SIZE,
    default="1GB",
    show_default=True,
    help="Disk space that stays free.",
)
def serve(
    folder: Path,
    host: str,
    port: int,
    public_url: str | None,
    token_file: Path | None,
    references: tuple[str, ...],
    weights: tuple[str, ...],
    jobs: int,
    workers: int | None,
    keep: float,
    max_upload: float,
    max_pixels: int,
    max_memory: float,
    max_disk: float,
    max_time: float,
    max_waiting: int,
    reserve: float,
) -> None:
    """Offer upscale to other programs and to browsers, over HTTP.

    Programs use OGC API - Processes; a browser gets a page. Each job runs in a process of its own
    with limits, and treats its input like --untrusted. Jobs survive a restart. The log is JSON on
    stderr.

    \b
    Examples:
      repmamba serve
      repmamba serve --allow-reference https://example.org/scenes/ --keep 1d
      REPMAMBA_TOKEN=... repmamba serve --host 0.0.0.0 --public-url https://sr.example.org
    """
    from repmamba.cores import available_cores
    from repmamba.service.references import Allowed
    from repmamba.service.server import serve as run
    from repmamba.service.settings import Limits, Settings, read_token

    settings = Settings(
        folder=folder,
        weights=_offered(weights),
        host=host,
        port=port,
        public_url=public_url,
        token=read_token(token_file),
        allowed=tuple(map(Allowed.parse, references)),
        jobs=jobs,
        workers=workers or max(1, available_cores() // jobs),
        keep_seconds=keep,
        limits=Limits(
            upload_bytes=int(max_upload),
            pixels=max_pixels,
            memory_bytes=int(max_memory),
            disk_bytes=int(max_disk),
            seconds=max_time,
            waiting=max_waiting,
            reserved_bytes=int(reserve),
        ),
    )
    run(settings, _explanations())


def _offered(given: tuple[str, ...]) -> dict[str, str]:
    """The names that clients may choose, and what `load` takes. Raises UsageError."""
    from repmamba.inference.catalogue import packaged_weights

    packaged = [entry.name for entry in packaged_weights()]
    offered = {}
    for text in given or packaged:
        path, is_packaged = Path(text), text in packaged
        if not is_packaged and not path.exists():
            raise UsageError(
                f"There are no weights '{text}': expected a file, or {', '.join(packaged)}."
            )
        name = text if is_packaged else path.stem
        if name in offered:
            raise UsageError(f"Two of the weights are called {name}: rename one of the files.")
        offered[name] = text if is_packaged else str(path.resolve())
    return offered


def _explanations() -> dict[str, str]:
    """What each input of the service is: the help of upscale's options."""
    from repmamba.cli.upscale import upscale
    from repmamba.service.inputs import SCHEMAS

    help_of = {
        option.name: option.help or ""
        for option in upscale.params
        if isinstance(option, click.Option)
    }
    return {name: help_of[EXPLAINED_BY.get(name, name)] for name in SCHEMAS}
