"""Pairs of a small and a large image: the value, and how pairs are found on disk.

Supported are the layouts that the published scripts read and that `repmamba prepare` writes: GT (or
HR) and LR side by side, flat, with class folders inside, or inside class folders. A folder without
either contains large images only; LR is then made with MATLAB's bicubic. Files are paired by name.
The name of an LR may end with its scale, as in DIV2K.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repmamba.cores import available_cores
from repmamba.data.images import blank_image, find_images, read_image
from repmamba.errors import ShapeMismatch, SourceError, UsageError
from repmamba.pixels.resize import imresize, resized_length, to_uint8
from repmamba.prefetch import prefetch

HR_FOLDER, LR_FOLDER, BICUBIC_FOLDER = "GT", "LR", "Bicubic"
# of the folder of large images, in upper or lower case; the first one found
HR_NAMES = (HR_FOLDER, "HR")
_SCALED = re.compile(r"(.+?)_?[xX]([2-4])")  # 0801x4, the name of LR for 0801 in DIV2K and BasicSR
_SCALE_FOLDER = re.compile(r"[xX]([2-4])/")  # X4/0801x4, as in DIV2K
SPLITS = ("train", "trainval", "val", "test")

Image = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Pair:
    """A small image and the large one that it was made from. Raises ShapeMismatch."""

    name: str  # path in its folder, with "/" and without suffix: "Airport/airport_285"
    lr: Image  # (h, w, C), uint8 for pictures
    hr: Image  # (s h, s w, C), the same type

    def __post_init__(self) -> None:
        lr, hr = self.lr.shape, self.hr.shape
        if len(lr) != 3 or len(hr) != 3 or lr[2] != hr[2] or 0 in lr:
            raise ShapeMismatch(
                f"{self.name}: LR is {lr} and GT {hr}; both must be (rows, columns, equal bands)."
            )
        scale = hr[0] // lr[0]
        if scale < 1 or hr[:2] != (scale * lr[0], scale * lr[1]):
            raise ShapeMismatch(
                f"{self.name}: GT has {hr[0]}x{hr[1]} pixels and LR {lr[0]}x{lr[1]}, not a whole "
                "multiple; crop GT to a multiple of the scale before making LR."
            )
        if self.lr.dtype != self.hr.dtype:
            raise ShapeMismatch(
                f"{self.name}: LR is {self.lr.dtype} and GT {self.hr.dtype}; both must have the "
                "same type."
            )

    @property
    def scale(self) -> int:
        """How many times larger hr is."""
        return int(self.hr.shape[0] // self.lr.shape[0])


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The files of a pair. Without lr, it is made from hr when the pair is read.

    reduction: factor by which imresize downsamples the file of hr first; 1 if there is an lr.
    """

    name: str  # as in Pair
    hr: Path
    lr: Path | None
    reduction: float = 1.0

    @property
    def group(self) -> str:
        """The class folder; "" in a flat set."""
        return self.name.rpartition("/")[0]

    def read(self, scale: int) -> Pair:
        """Read the pair. Raises ShapeMismatch if its files are of another scale, SourceError."""
        return self._pair(scale, read_image, reduce_image)

    def blank(self, scale: int) -> Pair:
        """Zeros of the pair's shapes and type, from the file headers; raises as read does."""
        return self._pair(scale, blank_image, _blank_reduced)

    def _pair(
        self, scale: int, read: Callable[[Path], Image], reduce: Callable[[Image, float], Image]
    ) -> Pair:
        hr = read(self.hr)
        if self.lr is None:
            hr = cut_to_scale(
                self.name, hr if self.reduction == 1 else reduce(hr, 1 / self.reduction), scale
            )
            return Pair(self.name, reduce(hr, scale), hr)
        pair = Pair(self.name, read(self.lr), hr)
        if pair.scale != scale:
            raise ShapeMismatch(
                f"{self.name}: GT is {pair.scale} times as large as LR, not {scale} for."
            )
        return pair


def read_pairs(
    files: Sequence[PairFiles], scale: int, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[Pair]:
    """Read pairs in their order, prefetched by one thread per core.

    scale: Their scale.  progress: Called with the number of pairs read and the number of all.
    Raises ShapeMismatch, SourceError: as PairFiles.read.
    """

    def read(one: PairFiles) -> Pair:
        return one.read(scale)

    workers = available_cores()
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(prefetch(pool, read, files, 2 * workers)) as pairs,
    ):
        for done, pair in enumerate(pairs, start=1):
            yield pair
            if progress:
                progress(done, len(files))


def pair_from_hr(name: str, hr: Image, scale: int) -> Pair:
    """The pair of a large image, cropped to a multiple of the scale; lr by MATLAB's bicubic.

    hr: (H, W, C).  scale: 2, 3 or 4.
    Raises ShapeMismatch: hr has fewer pixels than the scale.
    """
    hr = cut_to_scale(name, hr, scale)
    return Pair(name, reduce_image(hr, scale), hr)


def cut_to_scale(name: str, hr: Image, scale: int) -> Image:
    """Crop (H, W, C) at the lower right to multiples of the scale. Raises ShapeMismatch."""
    rows, columns = (length // scale * scale for length in hr.shape[:2])
    if 0 in (rows, columns):
        raise ShapeMismatch(
            f"{name}: {hr.shape[0]}x{hr.shape[1]} pixels are too few to be downsampled {scale} "
            "times."
        )
    return hr[:rows, :columns]


def reduce_image(hr: Image, scale: float) -> Image:
    """Downsample (H, W, C) with MATLAB's bicubic; integers are clipped and rounded half up."""
    if hr.dtype == np.uint8:
        return to_uint8(imresize(hr.astype(np.float64) / 255.0, 1 / scale))
    reduced = imresize(hr, 1 / scale)
    if not np.issubdtype(hr.dtype, np.integer):
        return reduced.astype(hr.dtype)
    limits = np.iinfo(hr.dtype.name)
    return np.floor(np.clip(reduced, limits.min, limits.max) + 0.5).astype(hr.dtype)


def find_pairs(folder: Path, scale: int | None = None) -> list[PairFiles]:
    """Find the pairs of a folder.

    Accepted layouts: GT/ (or HR/) and LR/, each flat or with class folders; class folders with GT/
    and LR/; or large images without small ones, flat or in class folders. The LR of 0801 may be
    named 0801x4 or 0801_x4, or lie in a folder X4.

    scale: Of the LR to use, if names show several.
    Returns the pairs, sorted by name. Raises UsageError: files have no partner, two have the same
    name, or the folder contains splits of a benchmark or pairs further down; SourceError: there is
    no image.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; give one that contains GT and LR, or images.")
    if (hr_folder := _inside(folder, HR_NAMES)) is not None:
        return _matched(folder, _by_name(hr_folder), _small_by_name(folder), scale, hr_folder.name)
    if _inside(folder, (LR_FOLDER,)) is not None:
        raise UsageError(
            f"{folder} has {LR_FOLDER} but none of {' or '.join(HR_NAMES)}, which holds the large "
            f"images; found {_contents(folder)}."
        )
    classes = {
        child: hr_folder
        for child in sorted(folder.iterdir())
        if child.is_dir() and (hr_folder := _inside(child, HR_NAMES)) is not None
    }
    _refuse_splits(folder, [child.name for child in classes])
    return _class_pairs(folder, classes, scale) if classes else _large_images(folder)


def _class_pairs(folder: Path, classes: Mapping[Path, Path], scale: int | None) -> list[PairFiles]:
    """The pairs of class folders; classes: class folder -> its folder of large images."""
    hr = {
        f"{child.name}/{name}": path
        for child, hr_folder in classes.items()
        for name, path in _by_name(hr_folder).items()
    }
    lr = {
        f"{child.name}/{name}": path
        for child in classes
        for name, path in _small_by_name(child).items()
    }
    return _matched(folder, hr, lr, scale, next(iter(classes.values())).name)


def _large_images(folder: Path) -> list[PairFiles]:
    """Large images without small ones, flat or in class folders."""
    images = _by_name(folder)
    _refuse_splits(folder, [name.partition("/")[0] for name in images if "/" in name])
    further = sorted(
        {name.partition(f"/{HR_FOLDER}/")[0] for name in images if f"/{HR_FOLDER}/" in name}
    )
    if further:  # otherwise their LR would become GT
        raise UsageError(
            f"{folder} holds {HR_FOLDER} further down, in {', '.join(further[:3])}; give such a "
            "folder."
        )
    if not images:
        raise SourceError(
            f"{folder} holds no images; expected GT and LR, flat or by class, or images; found "
            f"{_contents(folder) or 'nothing'}."
        )
    return [PairFiles(name, hr, None) for name, hr in sorted(images.items())]


def _contents(folder: Path) -> str:
    return ", ".join(sorted(child.name for child in folder.iterdir())[:8])


def _inside(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder inside with the first of these names; None if there is none.

    A name may be in lower case, or end a longer one, if only one folder does so: DIV2K_valid_HR,
    DIV2K_valid_LR_bicubic.
    """
    children = {child.name: child for child in folder.iterdir() if child.is_dir()}
    for name in names:
        for spelt in (name, name.lower()):
            if spelt in children:
                return children[spelt]
        longer = [child for child in children if re.fullmatch(f".+_{name}(_bicubic)?", child)]
        if len(longer) == 1:
            return children[longer[0]]
    return None


def _small_by_name(folder: Path) -> dict[str, Path]:
    lr_folder = _inside(folder, (LR_FOLDER,))
    return _by_name(lr_folder or folder / LR_FOLDER)


def _refuse_splits(folder: Path, children: Sequence[str]) -> None:
    """Refuse splits as classes: a network would be trained on its own test images.

    A single such name among others is taken for a class.
    """
    splits = sorted(set(children) & set(SPLITS))
    if len(splits) > 1 or (splits and set(children) == set(splits)):
        given = " or ".join(str(folder / split) for split in splits)
        raise UsageError(
            f"{folder} holds {', '.join(splits)}: splits of a benchmark, not classes; give {given}."
        )


def _by_name(folder: Path) -> dict[str, Path]:
    """The images below a folder by their path in it, without suffix."""
    named: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise UsageError(
                f"{folder} has both {named[name].name} and {path.name}; keep one, as names define "
                "pairs."
            )
        named[name] = path
    return named


def _matched(
    folder: Path, hr: dict[str, Path], lr: dict[str, Path], scale: int | None, hr_folder: str
) -> list[PairFiles]:
    lr = _without_scales(folder, lr, hr, scale)
    for missing, where in (
        (sorted(hr.keys() - lr.keys()), LR_FOLDER),
        (sorted(lr.keys() - hr.keys()), hr_folder),
    ):
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UsageError(
                f"{folder}: no partner in {where} for {', '.join(missing[:3])}{more}; the names of "
                "a pair are equal, except that LR may add its scale (0801 and 0801x4)."
            )
    if not hr:
        raise SourceError(f"{folder} has {hr_folder} and {LR_FOLDER}, but no image in them.")
    return [PairFiles(name, hr[name], lr[name]) for name in sorted(hr)]


def _without_scales(
    folder: Path, lr: dict[str, Path], hr: dict[str, Path], scale: int | None
) -> dict[str, Path]:
    """The LR images by the names of their GT, with the scale removed from the name.

    Raises UsageError if there are several scales and none is given, ShapeMismatch if a name has the
    wrong scale.
    """
    plain: dict[str, Path] = {}
    scales: dict[int, Path] = {}  # scale in a name -> an image with it
    for name, path in lr.items():
        large, named = _scaled_name(name, hr)
        if named is None:
            plain[large] = path
        elif scale in (None, named):
            scales.setdefault(named, path)
            plain[large] = path
    if len(scales) > 1:
        some = " and ".join(path.name for path in scales.values())
        raise UsageError(f"{folder} has LR of several scales ({some}): give the scale, 2, 3 or 4.")
    for named, small in scales.items():
        large_image = next(hr[name] for name, path in plain.items() if path == small)
        rows, columns = blank_image(large_image).shape[:2]
        if (rows // named, columns // named) != blank_image(small).shape[:2]:
            raise ShapeMismatch(
                f"{small} is x{named} by its name, but is not {named} times smaller than "
                f"{large_image.name}: rename it or make it again."
            )
    return plain


def _scaled_name(name: str, hr: Mapping[str, Path]) -> tuple[str, int | None]:
    """The name of an LR without its scale, and the scale; None if no such GT exists."""
    folder, inside = _SCALE_FOLDER.search(name), _SCALE_FOLDER.sub("", name)
    scaled = _SCALED.fullmatch(inside)
    if name in hr:
        return name, None
    if scaled is not None and scaled[1] in hr:
        return scaled[1], int(scaled[2])
    if folder is not None and inside in hr:
        return inside, int(folder[1])
    return name, None


def _blank_reduced(hr: Image, scale: float) -> Image:
    rows, columns = (resized_length(length, 1 / scale) for length in hr.shape[:2])
    return hr[:rows, :columns]
