"""Methods x images -> Scores: what there is to score is found and checked, then enlarged and
measured.

Methods run one after the other, in this thread; the measuring of what they gave goes on beside it.
Nothing is written here but the results that the caller asks to keep.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from repmamba.ahead import ahead
from repmamba.cores import available_cores
from repmamba.data.images import RASTERS, blank_image, read_image, write_png
from repmamba.data.pairs import Pair, PairFiles, find_pairs
from repmamba.durable import whole_file, write_errors
from repmamba.errors import ShapeMismatch, TargetError, UsageError
from repmamba.evaluate.methods import Method, checked, distinct_names
from repmamba.evaluate.metrics import Metric, in_levels, peak_of, score
from repmamba.evaluate.scores import ImageSet, Scores

ENOUGH = 48  # pixels on a side that every metric is defined for, a multiple of each scale


def find_sets(folders: Sequence[Path], scale: int | None) -> list[ImageSet]:
    """The pairs of each folder at a scale; without one, that of the first pair.

    Folders of one name are told apart by those above them. Raises UsageError for a folder that is
    named twice and where there is neither a scale nor an LR that shows one, ShapeMismatch where LR
    is as large as GT.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(f"{folder} is named twice; name each folder once.")
    names = distinct_names([place.name for place in resolved], resolved)
    sets = []
    for folder, place, name in zip(folders, resolved, names, strict=True):
        files = find_pairs(folder, scale)
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
    progress: called with the number of images done and that of all. Raises UsageError for methods
    of one name, of a name that leads out of save, or of another scale and where save would change
    what is scored, TargetError or NoSpace where save cannot be written, and what reading, enlarging
    and measuring raise.
    """
    _check_methods(methods, sets)
    for one in sets:
        _check_images(one, methods, metrics)
    if save:
        _refuse_own_results(save, sets)
        _make_folder(save)
    values: dict[tuple[str, str, str], dict[str, float]] = {
        (one.name, method.name, metric.name): {}
        for one in sets
        for method in methods
        for metric in metrics
    }

    def measured(result: _Result) -> tuple[str, str, str, dict[str, float]]:
        return (
            result.image_set,
            result.pair.name,
            result.method,
            score(result.sr, result.pair, metrics),
        )

    results = _enlarged(sets, methods, save, progress)
    in_hand = 4 * len(methods)  # so that a whole benchmark is never in memory
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        closing(ahead(pool, measured, results, in_hand)) as scored,
    ):
        for image_set, image, method_name, by_metric in scored:
            for metric_name, value in by_metric.items():
                values[image_set, method_name, metric_name][image] = value
    return Scores(tuple(sets), tuple(methods), tuple(metrics), values)


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
            sr = method.sr_of(pair)
            yield _Result(one.name, method.name, pair, sr)
            if save:
                write_result(save / one.name / method.name, files, sr, pair)
        if progress:
            progress(done, len(images))


def _check_methods(methods: Sequence[Method], sets: Sequence[ImageSet]) -> None:
    names = [method.name for method in methods]
    for name in names:
        path = Path(name)
        if not path.parts or path.anchor or ".." in path.parts:
            raise UsageError(
                f"A method is named {name!r:.60}; give it a name that is neither empty nor "
                "absolute and has no '..', since its results get a folder of that name."
            )
    if len(set(names)) < len(names):
        raise UsageError(
            f"Two methods are named {max(names, key=names.count)}; name each once, and files so "
            "that they differ."
        )
    for one in sets:
        for method in methods:
            if method.scale not in (None, one.scale):
                raise UsageError(
                    f"{method.name} enlarges x{method.scale}, and the pairs of {one.name} are "
                    f"x{one.scale}."
                )
            if method.find:
                _find_all(method.find, one)


def _find_all(find: Callable[[str, int], Path], one: ImageSet) -> None:
    """Raise now what would else end a run after other methods have computed for an hour: a result
    that is missing.

    One that is taken for two images is missing too: "1.png" of another class.
    """
    taken: dict[Path, str] = {}
    for files in one.files:
        path = find(files.name, one.scale)
        if path in taken:
            raise UsageError(
                f"{path} is the only result for {taken[path]} and for {files.name}; give each a "
                "result of its name."
            )
        taken[path] = files.name


def _check_images(one: ImageSet, methods: Sequence[Method], metrics: Sequence[Metric]) -> None:
    """Raise now what headers tell: files that are broken or do not fit, images that a metric is not
    defined for.
    """
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
    """Among the images that are scored, results would be images of the next evaluation or take the
    place of some.
    """
    for target in ((save / one.name).resolve() for one in sets):
        for one in sets:
            if target.is_relative_to(one.folder) or one.folder.is_relative_to(target):
                raise UsageError(
                    f"Results in {target} would mix with the images of {one.folder}; save "
                    "elsewhere."
                )


def _make_folder(folder: Path) -> None:
    """Raise now what would else end a run at its first result: a folder that cannot be made or
    written.
    """
    with write_errors(folder):
        if folder.is_file():
            raise TargetError(f"{folder} is a file; name a folder for the results.")
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _scale_of(files: PairFiles, folder: Path) -> int:
    if files.lr is None:
        raise UsageError(f"{folder} has no LR that would show the scale; give a scale, 2, 3 or 4.")
    scale = Pair(files.name, read_image(files.lr), read_image(files.hr)).scale
    if scale == 1:
        raise ShapeMismatch(
            f"{folder}: GT and LR of {files.name} have one size; LR must be 2, 3 or 4 times "
            "smaller."
        )
    return scale


def _write_tiff(path: Path, image: NDArray[np.generic]) -> None:
    """Write (H, W, C) as TIFF; the name appears when the file is whole. Raises TargetError,
    NoSpace.
    """
    from rasterio.io import MemoryFile

    from repmamba.gdal import created

    height, width, bands = image.shape
    # GDAL keeps silent of a disk that is full on closing
    with whole_file(path) as unfinished, MemoryFile() as memory:
        with created(
            memory.name,
            height=height,
            width=width,
            count=bands,
            dtype=image.dtype.name,
            compress="deflate",
            bigtiff="if_safer",
        ) as raster:
            raster.write(np.moveaxis(image, -1, 0))
        unfinished.write_bytes(memory.getbuffer())
