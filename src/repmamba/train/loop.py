"""fit: a recipe and a folder in, trained weights out; stopped at any moment, the same call goes on.

The loop is plain torch; docs/explanation/decisions says why. run.py says what the folder holds.
"""

import gc
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from repmamba.data.pairs import PairFiles
from repmamba.data.stock import Stock
from repmamba.durable import check_local, write_durable
from repmamba.errors import JobChanged, RepmambaWarning, TargetError
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
from repmamba.train.learner import Learner
from repmamba.train.monitor import Monitor, heading
from repmamba.train.processes import Processes, find_processes, joined, settle, stop_signals
from repmamba.train.reached import Tell, log_lines, reading
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import read_recipe, recipe_text
from repmamba.train.run import FitResult, Progress, Run
from repmamba.train.saves import newest_save, saved_steps
from repmamba.train.validation import Judge, warn_of_shared

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
    progress: Tell | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    cache: Path | None = None,
    stock: Stock | None = None,
) -> FitResult:
    """Train by a recipe in a folder, from its newest save on if it has one.

    device: default this process's GPU, or the CPU.  threads, nice: of this process.  workers:
    threads that prepare
    batches ahead; 0 prepares each when it is due.  log_every: steps between lines of the curve.
    minutes: save and
    return after so long, to be gone on with.  progress: called with how far the run is, by the
    first process; without
    it, log lines say so.  tensorboard: write its files, too.  callbacks: who is told of lines of
    the curve,
    validations and pictures.  cache: a folder that keeps the decoded images for this run and
    others; default the run's
    own where data.cache is "disk", else none.  None of these changes a sample; another device or
    number of threads
    changes the last digits of a loss.
    stock: images that are in memory already, to be learnt from in place of those that data.train
    names. Raises JobChanged if the folder holds a run of another recipe or of other images,
    TrainingStopped if the loss is not finite or diverges, RecipeError, SourceError, TargetError.
    """
    check_local(folder)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    told = [*callbacks, *([TensorBoard()] if tensorboard else [])]
    settle(threads, nice)
    processes = find_processes(os.environ)
    tell = (progress or log_lines()) if processes.first else lambda reached: None
    place = processes.device(device)
    folder = Path(folder)
    with joined(processes, place):
        files = [] if stock else training_files(recipe)
        recipe = counted_in_steps(recipe, len(stock.sizes) if stock else len(files))
        check_degradations(recipe, files)
        claim(folder, recipe, processes)
        if processes.first:
            warn_of_shared(files, recipe)
            warn_of_the_end(recipe)
            if files:
                warn_of_unused_reductions(files, recipe)
        for line in heading(recipe, place, processes):
            logger.info(line)
        learner = Learner(recipe, place, processes)
        judge = (
            Judge(recipe, folder, progress=reading("Reading to judge", tell))
            if processes.first
            else None
        )
        stock = stock or open_stock(
            files,
            recipe,
            cache_of(recipe, folder, cache),
            place,
            processes,
            progress=reading("Reading to learn", tell),
        )
        sampler = sampler_of(recipe, stock)
        images = checksums(stock, files) if processes.first else None
        run = resumed(Run(recipe, folder, learner, processes, images), files)
        monitor = Monitor(
            folder, recipe, run.step, writes=processes.first, tell=tell, callbacks=told
        )
        with monitor, stop_signals() as stopped, old_objects_left_alone():
            for batch in batches(stock, sampler, recipe, run.step, processes, place, workers):
                run.take(batch, surplus=recipe.step.surplus_step and sampler.ends_epoch(run.step))
                monitor.stepped(sampler.count(run.step - 1))
                if run.due(log_every):
                    monitor.log(run.step, *run.measured())
                if run.due(recipe.validation.every) and judge and judge.pairs:
                    monitor.pause()
                    judgement = judge.judge(
                        run.learner.best_network, run.step, pictured=monitor.pictured
                    )
                    monitor.judged(judgement, best=run.ranked(judgement))
                leaving = run.agreed(stopped() or time.monotonic() > deadline)
                if run.due(recipe.checkpoints.every) or leaving:
                    run.save(monitor)
                if leaving:
                    break
        run.close()
        return run.result()


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Within it the garbage collector looks only at what is made there: torch alone has half a
    million objects.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def warn_of_the_end(recipe: Recipe) -> None:
    """Warn where the run is too short for what the recipe has in it."""
    if unreached := recipe.never_reached():
        warnings.warn(
            f"The run ends after {recipe.steps} steps, before what the recipe has later "
            f"({', '.join(unreached)}); set "
            "these as well.",
            RepmambaWarning,
            stacklevel=2,
        )


def warn_of_unused_reductions(files: Sequence[PairFiles], recipe: Recipe) -> None:
    """Warn where no image is large enough to be reduced as the recipe asks. files: of all images to
    learn from.
    """
    if unused := set(recipe.data.reductions) - {one.reduction for one in files}:
        shares = ", ".join(f"{share:g}" for share in sorted(unused))
        warnings.warn(
            f"No image is reduced to {shares} of its sides (data.reductions): the largest patch "
            "would not fit into it. "
            "Take smaller patches or larger shares.",
            RepmambaWarning,
            stacklevel=2,
        )


def cache_of(recipe: Recipe, folder: Path, cache: Path | None) -> Path | None:
    """Where decoded images are kept, if they are."""
    return folder / "cache" if cache is None and recipe.data.cache == "disk" else cache


def claim(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Make the folder this recipe's, if no run of another has begun there. Raises JobChanged,
    TargetError.

    The end of a run that has begun, and the descent to it, may be moved as long as no step done has
    seen the old one.
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
                "steps done. Go on "
                "with that one, take another folder, or name its weights in start.weights."
            )
        if differences:
            logger.info("The end of the run is moved (%s).", "; ".join(differences))
        if before is None or differences:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_durable(kept, recipe_text(recipe).encode())
            except OSError as fault:
                raise TargetError(
                    f"{kept} cannot be written: {fault.strerror}. Take another folder."
                ) from fault
    processes.wait()


def resumed(run: Run, files: Sequence[PairFiles]) -> Run:
    """The run as its newest good save left it, or at its beginning. Raises JobChanged if that saw
    other images.
    """
    if not run.processes.first:
        run.processes.wait()  # the first one sets aside what is corrupt
    found = newest_save(run.saves)
    if run.processes.first:
        run.processes.wait()
    if found is None:
        chosen = run.learner.choose_precision(run.processes)
        if chosen != run.recipe.step.precision:
            logger.warning(
                "This machine computes bf16 no faster than float32; the run is in float32."
            )
        logger.info("Training begins.")
        return run
    save, state = found
    if run.images is not None and "images" in state:  # saves of older versions do not say
        check_images(state["images"], run.images, files)
    run.learner.load(state["learner"])
    run.progress = Progress(**state["progress"])
    logger.info("Going on after step %d, in %s, from %s.", run.step, run.learner.precision, save)
    return run
