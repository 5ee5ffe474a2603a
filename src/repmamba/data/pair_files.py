"""The three files of one prepared image: GT cropped by the benchmark's rule, LR, and Bicubic."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba.data.benchmarks import Bicubic
from repmamba.data.degradations import generator_for
from repmamba.data.draw import Item, Settings, Skipped, too_small
from repmamba.data.images import read_file, read_image, write_png
from repmamba.data.pairs import BICUBIC_FOLDER, HR_FOLDER, LR_FOLDER
from repmamba.errors import SourceError, UsageError, VerificationError
from repmamba.pixels.resize import imresize, to_uint8

Levels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Made:
    """One image that was made, as the manifest lists it."""

    part: str
    name: str
    source: str
    source_sha256: str
    cut: tuple[int, int, int, int]  # row, column, height and width in the source, in pixels
    gt_sha256: str  # of the pixels, row by row: PNG files of equal pixels may differ
    lr_sha256: str


def make_item(item: Item, source: Path, target: Path, settings: Settings) -> Made | Skipped:
    """Write GT, LR and Bicubic of one image.

    source: Folder of the originals.  target: Folder to write into.
    settings: How to crop and downsample.
    Returns what was made; Skipped if the image cannot be used. Raises VerificationError: the
    original is not the one that a manifest lists; TargetError: a file cannot be written; NoSpace if
    the disk is full.
    """
    path = source / item.source
    try:
        digest = hashlib.sha256(read_file(path)).hexdigest()
        image = read_image(path)
        gt, cut = _cropped(image, settings)
    except (SourceError, UsageError) as error:
        return Skipped(item.source, str(error))
    if item.sha256 not in (None, digest):
        raise VerificationError(
            f"{path} is not the image that the manifest lists: its sha256 begins {digest[:12]}."
        )
    lr, bicubic = _lr_and_bicubic(gt, settings, item.name)
    paths = paths_of(target, item.part, item.name)
    for file, pixels in zip(paths, (gt, lr, bicubic), strict=True):
        write_png(file, pixels)
    return Made(
        item.part, item.name, item.source, digest, cut, _pixel_digest(gt), _pixel_digest(lr)
    )


def paths_of(target: Path, part: str, name: str) -> tuple[Path, Path, Path]:
    """Where GT, LR and Bicubic of an image are written."""
    hr, lr, bicubic = (
        target / part / folder / f"{name}.png" for folder in (HR_FOLDER, LR_FOLDER, BICUBIC_FOLDER)
    )
    return hr, lr, bicubic


def _lr_and_bicubic(gt: Levels, settings: Settings, name: str) -> tuple[Levels, Levels]:
    s = settings.scale
    if (chain := settings.chain) is not None:
        lr = chain(gt, generator_for(settings.seed, name))
        return lr, to_uint8(imresize(lr / 255.0, s))
    return REDUCTIONS[settings.benchmark.bicubic](gt, s)


def _matlab(gt: Levels, scale: int) -> tuple[Levels, Levels]:
    unrounded = imresize(gt / 255.0, 1 / scale)
    return to_uint8(unrounded), to_uint8(imresize(unrounded, scale))


def _pillow(gt: Levels, scale: int) -> tuple[Levels, Levels]:
    height, width = gt.shape[0], gt.shape[1]
    lr = Image.fromarray(gt).resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return np.asarray(lr), np.asarray(lr.resize((width, height), Image.Resampling.BICUBIC))


REDUCTIONS: dict[Bicubic, Callable[[Levels, int], tuple[Levels, Levels]]] = {
    "matlab": _matlab,
    "pillow": _pillow,
}


def _cropped(
    image: NDArray[np.generic], settings: Settings
) -> tuple[Levels, tuple[int, int, int, int]]:
    """The benchmark's part of an original, cropped at the lower right to a multiple of the scale.

    Returns its pixels and its row, column, height and width.
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
        raise UsageError(too_small(height, width, benchmark.cut))
    rows, cols = (height, width) if benchmark.cut is None else (benchmark.cut, benchmark.cut)
    row, col = benchmark.corner or ((height - rows) // 2, (width - cols) // 2)
    rows, cols = (length // settings.scale * settings.scale for length in (rows, cols))
    if 0 in (rows, cols):
        raise UsageError(
            f"{height}x{width} pixels are too few to be downsampled {settings.scale} times."
        )
    gt = np.ascontiguousarray(image[row : row + rows, col : col + cols], np.uint8)
    return gt, (row, col, rows, cols)


def _pixel_digest(image: Levels) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
