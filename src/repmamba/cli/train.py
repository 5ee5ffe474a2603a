"""repmamba train: train a network by a recipe, or continue where it was stopped."""

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
    """Packaged recipes and files, since a recipe may be either."""
    from click.shell_completion import CompletionItem

    from repmamba.train.recipe_file import packaged

    names = [CompletionItem(name) for name in packaged() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


class _NamesRecipes(click.Command):
    """A command whose help lists the packaged recipes in place of RECIPES."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help text of click, with the names."""
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
    help="Folder of the run; the same command continues a run in it.  [default: runs/ and the "
    "recipe's name]",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value of the recipe; may be repeated.",
)
@options.device
@options.threads
@options.nice
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads that prefetch batches.",
)
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder for decoded images, shared between runs.  [default: the run's folder, if the "
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
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard files into the folder.")
@options.quiet
def train(
    recipe: str,
    folder: Path | None,
    settings: tuple[str, ...],
    quiet: bool,
    **arguments: Any,  # of repmamba.train
) -> None:
    """Train a network by RECIPE, a TOML file or a packaged recipe: RECIPES.

    A stopped run continues from its last save with the same command. Several processes, started by
    torchrun or SLURM, share one run.

    \b
    Examples:
      repmamba train x4 --set 'data.train=["train"]' --set 'data.val=["val"]' -o runs/x4
      repmamba train my.toml --set optimiser.lr=1e-4 --nice 19
      torchrun --nproc-per-node 4 -m repmamba.cli train my.toml
    """
    from repmamba.train.loop import fit
    from repmamba.train.recipe_file import read_recipe

    read = read_recipe(recipe, settings)
    folder = folder or Path("runs") / read.name
    with one_voice(quiet=quiet) as say, training(quiet=quiet) as progress:
        say(fit(read, folder, progress=progress, **arguments).summary())


@contextmanager
def one_voice(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Log lines above the bar, and a function that prints the result, in the first process only."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from repmamba.train.distributed import find_processes

    first, logger = find_processes(os.environ).first, logging.getLogger("repmamba.train")
    if not quiet and logger.getEffectiveLevel() != logging.DEBUG:
        logger.setLevel(logging.INFO if first else logging.WARNING)
    try:
        with logging_redirect_tqdm([logging.getLogger("repmamba")]):
            yield click.echo if first else lambda text: None
    finally:
        logger.setLevel(logging.NOTSET)
