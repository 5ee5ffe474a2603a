"""Degradations from hr to lr: MATLAB's bicubic, and what sensors and formats add to it.

A stage works on hr before the downsampling (blur) or on lr after it (noise, JPEG). Its strength is
drawn per image from a range, by a seeded generator. DEGRADATIONS is the table;
`register_degradation` adds to it.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba.errors import ShapeMismatch, UsageError
from repmamba.pixels.resize import imresize, to_uint8

Unit = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Degradation:
    """A kind of stage."""

    name: str
    unit: str  # of its strength
    lowest: float  # smallest allowed strength
    highest: float
    works_on: Literal["hr", "lr"]
    # ((H, W, C) in [0, 1], strength, generator) -> the same shape
    apply: Callable[[Unit, float, np.random.Generator], Unit]


@dataclass(frozen=True, slots=True)
class Stage:
    """A degradation and the range of its strength, both ends included. Raises UsageError."""

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.name not in DEGRADATIONS:
            raise UsageError(
                f"There is no degradation {self.name}; choose among {', '.join(DEGRADATIONS)}."
            )
        kind = DEGRADATIONS[self.name]
        if not kind.lowest <= self.low <= self.high <= kind.highest:
            raise UsageError(
                f"The range of {self.name} is {self.low:g} to {self.high:g} {kind.unit}; it must "
                f"ascend and lie within {kind.lowest:g} to {kind.highest:g}."
            )


@dataclass(frozen=True, slots=True)
class Chain:
    """From hr to lr: stages on hr, MATLAB's bicubic, rounding, stages on lr, each in order."""

    scale: int
    stages: tuple[Stage, ...] = ()

    def __call__(
        self, hr: NDArray[np.generic], generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Degrade one image.

        hr: (s h, s w, C) uint8.  generator: Source of the strengths and of the noise.
        Returns lr, (h, w, C) uint8; without stages the plain bicubic. Raises ShapeMismatch: hr is
        of another type, or its sides are not multiples of the scale.
        """
        uneven = any(length % self.scale for length in hr.shape[:2])
        if hr.ndim != 3 or hr.dtype != np.uint8 or uneven:
            raise ShapeMismatch(
                f"An image {hr.shape} of {hr.dtype} cannot be degraded at x{self.scale}; give (H, "
                f"W, C) uint8 with H and W multiples of {self.scale}."
            )
        # Drawn in the order of the chain: a stage added at its end changes no strength before it.
        strengths = [generator.uniform(stage.low, stage.high) for stage in self.stages]
        drawn = list(zip(self.stages, strengths, strict=True))
        hr_stages, lr_stages = (
            [(stage, strength) for stage, strength in drawn if works_on(stage, place)]
            for place in ("hr", "lr")
        )
        degraded = _applied(hr_stages, hr.astype(np.float64) / 255, generator)
        reduced = imresize(degraded, 1 / self.scale)
        if not lr_stages:
            return to_uint8(reduced)
        return to_uint8(_applied(lr_stages, to_uint8(reduced) / 255.0, generator))


def generator_for(seed: int, name: str) -> np.random.Generator:
    """The random generator of one image, from seed and name: independent of order and workers."""
    return np.random.default_rng([seed, *name.encode()])


def works_on(stage: Stage, place: str) -> bool:
    """Whether the stage works on "hr" or on "lr"."""
    return DEGRADATIONS[stage.name].works_on == place


def _applied(
    stages: Sequence[tuple[Stage, float]], image: Unit, generator: np.random.Generator
) -> Unit:
    for stage, strength in stages:
        degraded = DEGRADATIONS[stage.name].apply(image, strength, generator)
        if np.shape(degraded) != image.shape:
            raise ShapeMismatch(
                f"The degradation {stage.name} gave {np.shape(degraded)} for {image.shape}; it "
                "must keep the shape."
            )
        image = degraded
    return image


def _blur(image: Unit, sigma: float, generator: np.random.Generator) -> Unit:
    """A Gaussian, cut at four sigma; edges are mirrored, with the edge pixel repeated."""
    reach = int(np.ceil(4 * sigma))
    if reach == 0:
        return image
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        margins = [(reach * (one == axis),) * 2 for one in range(image.ndim)]
        padded = np.pad(image, margins, mode="symmetric")
        length = image.shape[axis]
        blurred = np.zeros_like(image)
        for tap, weight in enumerate(weights):
            blurred += weight * padded.take(range(tap, tap + length), axis)
        image = blurred
    return image


def _noise(image: Unit, deviation: float, generator: np.random.Generator) -> Unit:
    """Normal noise, independent for each pixel and band."""
    return image + generator.normal(0.0, deviation / 255, image.shape)


def _jpeg(image: Unit, quality: float, generator: np.random.Generator) -> Unit:
    return jpeg(to_uint8(image), round(quality)) / 255.0


def jpeg(
    levels: NDArray[np.uint8], quality: int, *, subsample: bool | None = None
) -> NDArray[np.uint8]:
    """Compress an image as JPEG and decompress it.

    levels: (H, W, C) with one or three bands.  quality: 1 to 100.
    subsample: Whether colour is stored at half the resolution; None leaves it to Pillow.
    Raises ShapeMismatch: the image has another number of bands.
    """
    if levels.shape[2] not in (1, 3):
        raise ShapeMismatch(
            f"JPEG stores one or three bands, and this image has {levels.shape[2]}."
        )
    stored: dict[str, str] = {}
    if subsample is not None and levels.shape[2] == 3:
        stored["subsampling"] = "4:2:0" if subsample else "4:4:4"
    packed = io.BytesIO()
    picture = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    picture.save(packed, "JPEG", quality=quality, **stored)
    with Image.open(packed) as read:
        return np.asarray(read).reshape(levels.shape)


DEGRADATIONS: dict[str, Degradation] = {
    kind.name: kind
    for kind in (
        Degradation("blur", "hr pixels (sigma)", 0, 20, "hr", _blur),
        Degradation("noise", "levels of 255 (standard deviation)", 0, 128, "lr", _noise),
        Degradation("jpeg", "quality", 1, 100, "lr", _jpeg),
    )
}


def register_degradation(kind: Degradation) -> Degradation:
    """Add a kind of stage, which `data.degradations` of a recipe can name. Raises UsageError."""
    if not kind.name or kind.name != "".join(kind.name.split()):
        raise UsageError(f"A degradation is named {kind.name!r:.60}; give a name without spaces.")
    if kind.name in DEGRADATIONS:
        raise UsageError(f"A degradation {kind.name} already exists; take another name.")
    if kind.works_on not in ("hr", "lr") or not kind.lowest <= kind.highest:
        raise UsageError(
            f"The degradation {kind.name} works on {kind.works_on!r:.40}, from {kind.lowest:g} to "
            f"{kind.highest:g}; it must work on 'hr' or 'lr', and its range must ascend."
        )
    DEGRADATIONS[kind.name] = kind
    return kind
