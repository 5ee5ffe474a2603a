"""Pairs of a small and a large image: the value, and how pairs are found on disk.

Found are the layouts that the published scripts read and that `repmamba prepare` writes: GT (or HR)
and LR side by side, flat or with class folders inside or around them. A folder that has neither
holds large images only; their small ones are then made as the benchmarks make them. Files are
paired by name, never by position; a small image may have its scale added to the name, as in DIV2K.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repmamba.ahead import ahead
from repmamba.cores import available_cores
from repmamba.data.images import blank_image, find_images, read_image
from repmamba.errors import ShapeMismatch, SourceError, UsageError
from repmamba.pixels.resize import imresize, resized_length, to_uint8

HR_FOLDER, LR_FOLDER, BICUBIC_FOLDER = "GT", "LR", "Bicubic"
# of the folder of large images, in upper or lower case; the first that is there
HR_NAMES = (HR_FOLDER, "HR")
# 0801x4, as DIV2K and BasicSR name the small image of 0801
_SCALED = re.compile(r"(.+?)_?[xX]([2-4])")
_SCALE_FOLDER = re.compile(r"[xX]([2-4])/")  # X4/0801x4, as DIV2K has them
SPLITS = ("train", "trainval", "val", "test")

Image = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Pair:
    """A small image and the large one that it was made from."""

    name: str  # the path inside its folder, "/" between its parts, no suffix: "Airport/airport_285"
    lr: Image  # (h, w, C), uint8 for pictures
    hr: Image  # (s h, s w, C), the same type

    def __post_init__(self) -> None:
        lr, hr = self.lr.shape, self.hr.shape
        if len(lr) != 3 or len(hr) != 3 or lr[2] != hr[2] or 0 in lr:
            raise ShapeMismatch(
                f"{self.name}: LR is {lr} and GT {hr}; both must be (rows, columns, the same "
                "bands)."
            )
        scale = hr[0] // lr[0]
        if scale < 1 or hr[:2] != (scale * lr[0], scale * lr[1]):
            raise ShapeMismatch(
                f"{self.name}: GT has {hr[0]}x{hr[1]} pixels and LR {lr[0]}x{lr[1]}, no whole "
                "number of times as many; cut GT to a multiple of the scale before LR is made."
            )
        if self.lr.dtype != self.hr.dtype:
            raise ShapeMismatch(
                f"{self.name}: LR is {self.lr.dtype} and GT {self.hr.dtype}; both must be of one "
                "type."
            )

    @property
    def scale(self) -> int:
        """How many times larger hr is."""
        return int(self.hr.shape[0] // self.lr.shape[0])


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where a pair lies. Without lr, it is made from hr when the pair is read.

    reduction: sides of hr as shares of those of its file, from which it is reduced by imresize; 1
    where there is an lr.
    """

    name: str  # as in Pair
    hr: Path
    lr: Path | None
    reduction: float = 1.0

    @property
    def group(self) -> str:
        """The class folder, empty for a flat set."""
        return self.name.rpartition("/")[0]

    def read(self, scale: int) -> Pair:
        """The pair at this scale. Raises ShapeMismatch if its files are of another, SourceError if
        one is broken.
        """
        return self._pair(scale, read_image, reduce_image)

    def blank(self, scale: int) -> Pair:
        """Zeros of the shapes and type of the pair, from the headers of its files; raises as read
        does.
        """
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
                f"{self.name}: GT is {pair.scale} times as large as LR, and {scale} times is asked "
                "for."
            )
        return pair


def read_pairs(
    files: Sequence[PairFiles], scale: int, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[Pair]:
    """The pairs of these files at a scale, in their order, read ahead by a thread for each core
    that may be used.

    progress: called with the number of pairs read and that of all. Raises what PairFiles.read does.
    """

    def read(one: PairFiles) -> Pair:
        return one.read(scale)

    workers = available_cores()
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(ahead(pool, read, files, 2 * workers)) as pairs,
    ):
        for done, pair in enumerate(pairs, start=1):
            yield pair
            if progress:
                progress(done, len(files))


def pair_from_hr(name: str, hr: Image, scale: int) -> Pair:
    """The pair of a large image alone: cut at the top left to a multiple of the scale, reduced by
    MATLAB's bicubic.

    hr: (H, W, C); integers are rounded to their own type again, half up, floats stay as computed.
    """
    hr = cut_to_scale(name, hr, scale)
    return Pair(name, reduce_image(hr, scale), hr)


def cut_to_scale(name: str, hr: Image, scale: int) -> Image:
    """The upper left part of (H, W, C) whose sides are the largest multiples of the scale. Raises
    ShapeMismatch.
    """
    rows, columns = (length // scale * scale for length in hr.shape[:2])
    if 0 in (rows, columns):
        raise ShapeMismatch(
            f"{name}: {hr.shape[0]}x{hr.shape[1]} pixels are too few to be reduced {scale} times."
        )
    return hr[:rows, :columns]


def reduce_image(hr: Image, scale: float) -> Image:
    """MATLAB's bicubic reduction of (H, W, C) by the scale in the type of hr: integers clipped and
    rounded half up.
    """
    if hr.dtype == np.uint8:
        return to_uint8(imresize(hr.astype(np.float64) / 255.0, 1 / scale))
    reduced = imresize(hr, 1 / scale)
    if not np.issubdtype(hr.dtype, np.integer):
        return reduced.astype(hr.dtype)
    limits = np.iinfo(hr.dtype.name)
    return np.floor(np.clip(reduced, limits.min, limits.max) + 0.5).astype(hr.dtype)


def find_pairs(folder: Path, scale: int | None = None) -> list[PairFiles]:
    """The pairs of a folder, sorted by name.

    Accepted: GT/ (or HR/) and LR/ inside, each flat or with class folders; class folders with GT/
    and LR/ inside each; or images alone, flat or in class folders, as large ones without small
    ones. The LR of 0801 may be named 0801x4 or 0801_x4, and lie in a folder X4. scale: of the LR
    that is meant, where there are several by such names. Raises UsageError where files have no
    partner or two files have one name, and where the folders inside are the splits of a benchmark,
    as `prepare aid` writes them, or hold pairs further down; SourceError where there is no image.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is not a folder; give one with GT and LR inside, or with images."
        )
    if (hr_folder := _inside(folder, HR_NAMES)) is not None:
        return _matched(folder, _by_name(hr_folder), _small_by_name(folder), scale, hr_folder.name)
    if _inside(folder, (LR_FOLDER,)) is not None:
        found = ", ".join(sorted(child.name for child in folder.iterdir())[:8])
        raise UsageError(
            f"{folder} has {LR_FOLDER} and neither of {' and '.join(HR_NAMES)}, one of which holds "
            f"the large images; found {found}."
        )
    classes = sorted(
        child
        for child in folder.iterdir()
        if child.is_dir() and _inside(child, HR_NAMES) is not None
    )
    _refuse_splits(folder, [child.name for child in classes])
    if classes:
        large = {child.name: _inside(child, HR_NAMES) or child for child in classes}
        return _matched(
            folder,
            {
                f"{name}/{one}": path
                for name, place in large.items()
                for one, path in _by_name(place).items()
            },
            {
                f"{child.name}/{name}": path
                for child in classes
                for name, path in _small_by_name(child).items()
            },
            scale,
            next(iter(large.values())).name,
        )
    images = _by_name(folder)
    _refuse_splits(folder, [name.partition("/")[0] for name in images if "/" in name])
    further = sorted(
        {name.partition(f"/{HR_FOLDER}/")[0] for name in images if f"/{HR_FOLDER}/" in name}
    )
    if further:  # their LR would be taken for large images
        raise UsageError(
            f"{folder} holds {HR_FOLDER} further down, in {', '.join(further[:3])}; give such a "
            "folder."
        )
    if not images:
        found = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
        raise SourceError(
            f"{folder} holds no images; expected GT and LR, flat or by class, or images; found "
            f"{found}."
        )
    return [PairFiles(name, hr, None) for name, hr in sorted(images.items())]


def _inside(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder inside that has the first of these names; None where there is none.

    A name may be in lower case, or stand at the end of a longer one where one folder has it:
    DIV2K_valid_HR and DIV2K_valid_LR_bicubic.
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
    """Splits are not classes: read together, a network would learn from the images that are to
    judge it.

    One such name among others is a class that happens to have it.
    """
    splits = sorted(set(children) & set(SPLITS))
    if len(splits) > 1 or (splits and set(children) == set(splits)):
        given = " or ".join(str(folder / split) for split in splits)
        raise UsageError(
            f"{folder} holds {', '.join(splits)}: splits of a benchmark and not classes; give "
            f"{given}."
        )


def _by_name(folder: Path) -> dict[str, Path]:
    """The images below a folder by their path inside it, without suffix."""
    named: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise UsageError(
                f"{folder} has both {named[name].name} and {path.name}; keep one, names decide the "
                "pairs."
            )
        named[name] = path
    return named


def _matched(
    folder: Path, hr: dict[str, Path], lr: dict[str, Path], scale: int | None, hr_folder: str
) -> list[PairFiles]:
    lr = _plainly_named(folder, lr, hr, scale)
    for missing, where in (
        (sorted(hr.keys() - lr.keys()), LR_FOLDER),
        (sorted(lr.keys() - hr.keys()), hr_folder),
    ):
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UsageError(
                f"{folder}: no partner in {where} for {', '.join(missing[:3])}{more}; pairs share "
                "a name, to which LR may add its scale (0801 and 0801x4)."
            )
    if not hr:
        raise SourceError(f"{folder} has {hr_folder} and {LR_FOLDER}, and no image in them.")
    return [PairFiles(name, hr[name], lr[name]) for name in sorted(hr)]


def _plainly_named(
    folder: Path, lr: dict[str, Path], hr: dict[str, Path], scale: int | None
) -> dict[str, Path]:
    """The small images by the names of their large ones, where they have their scale added; others
    as they are.

    Raises UsageError where there are several scales and none is asked for, and where a name tells
    of a wrong one.
    """
    plain: dict[str, Path] = {}
    scales: dict[int, Path] = {}  # told by names -> one that does
    for name, path in lr.items():
        large, told = _scaled_name(name, hr)
        if told is None:
            plain[large] = path
        elif scale in (None, told):
            scales.setdefault(told, path)
            plain[large] = path
    if len(scales) > 1:
        some = " and ".join(path.name for path in scales.values())
        raise UsageError(
            f"{folder} has LR of several scales ({some}): say which, with a scale of 2, 3 or 4."
        )
    for told, small in scales.items():
        large_image = next(hr[name] for name, path in plain.items() if path == small)
        rows, columns = blank_image(large_image).shape[:2]
        if (rows // told, columns // told) != blank_image(small).shape[:2]:
            raise ShapeMismatch(
                f"{small} is x{told} by its name, and is not {told} times smaller than "
                f"{large_image.name}: rename it, or make it again."
            )
    return plain


def _scaled_name(name: str, hr: Mapping[str, Path]) -> tuple[str, int | None]:
    """The name of a small image without its scale, and the scale; as it is, and None, where that
    names no large one.
    """
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
