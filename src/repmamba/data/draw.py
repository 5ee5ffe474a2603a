"""Which images `prepare` makes: its settings, and the draw from the sorted names with a seed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from repmamba.data.benchmarks import Benchmark, Original, find_originals
from repmamba.data.degradations import Chain, Stage, generator_for
from repmamba.data.images import blank_image
from repmamba.data.sensors import SENSORS, SensorChain
from repmamba.errors import SourceError, UsageError

FORMAT = 1  # of the manifest


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything besides the originals that determines the result. Raises UsageError."""

    benchmark: Benchmark
    scale: int
    seed: int = 0
    count: int | None = None  # images to draw, per class folder if there are any; None takes all
    part: str | None = None  # one of the benchmark's own splits
    drawn: tuple[int, int] | None = None  # train and test images per class; None: the benchmark's
    val: int | None = None  # images per class held out for validation
    stages: tuple[Stage, ...] = ()
    degrade: str | None = None  # the name of a chain in data.sensors

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise UsageError(f"The scale is {self.scale}; it must be 2, 3 or 4.")
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}; it must be 0 or more.")
        if self.count is not None and self.count < 1:
            raise UsageError(f"The count is {self.count}; it must be 1 or more.")
        if self.val is not None and self.val < 1:
            raise UsageError(f"The number of validation images is {self.val}; give 1 or more.")
        if self.benchmark.drawn and self.count is not None:
            raise UsageError(
                f"{self.benchmark.title} has a training and a test set; give the size of each "
                "(--drawn) instead of a count."
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
                f"The chain {self.degrade} already includes blur, noise and JPEG; leave out either "
                "the chain or your own."
            )

    @property
    def chain(self) -> Chain | SensorChain | None:
        """What makes LR, unless it is the benchmark's own rule."""
        if self.degrade is not None:
            return SensorChain(self.degrade, self.scale)
        return Chain(self.scale, self.stages) if self.stages else None

    @property
    def rule(self) -> str:
        """How the images are made, in one line."""
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
    """One image to make."""

    part: str  # "train", "test", "val", or "" if the benchmark has no splits
    name: str  # inside GT, LR and Bicubic, without suffix
    source: str  # path below the folder of originals, with "/"
    sha256: str | None = None  # of the source's bytes, if a manifest demands them


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, and why."""

    source: str
    reason: str


def draw_items(source: Path, settings: Settings) -> tuple[list[Item], list[Skipped]]:
    """Draw the images to make, class by class, from the sorted names.

    If images are cropped and counted, those that are too small are left out before the draw.

    source: Folder of the originals.  settings: What to draw, and the seed.
    Returns the images to make, sorted by part and name, and those left out. Raises SourceError: the
    layout of source is not known; UsageError: there are fewer images than to be drawn.
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
            # The published code reads AID's training images from one folder; their names contain
            # the class.
            flat = part == "train" and benchmark.drawn
            items += [
                Item(part, Path(one.name).name if flat else one.name, _relative(one, source))
                for one in islice(drawn, count)
            ]
    return sorted(items, key=lambda item: (item.part, item.name)), unfit


def too_small(height: int, width: int, edge: int) -> str:
    """Why an image smaller than edge x edge pixels is left out."""
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
            unfit.append(Skipped(_relative(original, source), too_small(height, width, edge)))
        else:
            fit.append(original)
    return fit, unfit


def _counts(settings: Settings, members: int) -> dict[str, int]:
    """Images per part of a class, in the order drawn: another part leaves the others unchanged."""
    val = settings.val or 0
    if settings.benchmark.drawn:
        train, test = settings.drawn or settings.benchmark.drawn
        counts = {"train": train, "test": test}
    else:  # without a count: all that are not held out, and at least one
        count = max(members - val, 1) if settings.count is None else settings.count
        counts = {"train" if val else "": count}
    return counts | ({"val": val} if val else {})


def _drawn(
    members: Sequence[Original], count: int, group: str, settings: Settings
) -> list[Original]:
    benchmark = settings.benchmark
    if len(members) < count:
        where = f"{group} of {benchmark.title}" if group else benchmark.title
        raise UsageError(
            f"{where} has {len(members)} suitable images, and {count} are to be drawn; ask for "
            "fewer with "
            f"{'--drawn' if benchmark.drawn else '--count'}{' or --val' * bool(settings.val)}."
        )
    if len(members) == count and not benchmark.drawn and not settings.val:
        return list(members)
    order = generator_for(settings.seed, group).permutation(len(members))
    return [members[index] for index in order[:count]]


def _relative(original: Original, source: Path) -> str:
    return original.path.relative_to(source).as_posix()
