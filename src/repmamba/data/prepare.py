"""Prepare pairs: a folder of originals becomes GT, LR and Bicubic, with a manifest.

The images are drawn first, from names and a seed. Each is then made independently, in any order and
by any number of workers, and added to a journal, so that an interrupted run resumes. A broken image
is reported and left out. Given the manifest of an earlier run, `prepare` repeats its draw and
checks the originals by their digests.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from repmamba.cores import available_cores
from repmamba.data.draw import Item, Settings, Skipped, draw_items
from repmamba.data.images import is_whole_png
from repmamba.data.manifest import (
    Journal,
    changed_pixels,
    listed_items,
    listed_settings,
    read_manifest,
)
from repmamba.data.pair_files import Made, make_item, paths_of
from repmamba.durable import check_local, write_errors
from repmamba.errors import OutOfMemory, UsageError

logger = logging.getLogger(__name__)

NAMED = 20  # left-out images that a summary names; the manifest lists all
WORTH_WORKERS = 8  # images; for fewer, starting processes takes longer than the work


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of a run."""

    target: Path
    manifest: Path
    made: int
    kept: int  # from an earlier run
    skipped: tuple[Skipped, ...]
    changed: tuple[str, ...] = ()  # names of images whose pixels differ from the given manifest

    def summary(self) -> str:
        """One line, and one for each left-out image, up to NAMED of them."""
        kept = f", {self.kept} kept from before" if self.kept else ""
        left_out = f", {len(self.skipped)} left out" if self.skipped else ""
        lines = [
            f"{self.target}: {self.made} images made{kept}{left_out}; see {self.manifest.name}."
        ]
        if self.changed:
            lines.append(
                f"  pixels differ from the given manifest: {len(self.changed)}, first "
                f"{self.changed[0]}; another library or version may have decoded or downsampled "
                "them."
            )
        lines += [f"  left out {one.source}: {one.reason}" for one in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"  and {len(self.skipped) - NAMED} more; see {self.manifest.name}.")
        return "\n".join(lines)


def prepare(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    manifest: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Make GT, LR and Bicubic from a benchmark's originals, and a manifest.

    source: Folder of the originals, as unpacked.
    target: Folder to write into; a run that was interrupted there is resumed.
    settings: The benchmark, the scale, the draw and the degradations.
    manifest: Of an earlier run, whose draw and seed to repeat; settings then has no draw.
    workers: Number of processes; by default one per core.
    progress: Called with the number of images done and the number of all.
    Returns how many images were made, kept and left out. Raises SourceError: the layout of source
    is not known, or the manifest is not valid; UsageError: there are too few images, the manifest
    is of another draw, or target and source contain each other; JobChanged: target holds a result
    of other settings; VerificationError: an original is not the one that the manifest lists;
    TargetError: target cannot be written; NoSpace if the disk is full.
    """
    check_local(target)
    source, target = source.resolve(), target.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise UsageError(
            f"{target} and {source} contain each other; prepare into a folder beside the originals."
        )
    listed = read_manifest(manifest) if manifest else None
    if manifest and listed:
        items, unfit = listed_items(listed, manifest, source), list[Skipped]()
        settings = listed_settings(settings, listed, manifest)
    else:
        items, unfit = draw_items(source, settings)
    with write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    journal = Journal(target, settings, items)
    for unfinished in target.rglob(".*.part"):  # left by a run that was killed
        unfinished.unlink()
    kept = _whole(journal.made(), target)
    finished = {(made.part, made.name) for made in kept}
    remaining = [item for item in items if (item.part, item.name) not in finished]
    logger.info("%s: %d images to make, %d kept", target, len(remaining), len(kept))
    made, skipped = [], list(unfit)
    work = partial(make_item, source=source, target=target, settings=settings)
    for done, outcome in enumerate(_in_parallel(work, remaining, workers), start=1):
        if isinstance(outcome, Made):
            journal.add(outcome)
            made.append(outcome)
        else:
            skipped.append(outcome)
            logger.debug("left out %s: %s", outcome.source, outcome.reason)
        if progress:
            progress(len(kept) + done, len(items))
    whole = sorted(kept + made, key=lambda one: (one.part, one.name))
    path = journal.close(whole, skipped)
    changed = changed_pixels(whole, journal.heading, listed)
    return Prepared(target, path, len(made), len(kept), tuple(skipped), changed)


def _whole(made: Sequence[Made], target: Path) -> list[Made]:
    """Those images whose files are complete.

    Syncing many small files would cost more than making them, so what a power cut destroyed is
    found here instead.
    """
    return [one for one in made if all(map(is_whole_png, paths_of(target, one.part, one.name)))]


def _in_parallel(
    work: Callable[[Item], Made | Skipped], items: Sequence[Item], workers: int | None
) -> Iterator[Made | Skipped]:
    workers = min(workers or available_cores(), len(items))
    if workers < 2 or len(items) < WORTH_WORKERS:
        yield from map(work, items)
        return
    # Spawned, not forked: a process with threads (the progress bar's) cannot be forked safely.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, items, chunksize=4)
        except BrokenProcessPool as error:
            raise OutOfMemory(
                "A worker was killed, most likely for lack of memory. Finished images are kept: "
                "run the same command again with fewer --jobs."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
