"""repmamba train: a network learns by a recipe, and goes on where it was stopped."""

import os
import sys
from pathlib import Path

import click

from repmamba.cli import options


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the run lives; started again there, it goes on.  [default: runs/ and the recipe's name]",
)
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Lay a value over the recipe's; may be repeated."
)
@options.device
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: one a core]")
@click.option("--nice", type=click.IntRange(0, 19), default=0, metavar="N", help="Give way to other work; 19 the most.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Threads that prepare batches ahead."
)
@click.option("--log-every", type=click.IntRange(min=1), default=50, show_default=True, help="Steps between log lines.")
@click.option("--minutes", type=float, metavar="N", help="Save and leave after so long; started again, it goes on.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files into the folder, too.")
@options.quiet
def train(
    recipe: str,
    folder: Path | None,
    settings: tuple[str, ...],
    device: str | None,
    threads: int | None,
    nice: int,
    workers: int,
    log_every: int,
    minutes: float | None,
    tensorboard: bool,
    quiet: bool,
) -> None:
    """Train a network by RECIPE, a TOML file or one of the packaged: published, x4, x3, x2.

    Stopped at any moment, the same command goes on from the last save. Several processes, as torchrun or SLURM start
    them, share one run.

    \b
    Examples:
      repmamba train x4 --set 'data.train=["train"]' --set 'data.val=["val"]' -o runs/x4
      repmamba train my.toml --set optimiser.lr=1e-4 --nice 19
      torchrun --nproc-per-node 4 -m repmamba.cli train my.toml
    """
    give_way(nice)
    from repmamba.train.loop import fit
    from repmamba.train.recipe_file import read_recipe

    read = read_recipe(recipe, settings)
    result = fit(
        read,
        folder or Path("runs") / read.name,
        device=device,
        threads=threads,
        nice=nice,
        workers=workers,
        log_every=log_every,
        minutes=minutes,
        bar=not quiet and sys.stderr.isatty(),
        tensorboard=tensorboard,
    )
    click.echo(result.summary())


def give_way(nice: int) -> None:
    """Before torch is loaded: let compute threads of a run that gives way sleep while they wait for each other.

    They would spin, and beside other work on two cores a step was seen to take 18 s of CPU time in place of 1.2 s.
    """
    if nice:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
