"""Radiometry: what a scene's numbers are in [0, 1], and back, by one reversible linear map for the
whole scene.

Eight-bit scenes map their type's range; others the range that holds nearly all of their values,
found in one pass (histogram.py), or a range that is given. Values outside the range map outside [0,
1] and come back unharmed: results are clipped to what the type can hold and to nothing else. A map
is never made from one tile: its neighbours would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Unit; beyond it are dead pixels and undeclared nodata, to which nothing around is made to fit.
# What is measured comes to 33 in the reference rasters: a tail of bright pixels, which stays
# consistent.
SPIKE = (-40.0, 41.0)
# of nodata: GDAL takes a float that is nearer to it for missing, float64 too
MISTAKEN = 4.5 * 2.0**-23
LARGEST = 2.0**125  # of unit: four of them still add up in float32


@dataclass(frozen=True, slots=True)
class Radiometry:
    """The linear map of each band: low is 0 in unit, high is 1."""

    dtype: str  # numpy name, of source and result
    low: tuple[float, ...]  # one a band, in the source's numbers
    high: tuple[float, ...]
    largest: float | None = None  # that a result may be, where a file has fewer bits than its type

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(
                f"Pixels of type {self.dtype} cannot be enlarged; these can: {', '.join(DTYPES)}."
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise UsageError(
                    f"A range from {low:g} to {high:g} holds no values; give two numbers, the "
                    "lower first."
                )

    @classmethod
    def of_type(cls, dtype: str, bands: int, largest: float | None = None) -> Radiometry:
        """The whole range of an integer type, up to largest where that is given; [0, 1] for
        floats.
        """
        low, high = type_range(dtype) if np.dtype(dtype).kind in "iu" else (0.0, 1.0)
        return cls(dtype, (low,) * bands, (high if largest is None else largest,) * bands, largest)

    def of_bands(self, bands: Sequence[int]) -> Radiometry:
        """The map of some of the bands, counted from 0."""
        low, high = (tuple(ends[band] for band in bands) for ends in (self.low, self.high))
        return replace(self, low=low, high=high)

    def to_unit(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """raw: (bands, h, w) in the source's type -> unit, same shape, at most LARGEST in size; NaN
        stays NaN.
        """
        low, width = self._columns()
        # what follows is done in place, since a tile has megabytes of them
        unit = raw.astype(np.float64)
        unit -= low
        with np.errstate(over="ignore"):
            unit /= width
        np.clip(unit, -LARGEST, LARGEST, out=unit)
        return unit.astype(np.float32)

    def from_unit(
        self, unit: NDArray[np.floating], *, nodata: Sequence[float | None] = ()
    ) -> NDArray[np.generic]:
        """unit: (bands, h, w) -> the source's type: rounded to nearest for integers, clipped to
        what it can hold.

        nodata: of each band, a number that no result may be taken for, since all results are valid;
        such a one moves to the nearest of the type's numbers that is not, on the side that the
        unrounded value lies.
        """
        low, width = self._columns()
        # float64; what follows is done in place, since a tile has 25 MB of them
        numbers = unit * width
        numbers += low
        np.clip(numbers, *self._limits(), out=numbers)
        if np.dtype(self.dtype).kind in "iu":
            np.rint(numbers, out=numbers)
        result: NDArray[np.generic] = numbers.astype(self.dtype)
        for band, number in enumerate(nodata):
            if number is None or np.isnan(number):
                continue
            # a NumPy number would wrap around beside its type's ends
            taken = mistaken(result[band], float(number))
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


def type_range(dtype: str) -> tuple[float, float]:
    """The smallest and the largest finite number of a type."""
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
    return float(limits.min), float(limits.max)


def mistaken(result: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    """Where numbers are nodata to GDAL: equal to it, as the type holds it, NaN too, and floats also
    very near.
    """
    if np.isnan(nodata):
        return np.asarray(np.isnan(result))
    if result.dtype.kind != "f":
        return np.asarray(result == np.asarray(nodata))
    with np.errstate(over="ignore"):
        here = result.dtype.type(nodata)
        if not np.isfinite(here):  # a double that float32 has not, among others
            return np.asarray(result == here)
        return np.asarray(np.abs(result - here) <= MISTAKEN * np.abs(here))


def _beside(
    nodata: float, dtype: str, limits: tuple[float, float], exact: NDArray[np.float64]
) -> NDArray[np.generic]:
    """For results taken for nodata: the next number that is not, upwards where the exact value is
    not below nodata.
    """
    smallest, largest = limits
    if np.dtype(dtype).kind in "iu":
        step = 1.0
    else:
        step = max(5 * 2.0**-23 * abs(nodata), float(np.finfo(dtype).smallest_subnormal))
    upwards = (exact >= nodata) & (nodata + step <= largest) | (nodata - step < smallest)
    return np.where(upwards, nodata + step, nodata - step).astype(dtype)
