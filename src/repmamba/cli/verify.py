"""repmamba verify: compare every tile of a result with its receipt."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from repmamba.cli import options
from repmamba.cli.progress import parts
from repmamba.cli.terminal import printable, say_error
from repmamba.errors import VerificationError


@click.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--receipt",
    "receipt_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The receipt, for one result that was moved away from it.  [default: FILE.receipt.json]",
)
@options.quiet
@options.as_json
def verify(files: tuple[Path, ...], receipt_file: Path | None, quiet: bool, as_json: bool) -> None:
    """Verify results by the receipts that were written beside them.

    Every tile and overview is decoded and compared, then the whole file. Exit code 0: everything is
    as it was written. 1: something differs, and a line on stderr names the first tile; the other
    FILEs are still verified. 2: wrong usage.

    \b
    Examples:
      repmamba verify scene_x4.tif
      repmamba verify results/*.tif
      repmamba verify moved/scene_x4.tif --receipt scene_x4.tif.receipt.json
    """
    if receipt_file is not None and len(files) > 1:
        raise click.UsageError("--receipt is the receipt of one result; name one FILE.")
    failed = []
    for file in files:
        try:
            _verify(file, receipt_file, quiet=quiet, as_json=as_json)
        except VerificationError as fault:
            if len(files) == 1:
                raise
            say_error(fault if str(file) in str(fault) else f"{file}: {fault}")
            failed.append(str(file))
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(files)} files are not what was written: {', '.join(failed)}."
        )


def _verify(file: Path, receipt_file: Path | None, *, quiet: bool, as_json: bool) -> None:
    """Verify one result and print what was found. Raises VerificationError."""
    from repmamba.scene.result.readback import verify_result
    from repmamba.scene.result.receipt import read_receipt, receipt_path

    path = Path(os.path.realpath(file))  # the receipt lies beside a link's target
    receipt = read_receipt(receipt_file or receipt_path(path))
    with parts(printable(file.name), quiet=quiet) as progress:
        checked = verify_result(path, receipt, progress)
    tiles, overviews = len(receipt.levels[0].pieces), len(receipt.levels) - 1
    if as_json:
        click.echo(json.dumps({"path": str(file), "ok": True, "tiles": tiles, "pieces": checked}))
    elif not quiet:
        of = f" and {overviews} overview{'s' * (overviews > 1)}" if overviews else ""
        click.echo(f"{printable(file)}: OK, {tiles} tile{'s' * (tiles != 1)}{of} as written")
