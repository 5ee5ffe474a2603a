"""Which packaged weights fit a scene if the user names none: those for clean or for real pictures.

Noise and JPEG blocks are measured on a few windows of the whole scene, whichever part is upscaled,
so that all windows of a scene use the same weights. benchmarks/does_it_choose_well.py shows how
often the thresholds are right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.inference.catalogue import packaged_weights
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.histogram import ValueHistogram
from repmamba.pixels.nodata import usable
from repmamba.pixels.quality import BLOCK, SMALLEST, blockiness, noise_level
from repmamba.pixels.radiometry import Radiometry
from repmamba.scene.source.colours import COLOURS
from repmamba.scene.source.raster import Raster
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

# edge of a measured window in pixels, and number of windows along each side of a scene
EDGE, PLACES = 128, 5

KNOWN = 0.25  # share of a window's pixels that must be valid

# Thresholds from which weights for real pictures are better: noise in levels of 255, blockiness.
# Clean scenes of fine texture measure a noise of up to 1.9; at 2 both weights are equally good.
NOISY, BLOCKY = 3.2, 0.24


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """Weights for one scene, and the measurements they were chosen by."""

    scene: str
    weights: str
    noise: float  # standard deviation, levels of 255
    blockiness: float  # share of coefficients that JPEG set to zero

    @property
    def why(self) -> str:
        """The measurements in words."""
        faults = []
        if self.noise >= NOISY:
            faults.append(f"noisy (sigma {self.noise:.1f} of 255)")
        if self.blockiness >= BLOCKY:
            faults.append(f"compressed by JPEG (blockiness {self.blockiness:.2f})")
        clean = f"clean (sigma {self.noise:.1f} of 255, blockiness {self.blockiness:.2f})"
        return " and ".join(faults) or clean

    def line(self) -> str:
        """One line for the log."""
        return f"{self.scene}: the scene is {self.why}: {self.weights}."

    def as_json(self) -> dict[str, Any]:
        """The entry in receipts."""
        return {"weights": self.weights, "noise": self.noise, "blockiness": self.blockiness}


class Chooser:
    """Loads the weights that fit each scene, each once. Used if no weights are named."""

    def __init__(self, usual: Upscaler, other: Callable[[str], Upscaler]) -> None:
        """usual: for clean scenes. other: loads packaged weights by name with the same options."""
        self.usual = usual
        self._other = other
        self._loaded = {usual.name: usual}

    @classmethod
    def loading(cls, *, scale: int | None = None, **options: Any) -> Chooser:
        """A chooser among the packaged weights of a scale, with the options of `load`."""
        usual = load(None, scale=scale, **options)
        return cls(usual, lambda name: load(name, scale=usual.scale, **options))

    @property
    def scale(self) -> int:
        """The scale: 2, 3 or 4."""
        return self.usual.scale

    def __call__(
        self, raster: Raster, *, confidence: bool = False
    ) -> tuple[Upscaler, WeightsChoice | None]:
        """The Upscaler for a scene, and why; None if there was nothing to choose.

        confidence: expected errors are wanted, which not all weights provide.
        """
        choice = choose(raster, self.usual.name)
        if choice is None:
            return self.usual, None
        if choice.weights not in self._loaded:
            self._loaded[choice.weights] = self._other(choice.weights)
        chosen = self._loaded[choice.weights]
        if confidence and chosen.calibration is None:
            logger.info(
                "%s: %s has no expected errors for confidence=; using %s.",
                *(choice.scene, chosen.name, self.usual.name),
            )
            return self.usual, None
        logger.info("%s", choice.line())
        return chosen, choice


def choose(raster: Raster, usual: str) -> WeightsChoice | None:
    """The weights that fit a scene: the usual ones, or those for real pictures, such as x4-real.

    None if there are no such weights, or too little of the scene can be measured.
    """
    real = f"{usual}-real"
    if real not in {entry.name for entry in packaged_weights()}:
        return None
    windows = measured_windows(raster)
    if not windows:
        return None
    # Rounded, so that the last digits of another machine do not change the job.
    noise, blocks = round(noise_level(windows), 1), round(blockiness(windows), 2)
    return WeightsChoice(
        raster.facts.name, real if noise >= NOISY or blocks >= BLOCKY else usual, noise, blocks
    )


def measured_windows(raster: Raster) -> list[NDArray[np.float32]]:
    """A few evenly spread windows (bands, h, w) in unit, NaN where a pixel is missing.

    The bands are red, green and blue, or else the first three. Windows begin at multiples of 8
    pixels.
    """
    facts = raster.facts
    named = [facts.colorinterp.index(name) for name in COLOURS if name in facts.colorinterp]
    places = named if len(named) == 3 else list(facts.colours[:3])
    found: list[tuple[NDArray[np.generic], NDArray[np.bool_]]] = []
    for window in _windows(raster.grid.height, raster.grid.width):
        raw, valid = raster.read(window)
        known = np.asarray(usable(raw, valid, facts.band_nodata)[places].all(0))
        # A constant window is probably undeclared nodata.
        if known.mean() >= KNOWN and np.ptp(raw[places][:, known]) > 0:
            found.append((raw[places], known))
    if not found:
        return []
    radiometry = _radiometry([raw[:, known] for raw, known in found], facts.dtype, facts.largest)
    return [np.where(known, radiometry.to_unit(raw), np.float32(np.nan)) for raw, known in found]


def _radiometry(
    windows: list[NDArray[np.generic]], dtype: str, largest: float | None
) -> Radiometry:
    """One range for all bands: of the type for 8 bit, else of nearly all values (bands, ...)."""
    usual = Radiometry.of_type(dtype, len(windows[0]), largest)
    if dtype in ("uint8", "int8"):
        return usual
    histogram = ValueHistogram()
    for window in windows:
        histogram.add(window)
    found = histogram.range()
    if found is None:
        return usual
    return replace(usual, low=(found[0],) * len(windows[0]), high=(found[1],) * len(windows[0]))


def _windows(height: int, width: int) -> Iterator[Window]:
    """A grid of windows over the scene, row by row, so that every format reads them fast."""
    if min(height, width) < SMALLEST:
        return
    for row in _starts(height):
        for col in _starts(width):
            yield Window(row, col, min(EDGE, height - row), min(EDGE, width - col))


def _starts(length: int) -> list[int]:
    """Where windows begin along a side: evenly spread multiples of 8."""
    last = max(length - EDGE, 0) // BLOCK
    return sorted({BLOCK * round(last * place / (PLACES - 1)) for place in range(PLACES)})
