"""Score methods on images: sets are found and checked, then enlarged and measured.

Methods run in this thread, one after the other; metrics are computed in parallel. Only results that
the caller asks to keep are written.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from repmamba.cores import available_cores
from repmamba.data.images import RASTERS, blank_image, read_image, write_png
from repmamba.data.pairs import Pair, PairFiles, find_pairs
from repmamba.durable import whole_file, write_errors
from repmamba.errors import ShapeMismatch, TargetError, UsageError
from repmamba.evaluate.methods import Method, distinct_names, fitting_result
from repmamba.evaluate.metrics import Metric, in_levels, peak_of, score
from repmamba.evaluate.scores import ImageSet, Scores
from repmamba.prefetch import prefetch

ENOUGH = 48  # pixels on a side, enough for every metric and a multiple of each scale


def find_sets(folders: Sequence[Path], scale: int | None) -> list[ImageSet]:
    """Find the pairs of each folder.

    folders: Folders with the same name are distinguished by their parents.
    scale: Of the pairs; None takes that of the first pair.
    Raises UsageError: a folder is given twice, or nothing shows the scale; ShapeMismatch: LR is as
    large as GT.
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

    methods: Their names become folders in save.
    save: Folder for the results as PNG (TIFF for pairs of TIFFs), by set and method.
    progress: Called with the number of images done and the number of all.
    Raises UsageError: two methods have the same name, a name leaves save, a method has another
    scale, or save is inside a scored folder; TargetError: save cannot be written; NoSpace if the
    disk is full; RepmambaError: reading, enlarging or measuring failed.
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
        values = score(result.sr, result.pair, metrics)
        return result.image_set, result.pair.name, result.method, values

    results = _results(sets, methods, save, progress)
    in_hand = 4 * len(methods)  # limits memory
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        closing(prefetch(pool, measured, results, in_hand)) as scored,
    ):
        for image_set, image, method_name, by_metric in scored:
            for metric_name, value in by_metric.items():
                values[image_set, method_name, metric_name][image] = value
    return Scores(tuple(sets), tuple(methods), tuple(metrics), values)


def write_result(folder: Path, files: PairFiles, sr: NDArray[np.generic], pair: Pair) -> None:
    """Write a result in the type of its pair, rounded: PNG, or TIFF if the pair is."""
    values = in_type(sr, pair.hr)
    if files.hr.suffix.lower() in RASTERS:
        _write_tiff(folder / f"{files.name}.tif", values)
    else:
        write_png(folder / f"{files.name}.png", np.asarray(values, np.uint8))


def in_type(sr: NDArray[np.generic], hr: NDArray[np.generic]) -> NDArray[np.generic]:
    """sr in the type of hr: integers clipped and rounded half up."""
    levels = in_levels(sr, hr)
    if np.issubdtype(hr.dtype, np.integer):
        levels = np.floor(np.clip(levels, np.iinfo(hr.dtype.name).min, peak_of(hr)) + 0.5)
    return levels.astype(hr.dtype)


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of a method on an image."""

    image_set: str
    method: str
    pair: Pair
    sr: NDArray[np.generic]  # as for `score`


def _results(
    sets: Sequence[ImageSet],
    methods: Sequence[Method],
    save: Path | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Result]:
    """Each method's result, image by image, kept in save; parameters as for `evaluate`."""
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
                f"The name of a method is {name!r:.60}; it must be neither empty nor absolute, and "
                "without '..', as its results get a folder of that name."
            )
    if len(set(names)) < len(names):
        raise UsageError(
            f"Two methods are named {max(names, key=names.count)}; name each once, and give files "
            "different names."
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
    """Raise at once for a missing result, rather than after other methods have run for an hour.

    A file that would serve two images counts as missing: "1.png" of another class.
    """
    taken: dict[Path, str] = {}
    for files in one.files:
        path = find(files.name, one.scale)
        if path in taken:
            raise UsageError(
                f"{path} is the only result for {taken[path]} and for {files.name}; give each its "
                "own result."
            )
        taken[path] = files.name


def _check_images(one: ImageSet, methods: Sequence[Method], metrics: Sequence[Metric]) -> None:
    """Raise from the headers if files are damaged or do not fit, or a metric is not defined."""
    scored = set()
    for files in one.files:
        pair = files.blank(one.scale)
        for method in methods:
            if method.find:
                fitting_result(blank_image(method.find(files.name, one.scale)), pair)
        part = pair.hr[:ENOUGH, :ENOUGH]
        if (part.shape, part.dtype) not in scored:
            score(part, Pair(pair.name, part[:: one.scale, :: one.scale], part), metrics)
            scored.add((part.shape, part.dtype))


def _refuse_own_results(save: Path, sets: Sequence[ImageSet]) -> None:
    """Refuse to save results among the scored images, which they would join or overwrite."""
    for target in ((save / one.name).resolve() for one in sets):
        for one in sets:
            if target.is_relative_to(one.folder) or one.folder.is_relative_to(target):
                raise UsageError(
                    f"Results in {target} would mix with the images of {one.folder}; save "
                    "elsewhere."
                )


def _make_folder(folder: Path) -> None:
    """Create the folder for results, or raise before the first one is computed."""
    with write_errors(folder):
        if folder.is_file():
            raise TargetError(f"{folder} is a file; name a folder for the results.")
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _scale_of(files: PairFiles, folder: Path) -> int:
    if files.lr is None:
        raise UsageError(f"{folder} has no LR to show the scale; give a scale of 2, 3 or 4.")
    scale = Pair(files.name, read_image(files.lr), read_image(files.hr)).scale
    if scale == 1:
        raise ShapeMismatch(
            f"{folder}: GT and LR of {files.name} have the same size; LR must be 2, 3 or 4 times "
            "smaller."
        )
    return scale


def _write_tiff(path: Path, image: NDArray[np.generic]) -> None:
    """Write (H, W, C) as TIFF; it appears when complete. Raises TargetError, NoSpace."""
    from rasterio.io import MemoryFile

    from repmamba.gdal import created

    height, width, bands = image.shape
    # GDAL reports no error if the disk is full on closing, so Python writes the file
    with whole_file(path) as unfinished, MemoryFile() as memory:
        shape = {"height": height, "width": width, "count": bands, "dtype": image.dtype.name}
        with created(memory.name, **shape, compress="deflate", bigtiff="if_safer") as raster:
            raster.write(np.moveaxis(image, -1, 0))
        unfinished.write_bytes(memory.getbuffer())
