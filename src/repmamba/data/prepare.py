"""A folder of originals becomes pairs on disk, and a manifest that says from what and how.

The plan is drawn first, from names and a seed; each image is then made by itself, in any order and
by any number of workers, and noted in a journal, so that a run that was ended goes on where it
stood. A broken image is named and counted and ends nothing. The manifest of one run, given to
another, repeats its choice of images and proves, by their digests, that they are the same.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba.cores import available_cores
from repmamba.data.benchmarks import Benchmark, Bicubic, Original, find_originals
from repmamba.data.degradations import Chain, Stage, generator_for
from repmamba.data.images import blank_image, is_whole_png, read_file, read_image, write_png
from repmamba.data.pairs import BICUBIC_FOLDER, HR_FOLDER, LR_FOLDER
from repmamba.data.sensors import SENSORS, SensorChain
from repmamba.durable import check_local, write_durable, write_errors
from repmamba.errors import JobChanged, OutOfMemory, SourceError, UsageError, VerificationError
from repmamba.pixels.resize import imresize, to_uint8

logger = logging.getLogger(__name__)

MANIFEST, JOURNAL = "manifest.json", ".prepare.jsonl"
FORMAT = 1
NAMED = 20  # images left out that a summary names; the manifest has them all
# settings of a draw
DRAW_OPTIONS = {"count": "--count", "part": "--split", "drawn": "--drawn", "val": "--val"}
WORTH_WORKERS = 8  # images; below that, starting processes takes longer than the work


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the result depends on beside the originals."""

    benchmark: Benchmark
    scale: int
    seed: int = 0
    # images drawn, of each class folder where there are some; None takes all
    count: int | None = None
    part: str | None = None  # one of the benchmark's own splits
    # for training and for test, of each class; None takes the benchmark's rule
    drawn: tuple[int, int] | None = None
    val: int | None = None  # held out of both for validation, of each class; None holds out none
    stages: tuple[Stage, ...] = ()
    degrade: str | None = None  # a chain of data.sensors by name

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise UsageError(f"A scale of {self.scale} is not prepared; take 2, 3 or 4.")
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}; it must be 0 or more.")
        if self.count is not None and self.count < 1:
            raise UsageError(f"The count is {self.count}; it must be 1 or more.")
        if self.val is not None and self.val < 1:
            raise UsageError(
                f"{self.val} images for validation cannot be held out; give 1 or more."
            )
        if self.benchmark.drawn and self.count is not None:
            raise UsageError(
                f"{self.benchmark.title} is drawn for training and test; give those numbers, not a "
                "count."
            )
        if self.drawn is not None and (
            not self.benchmark.drawn or min(self.drawn) < 0 or max(self.drawn) < 1
        ):
            raise UsageError(
                f"{self.drawn} images for training and test cannot be drawn from "
                f"{self.benchmark.title}."
            )

        if self.degrade is not None and self.degrade not in SENSORS:
            raise UsageError(
                f"There is no chain {self.degrade!r}; choose among {', '.join(SENSORS)}."
            )
        if self.degrade is not None and self.stages:
            raise UsageError(
                f"The chain {self.degrade} has all its faults; leave out those of your own."
            )

    @property
    def chain(self) -> Chain | SensorChain | None:
        """What makes LR, where it is not the benchmark's own rule."""
        if self.degrade is not None:
            return SensorChain(self.degrade, self.scale)
        return Chain(self.scale, self.stages) if self.stages else None

    @property
    def rule(self) -> str:
        """How the images are made, in a line."""
        if self.chain is None:
            return self.benchmark.rule
        gt = self.benchmark.rule.partition(";")[0]
        if self.degrade is not None:
            return (
                f"{gt}; LR by the chain {self.degrade}: {SENSORS[self.degrade].words}; Bicubic "
                "from that LR"
            )
        stages = ", ".join(f"{stage.name} {stage.low:g} to {stage.high:g}" for stage in self.stages)
        return f"{gt}; LR by MATLAB's imresize with {stages}; Bicubic from that LR"

    def record(self) -> dict[str, Any]:
        """The settings as plain values, for the manifest."""
        return {
            "format": FORMAT,
            "benchmark": self.benchmark.name,
            "scale": self.scale,
            "seed": self.seed,
            "count": self.count,
            "part": self.part,
            "drawn": list(self.drawn or self.benchmark.drawn or ()) or None,
            "val": self.val,
            "degradations": [asdict(stage) for stage in self.stages],
            "degrade": self.degrade,
            "rule": self.rule,
            "terms": self.benchmark.terms,
        }


@dataclass(frozen=True, slots=True)
class Item:
    """One image of the plan."""

    part: str  # "train", "test", "val", or "" where the benchmark is not divided
    name: str  # inside GT, LR and Bicubic, no suffix
    source: str  # below the folder of originals, "/" between its parts
    sha256: str | None = None  # of the source's bytes, where a manifest demands them


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one item, as the manifest has it."""

    part: str
    name: str
    source: str
    source_sha256: str
    cut: tuple[int, int, int, int]  # row, column, height and width in the source, in pixels
    gt_sha256: str  # of the pixels, row by row: PNG files of equal pixels may differ
    lr_sha256: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run did."""

    target: Path
    manifest: Path
    made: int
    kept: int  # there already, from a run before
    skipped: tuple[Skipped, ...]
    # GT or LR whose pixels are not those that the manifest given has, by name
    other: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line, and one for each image left out, up to NAMED of them."""
        kept = f", {self.kept} kept from before" if self.kept else ""
        left_out = f", {len(self.skipped)} left out" if self.skipped else ""
        lines = [
            f"{self.target}: {self.made} images made{kept}{left_out}; {self.manifest.name} lists "
            "them."
        ]
        if self.other:
            lines.append(
                f"  other pixels than in the manifest given: {len(self.other)}, {self.other[0]} "
                "the first; another "
                "library may have decoded or another version reduced them."
            )
        lines += [f"  left out {one.source}: {one.reason}" for one in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(
                f"  and {len(self.skipped) - NAMED} more, which {self.manifest.name} names."
            )
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
    """Make GT, LR and Bicubic of a benchmark's originals in target, and its manifest.

    manifest: one of an earlier run, whose draw is taken, seed included; the settings then have
    none.
    workers: processes; default one a core.  progress: called with the number of images done and
    that of all.
    Raises SourceError where the layout is not known, UsageError where images are too few or a
    manifest is of another draw, JobChanged where target holds a result of other settings,
    VerificationError where an original is not the manifest's.
    """
    check_local(target)
    source, target = source.resolve(), target.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise UsageError(
            f"{target} and {source} lie in each other; prepare into a folder beside the originals."
        )
    listed = read_manifest(manifest) if manifest else None
    if manifest and listed:
        items, unfit = read_plan(listed, manifest, source), list[Skipped]()
        settings = drawn_before(settings, listed, manifest)
    else:
        items, unfit = draw_plan(source, settings)
    with write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    heading = settings.record() | {"images_sha256": _plan_digest(items)}
    journal = _Journal(target, heading)
    for unfinished in target.rglob(".*.part"):  # of a run that was killed
        unfinished.unlink()
    # Syncing each of many small files would cost more than making it: what a power cut has taken is
    # found here instead.
    kept = [
        made
        for made in journal.made()
        if all(map(is_whole_png, _paths(target, made.part, made.name)))
    ]
    finished = {(made.part, made.name) for made in kept}
    remaining = [item for item in items if (item.part, item.name) not in finished]
    logger.info("%s: %d images to make, %d there already", target, len(remaining), len(kept))
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
    return Prepared(
        target, path, len(made), len(kept), tuple(skipped), _other_pixels(whole, heading, listed)
    )


def draw_plan(source: Path, settings: Settings) -> tuple[list[Item], list[Skipped]]:
    """Which images are made, and which cannot be: drawn with the seed, class by class, from the
    sorted names.

    Where images are cut and counted, those that are too small are left out before the draw.
    """
    benchmark = settings.benchmark
    originals = find_originals(benchmark, source, settings.part)
    unfit: list[Skipped] = []
    if settings.count is not None and benchmark.cut is not None:
        originals, unfit = _large_enough(originals, benchmark.cut, source)
    items = []
    for group in sorted({original.group for original in originals}):
        members = [original for original in originals if original.group == group]
        counts = _counts(settings, len(members))
        drawn = iter(_drawn(members, sum(counts.values()), group, settings))
        for part, count in counts.items():
            # AID's training images lie in one folder, as the published code reads them; their names
            # tell their class.
            flat = part == "train" and benchmark.drawn
            items += [
                _item(part, Path(one.name).name if flat else one.name, one, source)
                for one in islice(drawn, count)
            ]
    return sorted(items, key=lambda item: (item.part, item.name)), unfit


def read_manifest(manifest: Path) -> dict[str, Any]:
    """What a manifest says. Raises SourceError if prepare has not written it."""
    try:
        listed: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        for one in listed["images"]:
            Made(**one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{manifest} is not a manifest that prepare has written ({error!r:.80})."
        ) from error
    return listed


def read_plan(listed: dict[str, Any], manifest: Path, source: Path) -> list[Item]:
    """The plan that a manifest holds. Raises SourceError if an original is not in source, or would
    not be.
    """
    items = [
        Item(one["part"], one["name"], one["source"], one["source_sha256"])
        for one in listed["images"]
    ]
    for item in items:
        for text in (item.part, item.name, item.source):
            inside = isinstance(text, str) and not PurePosixPath(text).is_absolute()
            if not inside or ".." in PurePosixPath(text).parts or "\\" in text:
                raise SourceError(
                    f"{manifest} names {text!r:.80}, which does not stay inside its folder."
                )
    missing = [item.source for item in items if not (source / item.source).is_file()]
    if missing:
        raise SourceError(
            f"{source} lacks {len(missing)} images of {manifest.name}, {missing[0]} among them."
        )
    return items


def drawn_before(settings: Settings, listed: dict[str, Any], manifest: Path) -> Settings:
    """The settings with the draw that a manifest records. Raises UsageError where they have one, or
    another benchmark.

    Raises SourceError if what the manifest records is no draw.
    """
    given = [option for key, option in DRAW_OPTIONS.items() if getattr(settings, key) is not None]
    if given:
        raise UsageError(
            f"The draw is that of {manifest}; leave out {', '.join(given)}, or the manifest."
        )
    if listed.get("benchmark") != settings.benchmark.name:
        raise UsageError(
            f"{manifest} is of {listed.get('benchmark')!r:.40}, and {settings.benchmark.name} is "
            "to be prepared; "
            "give its own benchmark."
        )
    try:
        draw: dict[str, Any] = {key: listed.get(key) for key in DRAW_OPTIONS}
        return replace(
            settings,
            **draw | {"drawn": draw["drawn"] and tuple(draw["drawn"]), "seed": listed["seed"]},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{manifest} is not a manifest that prepare has written ({error!r:.80})."
        ) from error


def make_item(item: Item, source: Path, target: Path, settings: Settings) -> Made | Skipped:
    """Make the three files of one image. Raises VerificationError, and what the disk raises; all
    else is Skipped.
    """
    path = source / item.source
    try:
        digest = hashlib.sha256(read_file(path)).hexdigest()
        image = read_image(path)
        gt, cut = _cut(image, settings)
    except (SourceError, UsageError) as error:
        return Skipped(item.source, str(error))
    if item.sha256 not in (None, digest):
        raise VerificationError(
            f"{path} is not the image of the manifest: its sha256 begins {digest[:12]}."
        )
    lr, bicubic = degrade(gt, settings, item.name)
    for file, pixels in zip(_paths(target, item.part, item.name), (gt, lr, bicubic), strict=True):
        write_png(file, pixels)
    return Made(
        item.part, item.name, item.source, digest, cut, _pixel_digest(gt), _pixel_digest(lr)
    )


def degrade(
    gt: NDArray[np.uint8], settings: Settings, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """LR and Bicubic of one cut image by the benchmark's rule, or by the chain that was asked
    for.
    """
    s = settings.scale
    if (chain := settings.chain) is not None:
        lr = chain(gt, generator_for(settings.seed, name))
        return lr, to_uint8(imresize(lr / 255.0, s))
    return REDUCTIONS[settings.benchmark.bicubic](gt, s)


def _matlab(gt: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    unrounded = imresize(gt / 255.0, 1 / scale)
    return to_uint8(unrounded), to_uint8(imresize(unrounded, scale))


def _pillow(gt: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = gt.shape[0], gt.shape[1]
    lr = Image.fromarray(gt).resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return np.asarray(lr), np.asarray(lr.resize((width, height), Image.Resampling.BICUBIC))


REDUCTIONS: dict[
    Bicubic, Callable[[NDArray[np.uint8], int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
] = {
    "matlab": _matlab,
    "pillow": _pillow,
}


def _cut(
    image: NDArray[np.generic], settings: Settings
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """The part of an original that counts, its lower and right edge cut to a multiple of the
    scale.
    """
    benchmark, (height, width) = settings.benchmark, image.shape[:2]
    if image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        raise UsageError(
            f"{image.shape[2]} bands of {image.dtype}; one or three of uint8 are expected."
        )
    if benchmark.size is not None and (height, width) != benchmark.size:
        raise UsageError(
            f"{height}x{width} pixels; {benchmark.size[0]}x{benchmark.size[1]} are expected."
        )
    if benchmark.cut is not None and min(height, width) < benchmark.cut:
        raise UsageError(_too_small(height, width, benchmark.cut))
    rows, cols = (height, width) if benchmark.cut is None else (benchmark.cut, benchmark.cut)
    row, col = benchmark.corner or ((height - rows) // 2, (width - cols) // 2)
    rows, cols = (length // settings.scale * settings.scale for length in (rows, cols))
    if 0 in (rows, cols):
        raise UsageError(
            f"{height}x{width} pixels are too few to be reduced {settings.scale} times."
        )
    return np.ascontiguousarray(image[row : row + rows, col : col + cols], np.uint8), (
        row,
        col,
        rows,
        cols,
    )


def _too_small(height: int, width: int, edge: int) -> str:
    return f"{height}x{width} pixels; at least {edge}x{edge} are needed."


def _large_enough(
    originals: Sequence[Original], edge: int, source: Path
) -> tuple[list[Original], list[Skipped]]:
    fit, unfit = [], []
    for original in originals:
        try:
            height, width = blank_image(original.path).shape[:2]
        except SourceError as error:
            unfit.append(Skipped(_relative(original, source), str(error)))
            continue
        if min(height, width) < edge:
            unfit.append(Skipped(_relative(original, source), _too_small(height, width, edge)))
        else:
            fit.append(original)
    return fit, unfit


def _counts(settings: Settings, members: int) -> dict[str, int]:
    """How many images of a class each part gets, in the order in which they are drawn: one more
    part moves no other.
    """
    val = settings.val or 0
    if settings.benchmark.drawn:
        train, test = settings.drawn or settings.benchmark.drawn
        counts = {"train": train, "test": test}
    else:  # where all are taken, all but those held out, and at least one
        counts = {
            "train" if val else "": max(members - val, 1)
            if settings.count is None
            else settings.count
        }
    return counts | ({"val": val} if val else {})


def _drawn(
    members: Sequence[Original], count: int, group: str, settings: Settings
) -> list[Original]:
    benchmark = settings.benchmark
    if len(members) < count:
        where = f"{group} of {benchmark.title}" if group else benchmark.title
        raise UsageError(
            f"{where} has {len(members)} images that fit, and {count} are to be drawn; ask for "
            "fewer by "
            f"{'--drawn' if benchmark.drawn else '--count'}{' or --val' * bool(settings.val)}."
        )
    if len(members) == count and not benchmark.drawn and not settings.val:
        return list(members)
    order = generator_for(settings.seed, group).permutation(len(members))
    return [members[index] for index in order[:count]]


def _item(part: str, name: str, original: Original, source: Path) -> Item:
    return Item(part, name, _relative(original, source))


def _relative(original: Original, source: Path) -> str:
    return original.path.relative_to(source).as_posix()


def _paths(target: Path, part: str, name: str) -> tuple[Path, Path, Path]:
    hr, lr, bicubic = (
        target / part / folder / f"{name}.png" for folder in (HR_FOLDER, LR_FOLDER, BICUBIC_FOLDER)
    )
    return hr, lr, bicubic


def _other_pixels(
    made: Sequence[Made], heading: dict[str, Any], listed: dict[str, Any] | None
) -> tuple[str, ...]:
    """The images whose pixels are not those of a manifest that was made in the same way."""
    if listed is None or any(
        listed.get(key) != heading[key] for key in ("scale", "degradations", "degrade", "rule")
    ):
        return ()
    before = {
        (one["part"], one["name"]): (one["gt_sha256"], one["lr_sha256"]) for one in listed["images"]
    }
    return tuple(
        PurePosixPath(one.part, one.name).as_posix()
        for one in made
        if before[one.part, one.name] != (one.gt_sha256, one.lr_sha256)
    )


def _pixel_digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _plan_digest(items: Sequence[Item]) -> str:
    listed = json.dumps([(item.part, item.name, item.source) for item in items])
    return hashlib.sha256(listed.encode()).hexdigest()


def _in_parallel(
    work: Callable[[Item], Made | Skipped], items: Sequence[Item], workers: int | None
) -> Iterator[Made | Skipped]:
    workers = min(workers or available_cores(), len(items))
    if workers < 2 or len(items) < WORTH_WORKERS:
        yield from map(work, items)
        return
    # Spawned, not forked: a caller with threads (a progress bar has one) must not be copied in
    # mid-step.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, items, chunksize=4)
        except BrokenProcessPool as error:
            raise OutOfMemory(
                "A worker was ended from outside, most likely for lack of memory; what is made is "
                "kept: run the same "
                "command again with fewer --jobs."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


class _Journal:
    """What is made already: the manifest of a finished run, or the lines of one that was ended."""

    def __init__(self, target: Path, heading: dict[str, Any]) -> None:
        self.manifest = target / MANIFEST
        self.lines = target / JOURNAL
        self.heading = heading
        self._lists: list[dict[str, Any]] = []
        if self.manifest.is_file():
            finished = self._read_json(self.manifest.read_text(encoding="utf-8"))
            self._refuse_others(finished)
            self._lists += finished["images"]
        if self.lines.is_file():
            started, *noted = self._whole_lines()
            self._refuse_others(started)
            self._lists += noted
        else:
            self._append(heading)

    def made(self) -> list[Made]:
        """What was made before, each image once."""
        listed = [Made(**(one | {"cut": tuple(one["cut"])})) for one in self._lists]
        return list({(one.part, one.name): one for one in listed}.values())

    def add(self, made: Made) -> None:
        """Note one image, after its files have their names."""
        self._append(asdict(made))

    def close(self, made: Sequence[Made], skipped: Sequence[Skipped]) -> Path:
        """Write the manifest, on the disk before the journal goes, which is not needed any more."""
        whole = self.heading | {
            "images": [asdict(one) for one in made],
            "skipped": [asdict(one) for one in skipped],
        }
        with write_errors(self.manifest):
            write_durable(self.manifest, (json.dumps(whole, indent=1) + "\n").encode())
            self.lines.unlink()
        return self.manifest

    def _refuse_others(self, found: dict[str, Any]) -> None:
        differing = [key for key in self.heading if found.get(key) != self.heading[key]]
        if differing:
            before, now = found.get(differing[0]), self.heading[differing[0]]
            raise JobChanged(
                f"{self.manifest.parent} holds pairs made with another {differing[0]} "
                f"({before!r:.40}, now "
                f"{now!r:.40}); prepare into another folder."
            )

    def _append(self, line: dict[str, Any]) -> None:
        with write_errors(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines, but for a last one that the end of the run has cut short; it is cut off for
        good.
        """
        text = self.lines.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            whole = json.dumps(self.heading) + "\n"
        if whole != text:
            self.lines.write_text(whole, encoding="utf-8")
        return [self._read_json(line) for line in whole.splitlines()]

    def _read_json(self, text: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise JobChanged(
                f"What {self.manifest.parent} says of an earlier run cannot be read ({error}); "
                "take another folder."
            ) from error
        return value
