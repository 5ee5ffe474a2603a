"""Methods x images -> Scores: every value of every image, and what may be said of them together.

Methods run one after the other, in this thread; the measuring of what they gave goes on beside it. Nothing is written
here but the results that the caller asks to keep.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repmamba.ahead import ahead
from repmamba.cores import available_cores
from repmamba.data.images import RASTERS, blank_image, read_image, write_png
from repmamba.data.pairs import Pair, PairFiles, find_pairs
from repmamba.durable import whole_file
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.evaluate.methods import Method, checked, distinct_names
from repmamba.evaluate.metrics import Metric, average, class_means, in_levels, peak_of, score

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500  # of a benchmark of 1000 images that is 4 MB
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
ENOUGH = 48  # pixels on a side that every metric is defined for, a multiple of each scale


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One folder of pairs."""

    name: str
    folder: Path
    files: tuple[PairFiles, ...] = field(repr=False)
    scale: int

    @property
    def heading(self) -> str:
        """Its name, scale and size in a line."""
        classes = f" in {self.classes} classes" if self.classes > 1 else ""
        return f"{self.name}, x{self.scale}, {len(self.files)} images{classes}"

    @property
    def classes(self) -> int:
        """How many class folders it has, images in none counted as one; a flat set has 1."""
        return len({files.group for files in self.files})


@dataclass(frozen=True, slots=True)
class Score:
    """One value: of one image, by one method and one metric."""

    image_set: str
    image: str
    method: str
    metric: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The values of one set, method and metric together."""

    mean: float  # of those that are finite, by the metric's own mean; nan where none is
    count: int
    infinite: int  # equal images, left out of the mean


@dataclass(frozen=True, slots=True)
class Paired:
    """One method less another on the same images, and the interval that bootstrap gives it."""

    difference: float  # mean, by the metric's own mean
    low: float
    high: float
    better: int  # images on which the first method is better
    count: int
    left_out: int  # images of which just one of the two is infinite


@dataclass(frozen=True, slots=True)
class Scores:
    """All values of a run, and what was run."""

    sets: tuple[ImageSet, ...]
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    values: dict[tuple[str, str, str], dict[str, float]] = field(repr=False)  # (set, method, metric) -> image -> value

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
                        yield Score(one.name, files.name, method.name, metric.name, value, metric.unit)

    def summary(self, image_set: str, method: str, metric: Metric) -> Summary:
        """Mean and counts. An infinite PSNR, of equal images, is counted and not averaged."""
        return summarise(self.of(image_set, method, metric.name), metric)

    def classes(self, image_set: str, method: str, metric: Metric) -> dict[str, float]:
        """The mean of each class folder over its finite values; empty for a flat set."""
        finite = {
            name: value for name, value in self.of(image_set, method, metric.name).items() if math.isfinite(value)
        }
        means = class_means(finite)
        return {} if set(means) <= {""} else means

    def mean_of_classes(self, image_set: str, method: str, metric: Metric) -> float | None:
        """The mean of the class means, whatever the metric's own mean is; None for a flat set, or where none is finite.

        An infinite PSNR is left out, as in the means of the classes.
        """
        means = self.classes(image_set, method, metric)
        return float(np.mean(list(means.values()))) if means else None

    def paired(self, image_set: str, method: str, other: str, metric: Metric) -> Paired:
        """The difference of two methods on a set."""
        return paired_difference(
            self.of(image_set, method, metric.name), self.of(image_set, other, metric.name), metric
        )


def find_sets(folders: Sequence[Path], scale: int | None) -> list[ImageSet]:
    """The pairs of each folder at a scale; without one, that of the first pair.

    Folders of one name are told apart by those above them. Raises UsageError for a folder that is named twice and where
    there is neither a scale nor an LR that shows one, ShapeMismatch where LR is as large as GT.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(f"{folder} is named twice; name each folder once.")
    names = distinct_names([place.name for place in resolved], resolved)
    sets = []
    for folder, place, name in zip(folders, resolved, names, strict=True):
        files = find_pairs(folder)
        sets.append(ImageSet(name, place, tuple(files), scale or _scale_of(files[0], folder)))
    return sets


def evaluate(
    sets: Sequence[ImageSet],
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    *,
    save: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every method on every image.

    save: a folder that gets each result as PNG (TIFF for pairs of TIFFs), below set and method.
    progress: called with the number of images done and that of all. Raises UsageError for methods of one name or of
    another scale and where save would change what is scored, and what reading, enlarging and measuring raise.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise UsageError(
            f"Two methods are named {max(names, key=names.count)}; name each once, and files so that they differ."
        )
    for one in sets:
        for method in methods:
            if method.scale not in (None, one.scale):
                raise UsageError(
                    f"{method.name} enlarges x{method.scale}, and the pairs of {one.name} are x{one.scale}."
                )
            if method.find:
                _find_all(method.find, one)
        _check_images(one, methods, metrics)
    if save:
        _refuse_own_results(save, sets)
    values: dict[tuple[str, str, str], dict[str, float]] = {
        (one.name, method, metric.name): {} for one in sets for method in names for metric in metrics
    }

    def measured(result: _Result) -> tuple[str, str, str, dict[str, float]]:
        return result.image_set, result.pair.name, result.method, score(result.sr, result.pair, metrics)

    results = _enlarged(sets, methods, save, progress)
    in_hand = 4 * len(methods)  # so that a whole benchmark is never in memory
    with ThreadPoolExecutor(available_cores()) as pool, closing(ahead(pool, measured, results, in_hand)) as scored:
        for image_set, image, method_name, by_metric in scored:
            for metric_name, value in by_metric.items():
                values[image_set, method_name, metric_name][image] = value
    return Scores(tuple(sets), tuple(methods), tuple(metrics), values)


def summarise(values: dict[str, float], metric: Metric) -> Summary:
    """Mean over what is finite, and the counts."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    mean = average(finite, metric.mean) if finite else math.nan
    return Summary(mean, len(values), len(values) - len(finite))


def paired_difference(ours: dict[str, float], theirs: dict[str, float], metric: Metric) -> Paired:
    """The mean difference over the same images, with its bootstrap interval (percentile, 95 %).

    Images are drawn anew within their class where the metric's mean is one of class means, else over all. An image that
    is infinite in both counts as no difference, in one of them it is left out.
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
    """The interval of the mean when the images are drawn again with replacement, RESAMPLES times."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(name.rpartition("/")[0] if metric.mean == "classes" else "", []).append(value)
    members = [np.array(group) for group in groups.values()]
    means = np.zeros(RESAMPLES)
    for start in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        part = means[start : start + RESAMPLES_AT_ONCE]
        for group in members:
            part += group[generator.integers(0, len(group), (len(part), len(group)))].mean(1) / len(members)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def write_result(folder: Path, files: PairFiles, sr: NDArray[np.generic], pair: Pair) -> None:
    """A result in the type of its pair, rounded to nearest: PNG, or TIFF where the pair is one."""
    values = in_type(sr, pair.hr)
    if files.hr.suffix.lower() in RASTERS:
        _write_tiff(folder / f"{files.name}.tif", values)
    else:
        write_png(folder / f"{files.name}.png", np.asarray(values, np.uint8))


def in_type(sr: NDArray[np.generic], hr: NDArray[np.generic]) -> NDArray[np.generic]:
    """sr as the type of hr stores it: integers clipped and rounded half up."""
    levels = in_levels(sr, hr)
    if np.issubdtype(hr.dtype, np.integer):
        levels = np.floor(np.clip(levels, np.iinfo(hr.dtype.name).min, peak_of(hr)) + 0.5)
    return levels.astype(hr.dtype)


@dataclass(frozen=True, slots=True)
class _Result:
    """What a method made of an image."""

    image_set: str
    method: str
    pair: Pair
    sr: NDArray[np.generic]  # as for `score`


def _enlarged(
    sets: Sequence[ImageSet],
    methods: Sequence[Method],
    save: Path | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Result]:
    """Image by image what each method makes of it, kept in save; parameters as for `evaluate`."""
    images = [(one, files) for one in sets for files in one.files]
    for done, (one, files) in enumerate(images, start=1):
        pair = files.read(one.scale)
        for method in methods:
            sr = method.enlarge(pair)
            yield _Result(one.name, method.name, pair, sr)
            if save:
                write_result(save / one.name / method.name, files, sr, pair)
        if progress:
            progress(done, len(images))


def _find_all(find: Callable[[str, int], Path], one: ImageSet) -> None:
    """Raise now what would else end a run after other methods have computed for an hour: a result that is missing.

    One that is taken for two images is missing too: "1.png" of another class.
    """
    taken: dict[Path, str] = {}
    for files in one.files:
        path = find(files.name, one.scale)
        if path in taken:
            raise UsageError(
                f"{path} is the only result for {taken[path]} and for {files.name}; give each a result of its name."
            )
        taken[path] = files.name


def _check_images(one: ImageSet, methods: Sequence[Method], metrics: Sequence[Metric]) -> None:
    """Raise now what headers tell: files that are broken or do not fit, images that a metric is not defined for."""
    scored = set()
    for files in one.files:
        pair = files.blank(one.scale)
        for method in methods:
            if method.find:
                checked(blank_image(method.find(files.name, one.scale)), pair)
        part = pair.hr[:ENOUGH, :ENOUGH]
        if (part.shape, part.dtype) not in scored:
            score(part, Pair(pair.name, part[:: one.scale, :: one.scale], part), metrics)
            scored.add((part.shape, part.dtype))


def _refuse_own_results(save: Path, sets: Sequence[ImageSet]) -> None:
    """Among the images that are scored, results would be images of the next evaluation or take the place of some."""
    for target in ((save / one.name).resolve() for one in sets):
        for one in sets:
            if target.is_relative_to(one.folder) or one.folder.is_relative_to(target):
                raise UsageError(f"Results in {target} would mix with the images of {one.folder}; save elsewhere.")


def _scale_of(files: PairFiles, folder: Path) -> int:
    if files.lr is None:
        raise UsageError(f"{folder} has no LR that would show the scale; give --scale 2, 3 or 4.")
    scale = Pair(files.name, read_image(files.lr), read_image(files.hr)).scale
    if scale == 1:
        raise ShapeMismatch(f"{folder}: GT and LR of {files.name} have one size; LR must be 2, 3 or 4 times smaller.")
    return scale


def _write_tiff(path: Path, image: NDArray[np.generic]) -> None:
    """Write (H, W, C) as TIFF; the name appears when the file is whole. Raises TargetError, NoSpace."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    height, width, bands = image.shape
    with whole_file(path) as unfinished, MemoryFile() as memory:  # GDAL keeps silent of a disk that is full on closing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(
                driver="GTiff",
                height=height,
                width=width,
                count=bands,
                dtype=image.dtype.name,
                compress="deflate",
                bigtiff="if_safer",
            ) as raster:
                raster.write(np.moveaxis(image, -1, 0))
        unfinished.write_bytes(memory.getbuffer())
