"""What each step learns from: the stock of a recipe, the samples of its steps, and batches prepared ahead."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from repmamba.data.degradations import Chain
from repmamba.data.pairs import find_pairs
from repmamba.data.patches import Sampler
from repmamba.data.stock import Stock, load_stock
from repmamba.errors import RecipeError
from repmamba.train.processes import Processes
from repmamba.train.recipe import Recipe
from repmamba.train.step import Batch


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
