"""Radiometry: a scene's values in [0, 1] and back, by one reversible linear map per scene.

8-bit scenes map the range of their type, others the range of nearly all their values, found in one
pass (histogram.py), or a given range. Values outside the range map outside [0, 1] and are restored:
results are clipped only to what the type can hold. A map is never made from one tile, as its
neighbours would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# In unit. Beyond it are dead pixels and undeclared nodata, which their surroundings need not fit.
# Real data reaches 33 in the reference rasters, in a tail of bright pixels that stays consistent.
OUTLIER = (-40.0, 41.0)
# relative to nodata: GDAL takes floats, float64 too, that are nearer to it for missing
NODATA_TOLERANCE = 4.5 * 2.0**-23
LARGEST = 2.0**125  # of unit: the sum of four is still finite in float32


@dataclass(frozen=True, slots=True)
class Radiometry:
    """The linear map of each band: low becomes 0 in unit, high 1. Raises UsageError."""

    dtype: str  # NumPy name, of source and result
    low: tuple[float, ...]  # one per band, in the source's values
    high: tuple[float, ...]
    largest: float | None = None  # value of a result, if a file has fewer bits than its type

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        for low, high in zip(self.low, self.high, strict=True):
            check_range(low, high)

    @classmethod
    def of_type(cls, dtype: str, bands: int, largest: float | None = None) -> Radiometry:
        """The range of an integer type, up to largest if given; [0, 1] for floats."""
        low, high = type_range(dtype) if np.dtype(dtype).kind in "iu" else (0.0, 1.0)
        return cls(dtype, (low,) * bands, (high if largest is None else largest,) * bands, largest)

    def of_bands(self, bands: Sequence[int]) -> Radiometry:
        """The map of some bands, counted from 0."""
        low, high = (tuple(ends[band] for band in bands) for ends in (self.low, self.high))
        return replace(self, low=low, high=high)

    def to_unit(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """raw: (bands, h, w) in the source's type -> unit, clipped to +-LARGEST; NaN stays NaN."""
        low, width = self._columns()
        # in place, as a tile has megabytes
        unit = raw.astype(np.float64)
        unit -= low
        with np.errstate(over="ignore"):
            unit /= width
        np.clip(unit, -LARGEST, LARGEST, out=unit)
        return unit.astype(np.float32)

    def from_unit(
        self, unit: NDArray[np.floating], *, nodata: Sequence[float | None] = ()
    ) -> NDArray[np.generic]:
        """unit: (bands, h, w) -> the source's type, rounded if it is an integer type, clipped.

        nodata: of each band. All results are valid, so a result equal to nodata moves to the next
        number of the type, towards the unrounded value.
        """
        low, width = self._columns()
        # in place, as a tile has 25 MB in float64
        with np.errstate(over="ignore"):
            numbers = unit * width
            numbers += low
        np.clip(numbers, *self._limits(), out=numbers)
        if np.dtype(self.dtype).kind in "iu":
            np.rint(numbers, out=numbers)
        result: NDArray[np.generic] = numbers.astype(self.dtype)
        for band, number in enumerate(nodata):
            if number is None or np.isnan(number):
                continue
            # a NumPy scalar would wrap around near the ends of its type
            taken = is_nodata(result[band], float(number))
            if taken.any():
                exact = (unit * width + low)[band][taken]
                result[band][taken] = _beside(float(number), self.dtype, self._limits(), exact)
        return result

    def _limits(self) -> tuple[float, float]:
        smallest, largest = type_range(self.dtype)
        return smallest, largest if self.largest is None else self.largest

    def _columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low = np.array(self.low, np.float64)[:, None, None]
        return low, np.array(self.high, np.float64)[:, None, None] - low


def check_dtype(dtype: str) -> None:
    """Raise UsageError for a type that cannot be upscaled."""
    if dtype not in DTYPES:
        raise UsageError(
            f"Pixels of type {dtype} cannot be enlarged; these can: {', '.join(DTYPES)}."
        )


def check_range(low: float, high: float) -> None:
    """Raise UsageError for a range without values."""
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(
            f"A range from {low:g} to {high:g} holds no values; give two numbers, the lower first."
        )


def range_of(given: Any, words: Sequence[str]) -> Any:
    """(black, white) as floats, or one of the words, as users give a range. Raises UsageError."""
    if not isinstance(given, str):
        black, white = map(float, given)
        return black, white
    if given not in words:
        expected = " or ".join(map(repr, words))
        raise UsageError(f"value_range={given!r}: give two numbers (black, white) or {expected}.")
    return given


def type_range(dtype: str) -> tuple[float, float]:
    """The smallest and largest finite number of a type."""
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
    return float(limits.min), float(limits.max)


def is_nodata(result: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    """Where GDAL takes values for nodata: equal to it in their type, NaN, floats very near."""
    if np.isnan(nodata):
        return np.asarray(np.isnan(result))
    if result.dtype.kind != "f":
        return np.asarray(result == np.asarray(nodata))
    with np.errstate(over="ignore"):
        here = result.dtype.type(nodata)
        if not np.isfinite(here):  # such as a double beyond float32
            return np.asarray(result == here)
        return np.asarray(np.abs(result - here) <= NODATA_TOLERANCE * np.abs(here))


def _beside(
    nodata: float, dtype: str, limits: tuple[float, float], exact: NDArray[np.float64]
) -> NDArray[np.generic]:
    """The next number that is not nodata: upwards where the exact value is not below nodata."""
    smallest, largest = limits
    if np.dtype(dtype).kind in "iu":
        step = 1.0
    else:
        step = max(5 * 2.0**-23 * abs(nodata), float(np.finfo(dtype).smallest_subnormal))
    upwards = (exact >= nodata) & (nodata + step <= largest) | (nodata - step < smallest)
    return np.where(upwards, nodata + step, nodata - step).astype(dtype)
