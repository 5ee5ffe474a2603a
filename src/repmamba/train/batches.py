"""What each step trains on: the recipe's images, the samples of each step, prefetched batches."""

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repmamba.data.degradations import Chain
from repmamba.data.pairs import PairFiles, find_pairs
from repmamba.data.patches import Sampler
from repmamba.data.sensors import SensorChain
from repmamba.data.stock import Stock, load_stock
from repmamba.errors import JobChanged, RecipeError, ShapeMismatch
from repmamba.prefetch import prefetch
from repmamba.train.distributed import Processes
from repmamba.train.recipe import Recipe
from repmamba.train.step import Batch

logger = logging.getLogger(__name__)


def training_files(recipe: Recipe) -> list[PairFiles]:
    """The files of all training images, as they are and downsampled (data.reductions).

    Raises RecipeError, SourceError, UsageError.
    """
    files = [one for source in recipe.data.train for one in find_pairs(Path(source))]
    if not files:
        raise RecipeError("data.train is empty; name at least one folder of images.")
    shares = recipe.data.reductions
    return files + [one for share in shares for one in _reduced(files, share, recipe)]


def _reduced(files: Sequence[PairFiles], share: float, recipe: Recipe) -> Iterator[PairFiles]:
    """These images downsampled to a share of their size, where the largest patch still fits."""
    patch = max(phase.size for phase in recipe.data.patches)
    for one in files:
        reduced = replace(one, lr=None, reduction=share)
        with suppress(ShapeMismatch):  # too small to be downsampled at all
            if min(reduced.blank(recipe.network.scale).lr.shape[:2]) >= patch:
                yield reduced


def chain_of(recipe: Recipe) -> Chain | SensorChain | None:
    """The chain that makes lr from hr instead of plain downsampling, or None."""
    scale, data = recipe.network.scale, recipe.data
    if data.degrade:
        return SensorChain(data.degrade, scale)
    return Chain(scale, data.degradations) if data.degradations else None


def check_degradations(recipe: Recipe, files: Sequence[PairFiles]) -> None:
    """Raise RecipeError early if images of this kind cannot be degraded.

    The first one is enough: a stock holds one kind.
    """
    chain = chain_of(recipe)
    if chain and files:
        edge = 2 * chain.scale
        hr = files[0].blank(chain.scale).hr[:edge, :edge]
        try:
            chain(hr, np.random.default_rng(0))
        except ShapeMismatch as fault:
            raise RecipeError(
                f"The recipe degrades, and {files[0].hr} cannot be degraded: {fault}"
            ) from fault


def counted_in_steps(recipe: Recipe, images: int) -> Recipe:
    """The recipe in steps: an epoch has as many as it takes to see each image once."""
    return recipe.in_steps(-(-images // recipe.data.patches[0].batch))


def open_stock(
    files: Sequence[PairFiles],
    recipe: Recipe,
    cache: Path | None,
    device: torch.device,
    processes: Processes,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Stock:
    """The training images, stored where the recipe says.

    cache: a folder for decoded images; the first process fills it, the others wait and read it.
    progress: called with the number of images read and their total.
    """
    if cache and not processes.first:
        processes.wait()
    reduced = sum(one.reduction != 1 for one in files)
    of_them = f", {reduced} of them downsampled" if reduced else ""
    folders = ", ".join(recipe.data.train)
    logger.info("Reading %d training images%s: %s.", len(files), of_them, folders)
    place = device if recipe.data.cache == "device" else None
    stock = load_stock(files, recipe.network.scale, cache=cache, device=place, progress=progress)
    if cache and processes.first:
        processes.wait()
    return stock


def checksums(stock: Stock, files: Sequence[PairFiles]) -> Tensor:
    """Fingerprint of a stock: (images, 3) of lr height, lr width and a CRC-32 of the pixels.

    files: that it was read from, if any. Only hr and lr that come from files count: an lr made here
    may differ by a level between machines.
    """
    rows = []
    for image, (height, width) in enumerate(stock.sizes):
        read = [stock.hr]
        if files:
            one = files[image]
            read = [stock.hr] * (one.reduction == 1) + [stock.lr] * (one.lr is not None)
        checksum = 0
        for row in read:
            start, count = row.starts[image], row.heights[image] * row.widths[image]
            checksum = zlib.crc32(row.pixels[start : start + count].cpu().numpy().data, checksum)
        rows.append([height, width, checksum])
    return torch.tensor(rows)


def check_images(before: Tensor, now: Tensor, files: Sequence[PairFiles]) -> None:
    """Raise JobChanged unless a run's images have the same checksums as before."""
    if torch.equal(before, now):
        return
    if len(before) != len(now):
        what = f"there were {len(before)}, now there are {len(now)}"
    else:
        different = (before != now).any(dim=1).nonzero().flatten().tolist()
        first = files[different[0]].hr if files else f"number {different[0] + 1}"
        what = f"{len(different)} of {len(now)} have other pixels or sizes, the first is {first}"
    raise JobChanged(
        f"The training images have changed since this run began: {what}. Restore them to go on, or "
        "choose another folder for a new run, which may start from the weights of this one "
        "(start.weights)."
    )


def sampler_of(recipe: Recipe, stock: Stock) -> Sampler:
    """The sampler for all steps of a recipe that counts in steps."""
    data = recipe.data
    return Sampler(
        recipe.seed,
        stock.sizes,
        data.patches,
        data.augment,
        keep_short=data.short_batch == "keep",
        by_area=data.draw == "area",
    )


def batches(
    stock: Stock,
    sampler: Sampler,
    recipe: Recipe,
    step: int,
    processes: Processes,
    device: torch.device,
    workers: int,
) -> Iterator[Batch]:
    """This process's share of the batch of every step from `step` on, on the device.

    workers: threads that each prefetch two batches; 0 prepares each batch when it is needed.
    """
    chain = chain_of(recipe)

    def prepared(step: int) -> Batch:
        samples = sampler.samples(step)
        mine = [samples[index] for index in processes.share(len(samples))]
        weight = len(mine) * processes.world / len(samples)
        # All processes exchange gradients or none: one without a sample takes any, with weight 0.
        size = recipe.data.patches[sampler.phase(step)].size
        lr, hr = stock.batch(mine or samples[:1], size, seed=recipe.seed, degrade=chain)
        return Batch(to_device(lr, device), to_device(hr, device), weight)

    steps = range(step, recipe.steps)
    if workers == 0:
        yield from map(prepared, steps)
        return
    with ThreadPoolExecutor(workers, "batches") as pool:
        yield from prefetch(pool, prepared, steps, 2 * workers + 1)


def to_device(patches: Tensor, device: torch.device) -> Tensor:
    """The patches on the device; to a GPU from pinned memory, without waiting for the transfer."""
    if device.type == "cuda" and patches.device.type == "cpu":
        patches = patches.pin_memory()
    return patches.to(device, non_blocking=True)
