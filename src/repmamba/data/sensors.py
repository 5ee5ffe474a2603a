"""Degradation as by a real sensor: named chains from hr to lr, in the order of a camera.

Blur of lens and motion, downsampling to the sensor's pixels, noise, sharpening, JPEG. The kinds and
their ranges follow BSRGAN (Zhang et al. 2021, "Designing a Practical Degradation Model for Deep
Blind Image Super-Resolution") and Real-ESRGAN (Wang et al. 2021), without their random order and
second pass, as a scene has passed through only one camera. `repmamba prepare folder --degrade NAME`
writes pairs, `data.degrade` of a recipe trains on them. Blur and downsampling are both linear, so
one pass computes only lr pixels, in milliseconds per patch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from repmamba.data.degradations import Chain, jpeg
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.pixels.resize import cubic, to_uint8

T = TypeVar("T")
Taps = NDArray[np.float32]
# a kernel as a sum of separable terms: odd numbers of taps along rows and columns (hr pixels)
Terms = tuple[tuple[Taps, Taps], ...]

TAILS = 3.0  # where a Gaussian is cut off, in sigma

# share of the largest singular value below which a term is dropped: less than a grey level
LEAST = 3e-3

BLOCK = 16  # side of the largest JPEG block in pixels, with chroma subsampling


@dataclass(frozen=True, slots=True)
class Draw:
    """A strength drawn uniformly from low to high with this chance, else the fault is left out."""

    chance: float
    low: float
    high: float

    def of(self, draws: NDArray[np.float64]) -> float | None:
        """The strength from two random numbers in [0, 1); None leaves the fault out."""
        return (
            float(self.low + (self.high - self.low) * draws[1]) if draws[0] < self.chance else None
        )


@dataclass(frozen=True, slots=True)
class Sensor:
    """The faults of one kind of sensor.

    The shape of the blur is drawn from BLURS, the downsampling kernel from KERNELS. In half of the
    images the noise is the same in all bands; half have JPEG with chroma subsampling, whose blocks
    may begin at any pixel, as in a cropped image.
    """

    blur: Draw  # standard deviation along its widest direction, in lr pixels
    noise: Draw  # standard deviation in levels of 255
    halos: Draw  # amount of an unsharp mask of 0.5 to 1.5 lr pixels
    quality: Draw  # of JPEG, 1 to 100
    clean: float = 0.0  # share of images with none of these, downsampled with MATLAB's bicubic

    @property
    def words(self) -> str:
        """The faults in one line, with their ranges and chances."""
        kinds = (
            (self.blur, f"blur ({', '.join(BLURS)})", "lr pixels"),
            (self.noise, "noise (grey, coloured)", "levels"),
            (self.halos, "sharpening", "of an unsharp mask"),
            (self.quality, "JPEG (colours whole, halved)", "quality"),
        )
        faults = [
            f"{name} {one.low:g} to {one.high:g} {unit} in {one.chance:.0%}"
            for one, name, unit in kinds
        ]
        faults.insert(1, f"reduction ({', '.join(KERNELS)})")
        return f"{', '.join(faults)}; {self.clean:.0%} clean"

    def degrade(
        self, hr: NDArray[np.generic], scale: int, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """hr (s h, s w, 1 or 3) uint8 -> lr (h, w, 1 or 3) uint8. Raises ShapeMismatch."""
        if hr.ndim != 3 or hr.shape[2] not in (1, 3):
            raise ShapeMismatch(
                f"An image {hr.shape} cannot be degraded by a sensor chain; give (H, W, 1) or (H, "
                "W, 3)."
            )
        draws = generator.random(16)  # all at once: no fault changes the random numbers of another
        if draws[0] < self.clean:
            return Chain(scale)(hr, generator)
        blur = self.blur.of(draws[1:3])
        shape = IDENTITY if blur is None else _chosen(BLURS, draws[3])(scale * blur, draws[4:6])
        kernel = _chosen(KERNELS, draws[6])
        lr = reduced(hr.astype(np.float32) / np.float32(255), kernel(scale), shape, scale)
        if (deviation := self.noise.of(draws[7:9])) is not None:
            bands = 1 if draws[9] < 0.5 else lr.shape[2]
            noise = generator.standard_normal((*lr.shape[:2], bands), np.float32)
            lr += np.float32(deviation / 255) * noise
        if (amount := self.halos.of(draws[10:12])) is not None:
            lr = sharpened(lr, amount, 0.5 + draws[12])
        levels = to_uint8(lr)
        if (quality := self.quality.of(draws[13:15])) is None:
            return levels
        row, col = generator.integers(0, BLOCK, 2)
        shifted = np.pad(levels, ((row, 0), (col, 0), (0, 0)), "symmetric")
        halved = bool(draws[15] < 0.5)
        return jpeg(shifted, round(quality), subsample=halved)[row:, col:]


@dataclass(frozen=True, slots=True)
class SensorChain:
    """A named sensor at a scale, hr (s h, s w, C) uint8 -> lr (h, w, C). Raises UsageError."""

    name: str
    scale: int

    def __post_init__(self) -> None:
        if self.name not in SENSORS:
            raise UsageError(f"There is no chain {self.name!r}; choose among {', '.join(SENSORS)}.")

    def __call__(
        self, hr: NDArray[np.generic], generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Degrade hr. Raises ShapeMismatch for other types, numbers of bands and sizes."""
        if hr.dtype != np.uint8 or any(length % self.scale for length in hr.shape[:2]):
            raise ShapeMismatch(
                f"An image {hr.shape} of {hr.dtype} cannot be degraded at x{self.scale}; give (H, "
                f"W, C) uint8 with H and W multiples of {self.scale}."
            )
        return SENSORS[self.name].degrade(hr, self.scale, generator)


def reduced(hr: NDArray[np.float32], kernel: Taps, blur: Terms, scale: int) -> NDArray[np.float32]:
    """Blur hr (s h, s w, C) and downsample it with a kernel -> (h, w, C); edges are mirrored."""
    total = np.zeros((hr.shape[0] // scale, hr.shape[1] // scale, hr.shape[2]), np.float32)
    for rows, cols in blur:
        half = _strided(hr, np.convolve(kernel, rows), scale, 0)
        total += _strided(half, np.convolve(kernel, cols), scale, 1)
    return total


def sharpened(image: NDArray[np.float32], amount: float, sigma: float) -> NDArray[np.float32]:
    """Apply an unsharp mask with a Gaussian of sigma pixels to an image (H, W, C)."""
    ((taps, _),) = _gaussian(sigma, NO_DRAWS)
    smooth = _strided(_strided(image, taps, 1, 0), taps, 1, 1)
    return image + np.float32(amount) * (image - smooth)


def _strided(image: NDArray[np.float32], taps: Taps, scale: int, axis: int) -> NDArray[np.float32]:
    """Every scale-th sum of taps along an axis, centred on the pixels that become one."""
    count = image.shape[axis] // scale
    before = (len(taps) - scale) // 2
    margins = [(0, 0)] * image.ndim
    margins[axis] = (before, before)
    padded = np.pad(image, margins, "symmetric")
    total: NDArray[np.float32] | None = None
    for tap, weight in enumerate(taps):
        last = tap + scale * (count - 1) + 1
        part = padded[tap:last:scale] if axis == 0 else padded[:, tap:last:scale]
        total = weight * part if total is None else total + weight * part
    assert total is not None  # there are always taps
    return total


def _area(scale: int) -> Taps:
    """The mean of the pixels that become one: GDAL's average at an integer scale."""
    return np.full(scale, 1 / scale, np.float32)


def _sampled(
    kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]], reach: int, scale: int
) -> Taps:
    """A kernel in lr pixels, sampled at the hr pixels around the centre of each lr pixel."""
    # the centre is between two pixels at an even scale, on a pixel at an odd one
    ends = reach * scale - 1 + (scale % 2 == 0) / 2
    offsets = np.arange(-ends, ends + 1)
    return _with_sum_one(kernel(offsets / scale))


def _gaussian(sigma: float, draws: NDArray[np.float64]) -> Terms:
    offsets = np.arange(-_reach(sigma), _reach(sigma) + 1)
    taps = _with_sum_one(np.exp(-(offsets**2) / (2 * max(sigma, 1e-6) ** 2)))
    return ((taps, taps),)


def _stretched(sigma: float, draws: NDArray[np.float64]) -> Terms:
    """An anisotropic Gaussian: sigma in one direction, 0.25 to 1 sigma across it."""
    across = sigma * (0.25 + 0.75 * draws[0])
    angle = math.pi * draws[1]
    rows, cols = _places(_reach(sigma))
    along = (np.cos(angle) * cols + np.sin(angle) * rows) / max(sigma, 1e-6)
    aside = (np.cos(angle) * rows - np.sin(angle) * cols) / max(across, 1e-6)
    return _terms(np.exp(-(along**2 + aside**2) / 2))


def _box(sigma: float, draws: NDArray[np.float64]) -> Terms:
    """A mean over a square: motion along both axes, or detectors larger than a pixel."""
    half = math.sqrt(3) * sigma  # half the side of a square with standard deviation sigma
    offsets = np.arange(-math.ceil(half), math.ceil(half) + 1)
    covered = np.clip(half + 0.5 - np.abs(offsets), 0, 1)
    taps = _with_sum_one(covered)
    return ((taps, taps),)


def _disk(sigma: float, draws: NDArray[np.float64]) -> Terms:
    """A lens slightly out of focus; the disk's edge is softened by one pixel."""
    radius = 2 * sigma  # of a disk with standard deviation sigma
    rows, cols = _places(math.ceil(radius))
    return _terms(np.clip(radius + 0.5 - np.hypot(rows, cols), 0, 1))


def _terms(kernel: NDArray[np.float64]) -> Terms:
    """The kernel, normalised to sum 1, as a sum of separable terms; small ones are dropped."""
    left, sizes, right = np.linalg.svd(kernel / kernel.sum())
    kept = int((sizes > LEAST * sizes[0]).sum())
    left, right = (left * sizes).astype(np.float32), right.astype(np.float32)
    terms = list(zip(left.T[:kept], right[:kept], strict=True))
    # A constant image stays constant.
    total = sum(float(rows.sum()) * float(cols.sum()) for rows, cols in terms)
    return tuple(((rows / np.float32(total)), cols) for rows, cols in terms)


def _with_sum_one(weights: NDArray[np.float64]) -> Taps:
    taps: Taps = (weights / weights.sum()).astype(np.float32)
    return taps


def _reach(sigma: float) -> int:
    return math.ceil(TAILS * sigma)


def _places(reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    line = np.arange(-reach, reach + 1)
    return line[:, None], line[None, :]


def _chosen(table: dict[str, T], draw: float) -> T:
    return list(table.values())[int(draw * len(table))]


NO_DRAWS = np.zeros(2)
IDENTITY: Terms = ((np.ones(1, np.float32), np.ones(1, np.float32)),)

# blur shapes: (standard deviation in hr pixels, two random numbers in [0, 1)) -> kernel
BLURS: dict[str, Callable[[float, NDArray[np.float64]], Terms]] = {
    "gaussian": _gaussian,
    "stretched": _stretched,
    "box": _box,
    "disk": _disk,
}

# downsampling kernels: scale -> taps around the centre of the pixels that become one
KERNELS: dict[str, Callable[[int], Taps]] = {
    "bicubic": partial(_sampled, cubic, 2),
    "area": _area,
    "lanczos": partial(_sampled, lambda t: np.sinc(t) * np.sinc(t / 3), 3),
}

# one for training, of all strengths, and three of fixed strength for evaluation
SENSORS: dict[str, Sensor] = {
    "sensor": Sensor(
        blur=Draw(0.8, 0.0, 1.6),
        noise=Draw(0.7, 0.0, 8.0),
        halos=Draw(0.25, 0.0, 1.0),
        quality=Draw(0.7, 30, 95),
        clean=0.25,
    ),
    "mild": Sensor(Draw(1, 0.2, 0.5), Draw(1, 1, 2), Draw(0.25, 0.2, 0.5), Draw(1, 80, 95)),
    "middle": Sensor(Draw(1, 0.5, 0.9), Draw(1, 3, 5), Draw(0.25, 0.3, 0.7), Draw(1, 60, 80)),
    "strong": Sensor(Draw(1, 0.9, 1.4), Draw(1, 5, 8), Draw(0.25, 0.5, 1.0), Draw(1, 30, 60)),
}
