"""`repmamba.train`: train by a recipe given by name, as a file, as tables or as a Recipe."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmamba.errors import RecipeError, UsageError
from repmamba.train.callbacks import Callback
from repmamba.train.loop import fit
from repmamba.train.progress import ProgressCallback
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import build, recipe_tables, set_key
from repmamba.train.run import FitResult


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    folder: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    threads: int | None = None,
    nice: int = 0,
    workers: int = 1,
    log_every: int = 50,
    minutes: float | None = None,
    progress: ProgressCallback | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    cache: str | os.PathLike[str] | None = None,
) -> FitResult:
    """Train a network by a recipe in a folder; an interrupted run goes on when called again.

    Args:
        recipe: The name of a packaged recipe, a TOML file, its tables as mappings, or a Recipe.
        folder: Of the run; created if needed.
        settings: Values that replace the recipe's, by dotted keys: {"data.train": ["pairs/train"],
            "optimiser.lr": 1e-4}.
        device: Default: a CUDA GPU if there is one, otherwise the CPU.
        threads: torch threads of this process.
        nice: Niceness of this process.
        workers: Threads that prefetch batches; 0 prepares each when it is needed.
        log_every: Steps between entries of the curve.
        minutes: Save and return after this time; a later call goes on.
        progress: Called with the Progress. Default: log lines.
        tensorboard: Also write TensorBoard files.
        callbacks: `repmamba.Callback` objects, called with entries of the curve, validations and
            pictures.
        cache: Folder for decoded images, which several runs may share. Default: in the run's folder
            if data.cache is "disk", otherwise none.

    Returns:
        The weights, and how far the run is.

    Raises:
        RecipeError: A wrong key or value, or images that do not fit the recipe.
        JobChanged: The folder holds a run of another recipe or of other images.
        TrainingStopped: The loss is not finite or diverges, or a process is missing.
        SourceError: An image cannot be read.
        TargetError: The folder cannot be written.
    """
    return fit(
        _recipe(recipe, settings or {}),
        Path(folder),
        device=device,
        threads=threads,
        nice=nice,
        workers=workers,
        log_every=log_every,
        minutes=minutes,
        progress=progress,
        tensorboard=tensorboard,
        callbacks=callbacks,
        cache=None if cache is None else Path(cache),
    )


def _recipe(given: Any, settings: Mapping[str, Any]) -> Recipe:
    if isinstance(given, str | os.PathLike):
        table = recipe_tables(os.fspath(given))
    elif isinstance(given, Recipe):
        table = given.to_dict()
    elif isinstance(given, Mapping):
        table = _plain("recipe", given)
    else:
        raise UsageError(
            f"recipe is a {type(given).__name__}; it takes the name of a packaged recipe, a TOML "
            "file, tables or a Recipe."
        )
    for key, value in settings.items():
        set_key(table, key, _plain(key, value))
    return build(table)


def _plain(key: str, value: Any) -> Any:
    """A value as in a recipe file: paths as text, tuples as lists."""
    try:
        return json.loads(json.dumps(value, default=os.fspath))
    except (TypeError, ValueError) as wrong:
        raise RecipeError(
            f"{key} is {value!r:.80}; it takes numbers, text, True and False, in lists and tables."
        ) from wrong
