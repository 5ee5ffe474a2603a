"""The ways from hr to lr: the benchmarks' plain reduction, and what sensors and formats add to it.

A stage works on hr before the reduction (blur) or on lr after it (noise, JPEG). Its strength is
drawn for each image from a range, by a generator that the caller seeds, so that the same seed gives
the same lr. DEGRADATIONS is the table; `register_degradation` adds a kind of your own.
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
    """One kind of stage."""

    name: str
    unit: str  # of its strength
    lowest: float  # smallest strength that is allowed
    highest: float
    works_on: Literal["hr", "lr"]
    # (H, W, C) in [0, 1], strength, randomness -> the same
    apply: Callable[[Unit, float, np.random.Generator], Unit]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a chain: a degradation, and the range that its strength is drawn from, both ends
    included.
    """

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
                f"grow and lie in {kind.lowest:g} to {kind.highest:g}."
            )


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole way from hr to lr: stages on hr, MATLAB's bicubic reduction, rounding, stages on
    lr, each in order.
    """

    scale: int
    stages: tuple[Stage, ...] = ()

    def __call__(
        self, hr: NDArray[np.generic], generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """hr (s h, s w, C) uint8 -> lr (h, w, C) uint8. Without stages the plain reduction. Raises
        ShapeMismatch.
        """
        if (
            hr.ndim != 3
            or hr.dtype != np.uint8
            or hr.shape[0] % self.scale
            or hr.shape[1] % self.scale
        ):
            raise ShapeMismatch(
                f"An image {hr.shape} of {hr.dtype} cannot be degraded at x{self.scale}; give (H, "
                f"W, C) uint8 with H and W multiples of {self.scale}."
            )
        # In the order of the chain, whatever a stage works on: one added at its end changes no
        # strength before it.
        strengths = [generator.uniform(stage.low, stage.high) for stage in self.stages]
        hr_stages, lr_stages = (
            [
                (stage, strength)
                for stage, strength in zip(self.stages, strengths, strict=True)
                if works_on(stage, place)
            ]
            for place in ("hr", "lr")
        )
        reduced = imresize(
            _applied(hr_stages, hr.astype(np.float64) / 255, generator), 1 / self.scale
        )
        if not lr_stages:
            return to_uint8(reduced)
        return to_uint8(_applied(lr_stages, to_uint8(reduced) / 255.0, generator))


def generator_for(seed: int, name: str) -> np.random.Generator:
    """The randomness of one image, from the seed and its name: neither order nor the number of
    workers counts.
    """
    return np.random.default_rng([seed, *name.encode()])


def works_on(stage: Stage, place: str) -> bool:
    """Whether the stage is one for hr, or for lr."""
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
    """A Gaussian, its tails cut at four sigma, edges mirrored with the edge pixel repeated."""
    reach = int(np.ceil(4 * sigma))
    if reach == 0:
        return image
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        margins = [
            (reach, reach) if dimension == axis else (0, 0) for dimension in range(image.ndim)
        ]
        padded = np.pad(image, margins, mode="symmetric")
        length = image.shape[axis]
        blurred = np.zeros_like(image)
        for tap, weight in enumerate(weights):
            blurred += weight * padded.take(range(tap, tap + length), axis)
        image = blurred
    return image


def _noise(image: Unit, deviation: float, generator: np.random.Generator) -> Unit:
    """Normal noise, drawn for each band of each pixel."""
    return image + generator.normal(0.0, deviation / 255, image.shape)


def _jpeg(image: Unit, quality: float, generator: np.random.Generator) -> Unit:
    return jpeg(to_uint8(image), round(quality)) / 255.0


def jpeg(
    levels: NDArray[np.uint8], quality: int, *, colours_halved: bool | None = None
) -> NDArray[np.uint8]:
    """(H, W, C) compressed as JPEG and decompressed; one or three bands. Raises ShapeMismatch.

    quality: 1 to 100.  colours_halved: whether colours are stored at half the resolution; default
    as Pillow has it.
    """
    if levels.shape[2] not in (1, 3):
        raise ShapeMismatch(f"JPEG holds one or three bands, and this image has {levels.shape[2]}.")
    stored: dict[str, str] = {}
    if colours_halved is not None and levels.shape[2] == 3:
        stored["subsampling"] = "4:2:0" if colours_halved else "4:4:4"
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
    """Add a kind of stage of your own, so that `data.degradations` of a recipe can name it. Raises
    UsageError.
    """
    if not kind.name or kind.name != "".join(kind.name.split()):
        raise UsageError(f"A degradation is named {kind.name!r:.60}; give a name without spaces.")
    if kind.name in DEGRADATIONS:
        raise UsageError(f"There is a degradation {kind.name} already; take another name.")
    if kind.works_on not in ("hr", "lr") or not kind.lowest <= kind.highest:
        raise UsageError(
            f"The degradation {kind.name} works on {kind.works_on!r:.40}, from {kind.lowest:g} to "
            f"{kind.highest:g}; it must work on 'hr' or 'lr', and its range must grow."
        )
    DEGRADATIONS[kind.name] = kind
    return kind
