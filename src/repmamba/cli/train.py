"""repmamba train: a network learns by a recipe, and goes on where it was stopped."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from repmamba.cli import options
from repmamba.cli.progress import training


def _recipe_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Packaged recipes, and whatever else the shell finds, since a recipe may be a file."""
    from click.shell_completion import CompletionItem

    from repmamba.train.recipe_file import packaged

    names = [CompletionItem(name) for name in packaged() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


class _NamesRecipes(click.Command):
    """A command whose help has the names of the packaged recipes in the place of RECIPES."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click has it, with the names."""
        from repmamba.train.recipe_file import packaged

        self.help = (self.help or "").replace("RECIPES", ", ".join(packaged()))
        super().format_help_text(ctx, formatter)


@click.command(cls=_NamesRecipes)
@click.argument("recipe", metavar="RECIPE", shell_complete=_recipe_names)
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the run lives; started again there, it goes on.  [default: runs/ and the recipe's "
    "name]",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Lay a value over the recipe's; may be repeated.",
)
@options.device
@options.threads
@options.nice
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads that prepare batches ahead.",
)
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Keep decoded images there, for other runs too.  [default: the run's folder, if the "
    "recipe caches on disk]",
)
@click.option(
    "--log-every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Steps between log lines.",
)
@options.minutes
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
    cache: Path | None,
    log_every: int,
    minutes: float | None,
    tensorboard: bool,
    quiet: bool,
) -> None:
    """Train a network by RECIPE, a TOML file or one of the packaged: RECIPES.

    Stopped at any moment, the same command goes on from the last save. Several processes, as
    torchrun or SLURM start them, share one run.

    \b
    Examples:
      repmamba train x4 --set 'data.train=["train"]' --set 'data.val=["val"]' -o runs/x4
      repmamba train my.toml --set optimiser.lr=1e-4 --nice 19
      torchrun --nproc-per-node 4 -m repmamba.cli train my.toml
    """
    from repmamba.train.loop import fit
    from repmamba.train.recipe_file import read_recipe

    read = read_recipe(recipe, settings)
    with one_voice(quiet=quiet) as say, training(quiet=quiet) as progress:
        result = fit(
            read,
            folder or Path("runs") / read.name,
            device=device,
            threads=threads,
            nice=nice,
            workers=workers,
            log_every=log_every,
            minutes=minutes,
            progress=progress,
            tensorboard=tensorboard,
            cache=cache,
        )
        say(result.summary())


@contextmanager
def one_voice(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Log lines on stderr, above a bar too, and what says the result; of several processes, the
    first one speaks.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from repmamba.train.processes import find_processes

    first, logger = find_processes(os.environ).first, logging.getLogger("repmamba.train")
    if not quiet and logger.getEffectiveLevel() != logging.DEBUG:
        logger.setLevel(logging.INFO if first else logging.WARNING)
    try:
        with logging_redirect_tqdm([logging.getLogger("repmamba")]):
            yield click.echo if first else lambda text: None
    finally:
        logger.setLevel(logging.NOTSET)
