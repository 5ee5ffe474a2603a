"""fit: a recipe and a folder in, trained weights out; stopped at any moment, the same call goes on.

The folder of a run holds recipe.toml; curve.jsonl, one line a logged step, validation or note; best.safetensors and
last.safetensors, for `load`; saves/, for going on; crops/, a picture of each validation; and curve.png at the end.
Around the step stands plain torch; docs/decisions says why no framework does.
"""

import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmamba.data.degradations import Chain
from repmamba.data.pairs import find_pairs
from repmamba.data.patches import Sampler, Stock, load_stock
from repmamba.errors import JobChanged, MissingExtra, RecipeError, TargetError, TrainingStopped
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.train.curves import plot_curve
from repmamba.train.learner import Learner
from repmamba.train.monitor import Monitor
from repmamba.train.processes import Processes, find_processes, joined
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import read_recipe, recipe_text
from repmamba.train.saves import newest_save, prune_saves, replace_durably, write_save
from repmamba.train.step import Batch
from repmamba.train.validation import Judge, Judgement

logger = logging.getLogger(__name__)

SMOOTHING = 0.98
"""Share of the smoothed loss kept at each step: a memory of about 50 steps."""

SETTLING = 100
"""Steps before the smoothed loss is compared with its lowest."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a call of fit came to.

    weights: the best file, or the last where nothing was validated.  steps: done in all, by this call and those before.
    psnr: of the best validation, in dB by the recipe's rule; None without one.
    """

    weights: Path
    steps: int
    finished: bool
    psnr: float | None
    best_step: int
    rule: str

    def summary(self) -> str:
        """One line for the user."""
        state = "Finished" if self.finished else "Stopped, to be gone on with,"
        best = "" if self.psnr is None else f"; best {self.psnr:.3f} dB ({self.rule}), at step {self.best_step}"
        return f"{state} after {self.steps} steps{best}; weights in {self.weights}."


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
    bar: bool = False,
    tensorboard: bool = False,
    stock: Stock | None = None,
) -> FitResult:
    """Train by a recipe in a folder, from its newest save on if it has one.

    device: default this process's GPU, or the CPU.  threads, nice: of this process.  workers: threads that prepare
    batches ahead; 0 prepares each when it is due.  log_every: steps between lines of the curve.  minutes: save and
    return after so long, to be gone on with.  bar: on stderr.  tensorboard: write its files, too.  None of these
    changes a sample; another device or number of threads changes the last digits of a loss.
    stock: images that are in memory already, to be learnt from in place of those that data.train names.
    Raises JobChanged if the folder holds a run of another recipe, TrainingStopped if the loss is not finite or
    diverges, RecipeError, SourceError, TargetError.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    settle(threads, nice)
    processes = find_processes(os.environ)
    place = processes.device(device)
    folder = Path(folder)
    with joined(processes, place), stop_signals() as stopped:
        stock = stock or open_stock(recipe, folder, place, processes)
        recipe, sampler = counted_in_steps(recipe, stock)
        claim(folder, recipe, processes)
        run = resumed(Run(recipe, folder, Learner(recipe, place, processes), processes))
        judge = Judge(recipe, folder) if processes.first else None
        with Monitor(folder, recipe, run.step, writes=processes.first, bar=bar, tensorboard=tensorboard) as monitor:
            for batch in batches(stock, sampler, recipe, run.step, processes, place, workers):
                run.take(batch, surplus=recipe.step.surplus_step and sampler.ends_epoch(run.step))
                monitor.stepped(sampler.count(run.step - 1))
                if run.due(log_every):
                    monitor.log(run.step, *run.measured())
                if run.due(recipe.validation.every) and judge and judge.pairs:
                    monitor.pause()
                    judgement = judge.judge(run.learner.best_network, run.step)
                    monitor.judged(judgement, best=run.ranked(judgement))
                leaving = run.agreed(stopped() or time.monotonic() > deadline)
                if run.due(recipe.checkpoints.every) or leaving:
                    run.save(monitor)
                if leaving:
                    break
        run.close()
        return run.result()


@dataclass(slots=True)
class Progress:
    """How far a run is and what it remembers of its losses: plain values, saved with it.

    step: steps done.  pending: losses and gradient norms since the last line of the curve.  smoothed, lowest: the
    smoothed loss and its lowest value so far.  best, best_step: the highest PSNR in dB, and after how many steps.
    """

    step: int = 0
    pending: list[list[float]] = field(default_factory=list)
    smoothed: float = math.nan
    lowest: float = math.inf
    best: float = -math.inf
    best_step: int = 0


class Run:
    """A run between two of its steps: the learner, the progress and the folder that keeps both."""

    def __init__(self, recipe: Recipe, folder: Path, learner: Learner, processes: Processes) -> None:
        self.recipe = recipe
        self.folder = folder
        self.learner = learner
        self.processes = processes
        self.progress = Progress()
        self._unread: list[Tensor] = []  # loss and gradient norm of steps that the device may not have finished
        self._rate = 0.0
        self._unsaved: TargetError | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    def due(self, every: int) -> bool:
        """Whether what happens every so many steps happens now; at the end of the run, all of it does."""
        return self.step % every == 0 or self.step == self.recipe.steps

    def agreed(self, leave: bool) -> bool:
        """Whether all processes leave now, as the first one says; several ask each other at every tenth step only."""
        return (self.processes.world == 1 or self.step % 10 == 0) and self.processes.agree(leave)

    def take(self, batch: Batch, *, surplus: bool) -> None:
        """One step of the learner."""
        result = self.learner.step(batch, self.recipe.rate(self.step), surplus=surplus)
        self._unread.append(torch.stack([result.loss, result.gradient_norm]))
        self._rate = result.learning_rate
        self.progress.step += 1

    def measured(self) -> tuple[float, float, float]:
        """Mean loss, mean gradient norm since the last call, and the learning rate. Raises TrainingStopped."""
        self.watch()
        losses, norms = zip(*self.progress.pending, strict=True)
        self.progress.pending = []
        return math.fsum(losses) / len(losses), math.fsum(norms) / len(norms), self._rate

    def watch(self) -> None:
        """Read what the last steps saw. Raises TrainingStopped if it is not finite, or the loss diverges."""
        if not self._unread:
            return
        progress = self.progress
        seen = self.processes.mean(torch.stack(self._unread)).tolist()
        first = progress.step - len(seen) + 1
        for step, (loss, norm) in enumerate(seen, first):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise TrainingStopped(self._fault(step, f"the loss is {loss:g} and the gradient's norm {norm:g}"))
            kept = SMOOTHING if math.isfinite(progress.smoothed) else 0.0
            progress.smoothed = loss if not kept else kept * progress.smoothed + (1 - kept) * loss
            if step >= SETTLING:
                progress.lowest = min(progress.lowest, progress.smoothed)
            if progress.smoothed > self.recipe.divergence * progress.lowest:
                grown = f"the loss, {progress.smoothed:.4g}, has grown to more than {self.recipe.divergence:g} times"
                raise TrainingStopped(self._fault(step, f"{grown} its lowest, {progress.lowest:.4g}"))
        progress.pending += seen
        self._unread = []

    def ranked(self, judgement: Judgement) -> bool:
        """Whether this is the best validation so far; its weights are then in best.safetensors."""
        if not judgement.psnr > self.progress.best:
            return False
        try:
            self._write_weights("best.safetensors", judgement)
        except TargetError as fault:
            logger.warning("The best weights so far were not written: %s", fault)
            return False
        self.progress.best, self.progress.best_step = judgement.psnr, judgement.step
        return True

    def save(self, monitor: Monitor) -> None:
        """Make this moment one that the run can go on from. A full disk is said aloud, and the save before stays."""
        self.watch()
        if not self.processes.first:
            return
        every = self.recipe.checkpoints.archive
        state = {"progress": asdict(self.progress), "learner": self.learner.state()}
        try:
            write_save(self.saves, self.step, state)
            prune_saves(self.saves, self.recipe.checkpoints.keep, lambda step: every > 0 and step % every == 0)
            self._write_weights("last.safetensors", None)
            self._unsaved = None
        except TargetError as fault:
            logger.warning("%s Training goes on; the save before stays.", fault)
            monitor.note(self.step, str(fault))
            self._unsaved = fault

    def close(self) -> None:
        """Draw the curve. Raises TargetError if the last save could not be written."""
        if self._unsaved is not None:
            raise self._unsaved
        if self.processes.first:
            try:
                plot_curve(self.folder / "curve.jsonl", self.folder / "curve.png")
            except MissingExtra as missing:
                logger.info("No picture of the curve: %s", missing)
        self.processes.wait()

    def result(self) -> FitResult:
        """What the run has come to."""
        progress = self.progress
        judged = progress.best_step > 0
        return FitResult(
            weights=self.folder / ("best.safetensors" if judged else "last.safetensors"),
            steps=progress.step,
            finished=progress.step == self.recipe.steps,
            psnr=progress.best if judged else None,
            best_step=progress.best_step,
            rule=self.recipe.validation.rule,
        )

    @property
    def saves(self) -> Path:
        """Where the saves are."""
        return self.folder / "saves"

    def _write_weights(self, name: str, judgement: Judgement | None) -> None:
        facts: dict[str, Any] = {"recipe": self.recipe.to_dict(), "steps": self.step}
        if judgement is not None:
            facts["validation"] = asdict(judgement)
        origin = f"repmamba train, recipe {self.recipe.name}, {self.step} steps"
        write_checkpoint(self.folder / name, Checkpoint.of(self.learner.best_network, origin=origin, training=facts))

    def _fault(self, step: int, what: str) -> str:
        saves = newest_save(self.saves) if self.processes.first else None
        good = f"the last good save is {saves[0]}" if saves else "there is no save yet"
        advice = "Try a lower optimiser.lr, a longer schedule.warmup or step.clip, in a new folder"
        return f"Stopped at step {step}: {what}; {good}. {advice}."


def settle(threads: int | None, nice: int) -> None:
    """Set this process's threads and niceness."""
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    if threads is not None:
        torch.set_num_threads(threads)


def open_stock(recipe: Recipe, folder: Path, device: torch.device, processes: Processes) -> Stock:
    """The images to learn from, where the recipe wants them. The first process fills a cache, the others find it."""
    files = [one for source in recipe.data.train for one in find_pairs(Path(source))]
    if not files:
        raise RecipeError("data.train is empty; name at least one folder of images.")
    cache = folder / "cache" if recipe.data.cache == "disk" else None
    place = device if recipe.data.cache == "device" else None
    if not processes.first:
        processes.wait()
    stock = load_stock(files, recipe.network.scale, cache=cache, device=place)
    if processes.first:
        processes.wait()
    return stock


def counted_in_steps(recipe: Recipe, stock: Stock) -> tuple[Recipe, Sampler]:
    """The recipe in steps, an epoch being what this stock makes it, and the sampler of all its steps."""

    def sampler(recipe: Recipe) -> Sampler:
        data = recipe.data
        return Sampler(
            recipe.seed,
            stock.sizes,
            data.patches,
            data.augment,
            keep_short=data.short_batch == "keep",
            by_area=data.draw == "area",
        )

    in_steps = recipe.in_steps(sampler(recipe).steps_per_epoch(0))
    return in_steps, sampler(in_steps)


def claim(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Make the folder this recipe's. Raises JobChanged if it is another's."""
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "recipe.toml"
        if kept.is_file() and (differences := read_recipe(kept).differences(recipe)):
            raise JobChanged(
                f"{folder} holds a run of another recipe ({'; '.join(differences)}). Go on with that one, take another "
                "folder, or name its weights in start.weights."
            )
        replace_durably(kept, recipe_text(recipe).encode())
    processes.wait()


def resumed(run: Run) -> Run:
    """The run as its newest good save left it, or at its beginning."""
    if not run.processes.first:
        run.processes.wait()  # the first one sets aside what is corrupt
    found = newest_save(run.saves)
    if run.processes.first:
        run.processes.wait()
    if found is None:
        chosen = run.learner.choose_precision(run.recipe.data.patches[0].size, run.processes)
        if chosen != run.recipe.step.precision:
            logger.warning("This machine computes bf16 no faster than float32; the run is in float32.")
        return run
    save, state = found
    run.learner.load(state["learner"])
    run.progress = Progress(**state["progress"])
    logger.info("Going on from %s.", save)
    return run


def batches(
    stock: Stock, sampler: Sampler, recipe: Recipe, step: int, processes: Processes, device: torch.device, workers: int
) -> Iterator[Batch]:
    """This process's share of the batch of every step from `step` on, on the device, prepared ahead by some threads."""
    chain = Chain(recipe.network.scale, recipe.data.degradations) if recipe.data.degradations else None

    def prepared(step: int) -> Batch:
        samples = sampler.samples(step)
        mine = [samples[index] for index in processes.share(len(samples))]
        weight = len(mine) * processes.world / len(samples)
        # Gradients are exchanged by all or none: without a sample of its own, a process takes one that counts nothing.
        size = recipe.data.patches[sampler.phase(step)].size
        lr, hr = stock.batch(mine or samples[:1], size, seed=recipe.seed, degrade=chain)
        return Batch(lr.to(device, non_blocking=True), hr.to(device, non_blocking=True), weight)

    yield from ahead(prepared, range(step, recipe.steps), workers)


def ahead(function: Callable[[int], Batch], steps: range, workers: int) -> Iterator[Batch]:
    """The function's value for each step in order, up to two a worker computed ahead; each when due without workers."""
    if workers == 0:
        yield from map(function, steps)
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, "batches") as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(function, step))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether a request to end (SIGTERM, as a cluster's queue sends it, or the first Ctrl-C) has come meanwhile."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        logger.warning("Asked to stop: the run is saved after this step. Once more to stop at once.")
        asked.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
