"""Scores: the values of every image, their means, differences and confidence intervals.

Only values; nothing is read, enlarged or measured here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from repmamba.data.pairs import PairFiles
from repmamba.evaluate.methods import Method
from repmamba.evaluate.metrics import Metric, average, class_means

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500  # 4 MB for 1000 images
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The pairs of one folder."""

    name: str
    folder: Path
    files: tuple[PairFiles, ...] = field(repr=False)
    scale: int

    @property
    def heading(self) -> str:
        """Name, scale and size in one line."""
        classes = f" in {self.classes} classes" if self.classes > 1 else ""
        return f"{self.name}, x{self.scale}, {len(self.files)} images{classes}"

    @property
    def classes(self) -> int:
        """The number of class folders; a flat set has 1."""
        return len({files.group for files in self.files})


@dataclass(frozen=True, slots=True)
class Score:
    """One value of an image, by one method and one metric."""

    image_set: str
    image: str
    method: str
    metric: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The values of a set by one method and one metric."""

    mean: float  # of the finite values, by the metric's own mean; nan if none is
    count: int
    infinite: int  # equal images, left out of the mean


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference between two methods on the same images, with its bootstrap interval."""

    difference: float  # mean, by the metric's own mean
    low: float
    high: float
    better: int  # images on which the first method is better
    count: int
    left_out: int  # images for which only one of the two is infinite


@dataclass(frozen=True, slots=True)
class Scores:
    """All values of a run."""

    sets: tuple[ImageSet, ...]
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    # (set, method, metric) -> image -> value
    values: dict[tuple[str, str, str], dict[str, float]] = field(repr=False)

    def __repr__(self) -> str:
        return f"<Scores: {self.heading}>"

    @property
    def heading(self) -> str:
        """What was scored, in one line."""
        images = sum(len(one.files) for one in self.sets)
        parts = ((self.methods, "method"), (self.sets, "set"), (self.metrics, "measure"))
        counts = (f"{len(each)} {word}{'s' * (len(each) != 1)}" for each, word in parts)
        methods, sets, metrics = counts
        names, places = (_first([one.name for one in each]) for each in (self.methods, self.sets))
        of_sets = f"{images} image{'s' * (images != 1)} of {sets} ({places})"
        return f"{methods} ({names}) on {of_sets}, by {metrics}"

    def of(self, image_set: str, method: str, metric: str) -> dict[str, float]:
        """The values by image name."""
        return self.values[image_set, method, metric]

    def rows(self) -> Iterator[Score]:
        """Every value, set by set, image by image."""
        for one in self.sets:
            for files in one.files:
                for method in self.methods:
                    for metric in self.metrics:
                        value = self.of(one.name, method.name, metric.name)[files.name]
                        yield Score(
                            one.name, files.name, method.name, metric.name, value, metric.unit
                        )

    def summary(self, image_set: str, method: str, metric: Metric) -> Summary:
        """Mean and counts; infinite values (PSNR of equal images) are counted but not averaged."""
        return summarise(self.of(image_set, method, metric.name), metric)

    def classes(self, image_set: str, method: str, metric: Metric) -> dict[str, float]:
        """The mean of the finite values of each class folder; empty for a flat set."""
        finite = {
            name: value
            for name, value in self.of(image_set, method, metric.name).items()
            if math.isfinite(value)
        }
        means = class_means(finite)
        return {} if set(means) <= {""} else means

    def mean_of_classes(self, image_set: str, method: str, metric: Metric) -> float | None:
        """The mean of the class means, whatever the metric's own mean is; None if there is none.

        Infinite values are left out, as in the class means.
        """
        means = self.classes(image_set, method, metric)
        return float(np.mean(list(means.values()))) if means else None

    def paired(self, image_set: str, method: str, other: str, metric: Metric) -> Paired:
        """The difference between two methods on a set."""
        return paired_difference(
            self.of(image_set, method, metric.name), self.of(image_set, other, metric.name), metric
        )

    def differences(self, image_set: str) -> Iterator[tuple[Method, Metric, Paired]]:
        """Each method minus the last, on a set, by every metric."""
        for method in self.methods[:-1]:
            for metric in self.metrics:
                paired = self.paired(image_set, method.name, self.methods[-1].name, metric)
                yield method, metric, paired


def _first(names: list[str]) -> str:
    return ", ".join(names[:4]) + ", ..." * (len(names) > 4)


def summarise(values: dict[str, float], metric: Metric) -> Summary:
    """The mean of the finite values, and the counts."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    mean = average(finite, metric.mean) if finite else math.nan
    return Summary(mean, len(values), len(values) - len(finite))


def paired_difference(ours: dict[str, float], theirs: dict[str, float], metric: Metric) -> Paired:
    """The mean difference over the same images, with its 95 % bootstrap interval (percentile).

    Images are resampled within their class if the metric's mean is one of class means, else over
    all. An image that is infinite in both counts as no difference; in one of them, it is left out.
    """
    difference: dict[str, float] = {}
    for name, value in ours.items():
        if math.isfinite(value) and math.isfinite(theirs[name]):
            difference[name] = value - theirs[name]
        elif value == theirs[name]:
            difference[name] = 0.0
    left_out = len(ours) - len(difference)
    if not difference:
        return Paired(math.nan, math.nan, math.nan, 0, 0, left_out)
    sign = 1 if metric.higher_is_better else -1
    low, high = bootstrap_interval(difference, metric)
    better = sum(sign * value > 0 for value in difference.values())
    return Paired(average(difference, metric.mean), low, high, better, len(difference), left_out)


def bootstrap_interval(values: dict[str, float], metric: Metric) -> tuple[float, float]:
    """The interval of the mean over RESAMPLES resamples of the images with replacement."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(name.rpartition("/")[0] if metric.mean == "classes" else "", []).append(
            value
        )
    members = [np.array(group) for group in groups.values()]
    means = np.zeros(RESAMPLES)
    for start in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        part = means[start : start + RESAMPLES_AT_ONCE]
        for group in members:
            part += group[generator.integers(0, len(group), (len(part), len(group)))].mean(1) / len(
                members
            )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
