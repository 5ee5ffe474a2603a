"""train: a recipe by name, by file or as tables, laid over with settings, and fitted in a folder.
For Python.
"""

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
    """Train a network by a recipe in a folder; stopped at any moment, the same call goes on from
    its last save.

    recipe: the name of a packaged one, a TOML file, its tables as mappings, or a Recipe.  settings:
    values laid over
    it, by dotted keys: {"data.train": ["pairs/train"], "optimiser.lr": 1e-4}.  callbacks: objects
    of
    `train.callbacks.Callback`, told of lines of the curve, validations and pictures.  Further: see
    `loop.fit`.
    Raises RepmambaError of the kinds Usage (RecipeError), Source, Target, JobChanged,
    TrainingStopped.
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
            f"recipe is a {type(given).__name__}; give the name of a packaged recipe, a TOML file, "
            "tables or a Recipe."
        )
    for key, value in settings.items():
        set_key(table, key, _plain(key, value))
    return build(table)


def _plain(key: str, value: Any) -> Any:
    """A value as a recipe's file has it: paths as texts, tuples as lists."""
    try:
        return json.loads(json.dumps(value, default=os.fspath))
    except (TypeError, ValueError) as wrong:
        raise RecipeError(
            f"{key} is {value!r:.80}; it must be of numbers, texts, True and False, in lists and "
            "tables."
        ) from wrong
