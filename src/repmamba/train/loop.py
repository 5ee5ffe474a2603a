"""fit: train by a recipe in a folder; an interrupted run goes on when it is called again.

The loop is plain torch; docs/explanation/decisions explains why. run.py describes the folder.
"""

import gc
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from repmamba.data.pairs import PairFiles
from repmamba.data.patches import Sampler
from repmamba.data.stock import Stock
from repmamba.durable import check_local, write_durable
from repmamba.errors import JobChanged, TargetError, warn
from repmamba.train.batches import (
    batches,
    check_degradations,
    check_images,
    checksums,
    counted_in_steps,
    open_stock,
    sampler_of,
    training_files,
)
from repmamba.train.callbacks import Callback, TensorBoard
from repmamba.train.distributed import (
    Processes,
    find_processes,
    process_group,
    set_threads_and_niceness,
    stop_signals,
)
from repmamba.train.learner import Learner
from repmamba.train.monitor import Monitor, heading
from repmamba.train.progress import ProgressCallback, image_progress, log_lines
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import read_recipe, recipe_text
from repmamba.train.run import FitResult, Run, RunState
from repmamba.train.saves import newest_save, saved_steps
from repmamba.train.step import Batch
from repmamba.train.validation import Validator, warn_of_shared

logger = logging.getLogger(__name__)


def fit(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    nice: int = 0,
    workers: int = 1,
    log_every: int = 50,
    minutes: float | None = None,
    progress: ProgressCallback | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    cache: Path | None = None,
    stock: Stock | None = None,
) -> FitResult:
    """Train by a recipe in a folder; goes on from its newest save, if there is one.

    Arguments and errors are those of `repmamba.train`. Only the recipe changes a sample; another
    device or number of threads changes the last digits of a loss. stock: images in memory to train
    on instead of data.train.
    """
    check_local(folder)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    told = [*callbacks, *([TensorBoard()] if tensorboard else [])]
    set_threads_and_niceness(threads, nice)
    processes = find_processes(os.environ)
    tell = (progress or log_lines()) if processes.first else lambda reached: None
    place = processes.device(device)
    folder = Path(folder)
    with process_group(processes, place):
        files = [] if stock else training_files(recipe)
        recipe = counted_in_steps(recipe, len(stock.sizes) if stock else len(files))
        check_degradations(recipe, files)
        claim_folder(folder, recipe, processes)
        if processes.first:
            warn_of_shared(files, recipe)
            warn_of_unreached(recipe)
            if files:
                warn_of_unused_reductions(files, recipe)
        for line in heading(recipe, place, processes):
            logger.info(line)
        learner = Learner(recipe, place, processes)
        validator = None
        if processes.first:
            reading = image_progress("Reading validation images", tell)
            validator = Validator(recipe, folder, progress=reading)
        stock = stock or open_stock(
            files,
            recipe,
            cache_of(recipe, folder, cache),
            place,
            processes,
            progress=image_progress("Reading training images", tell),
        )
        sampler = sampler_of(recipe, stock)
        images = checksums(stock, files) if processes.first else None
        run = resumed(Run(recipe, folder, learner, processes, images), files)
        monitor = Monitor(
            folder, recipe, run.step, writes=processes.first, tell=tell, callbacks=told
        )
        prepared = batches(stock, sampler, recipe, run.step, processes, place, workers)
        with monitor, stop_signals() as stopped, frozen_gc():
            run_steps(
                run,
                prepared,
                sampler,
                monitor,
                validator,
                log_every,
                stop=lambda: stopped() or time.monotonic() > deadline,
            )
        run.close()
        return run.result()


def run_steps(
    run: Run,
    prepared: Iterator[Batch],
    sampler: Sampler,
    monitor: Monitor,
    validator: Validator | None,
    log_every: int,
    *,
    stop: Callable[[], bool],
) -> None:
    """Train on the prepared batches, log, validate and save, until the last one or `stop`."""
    recipe = run.recipe
    for batch in prepared:
        run.take(batch, surplus=recipe.step.surplus_step and sampler.ends_epoch(run.step))
        monitor.stepped(sampler.count(run.step - 1))
        if run.due(log_every):
            monitor.log(run.step, *run.measured())
        if run.due(recipe.validation.every) and validator and validator.pairs:
            monitor.pause()
            result = validator.validate(
                run.learner.best_network, run.step, pictured=monitor.pictured
            )
            monitor.validated(result, best=run.ranked(result))
        leaving = run.agreed(stop())
        if run.due(recipe.checkpoints.every) or leaving:
            run.save(monitor)
        if leaving:
            break


@contextmanager
def frozen_gc() -> Iterator[None]:
    """Let the garbage collector skip existing objects: torch alone has half a million."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def warn_of_unreached(recipe: Recipe) -> None:
    """Warn if the run ends before something that the recipe schedules."""
    if unreached := recipe.never_reached():
        warn(
            f"The run ends after {recipe.steps} steps, before the recipe's {', '.join(unreached)}; "
            "change these too."
        )


def warn_of_unused_reductions(files: Sequence[PairFiles], recipe: Recipe) -> None:
    """Warn if no image is large enough for one of data.reductions. files: all training images."""
    if unused := set(recipe.data.reductions) - {one.reduction for one in files}:
        shares = ", ".join(f"{share:g}" for share in sorted(unused))
        warn(
            f"No image is downsampled to {shares} of its size (data.reductions), because the "
            "largest patch would not fit. Use smaller patches or larger shares."
        )


def cache_of(recipe: Recipe, folder: Path, cache: Path | None) -> Path | None:
    """Folder for decoded images, or None."""
    return folder / "cache" if cache is None and recipe.data.cache == "disk" else cache


def claim_folder(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Store the recipe in the folder, unless it holds a run of another one.

    The end of a run, and the descent to it, may be moved as long as no step done depends on the old
    one. Raises JobChanged, TargetError.
    """
    if processes.first:
        kept = folder / "recipe.toml"
        saved = saved_steps(folder / "saves")
        begun = (folder / "curve.jsonl").is_file() or saved
        before = read_recipe(kept) if begun and kept.is_file() else None
        done = saved[-1] if saved else 0
        differences = before.differences(recipe) if before else []
        if before and differences and not recipe.same_until(before, done):
            raise JobChanged(
                f"{folder} holds a run of another recipe ({'; '.join(differences)}), with {done} "
                "steps done. Go on with that recipe, choose another folder, or start from its "
                "weights with start.weights."
            )
        if differences:
            logger.info("The end of the run has moved (%s).", "; ".join(differences))
        if before is None or differences:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_durable(kept, recipe_text(recipe).encode())
            except OSError as fault:
                raise TargetError(
                    f"{kept} cannot be written: {fault.strerror}. Choose another folder."
                ) from fault
    processes.wait()


def resumed(run: Run, files: Sequence[PairFiles]) -> Run:
    """The run restored from its newest good save, or at its beginning.

    Raises JobChanged if it was trained on other images.
    """
    if not run.processes.first:
        run.processes.wait()  # the first process renames corrupt saves
    found = newest_save(run.saves)
    if run.processes.first:
        run.processes.wait()
    if found is None:
        chosen = run.learner.choose_precision(run.processes)
        if chosen != run.recipe.step.precision:
            logger.warning(
                "This machine computes bf16 no faster than float32; training in float32."
            )
        logger.info("Training begins.")
        return run
    save, state = found
    if run.images is not None and "images" in state:  # older saves have no images
        check_images(state["images"], run.images, files)
    run.learner.load(state["learner"])
    run.progress = RunState(**state["progress"])
    logger.info("Continuing after step %d, in %s, from %s.", run.step, run.learner.precision, save)
    return run
