"""Radiometry: what a scene's numbers are in [0, 1], and back, by one reversible linear map for the whole scene.

Eight-bit scenes map their type's range; others the range that holds nearly all of their values, found in one pass by
`ValueHistogram`, or a range that is given. Values outside the range map outside [0, 1] and come back unharmed: results
are clipped to what the type can hold and to nothing else. A map is never made from one tile: its neighbours would not
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError

DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
ROBUST_PERCENT = (0.5, 99.5)  # of the valid values: a few clouds, glints or dead pixels must not set the contrast

MISTAKEN = 4.5 * 2.0**-23  # of nodata: GDAL takes a float that is nearer to it for missing, float64 too
LARGEST = 2.0**125  # of unit: four of them still add up in float32
_KEY_BITS = 20  # sign, exponent and 11 bits of mantissa: bins 1/2048 of their value wide


@dataclass(frozen=True, slots=True)
class Radiometry:
    """The linear map of each band: low is 0 in unit, high is 1."""

    dtype: str  # numpy name, of source and result
    low: tuple[float, ...]  # one a band, in the source's numbers
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"Pixels of type {self.dtype} cannot be enlarged; these can: {', '.join(DTYPES)}.")
        for low, high in zip(self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise UsageError(
                    f"A range from {low:g} to {high:g} holds no values; give two numbers, the lower first."
                )

    @classmethod
    def of_type(cls, dtype: str, bands: int) -> Radiometry:
        """The whole range of an integer type; [0, 1] for floats."""
        low, high = type_range(dtype) if np.dtype(dtype).kind in "iu" else (0.0, 1.0)
        return cls(dtype, (low,) * bands, (high,) * bands)

    def of_bands(self, bands: Sequence[int]) -> Radiometry:
        """The map of some of the bands, counted from 0."""
        low, high = (tuple(ends[band] for band in bands) for ends in (self.low, self.high))
        return Radiometry(self.dtype, low, high)

    def to_unit(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """raw: (bands, h, w) in the source's type -> unit, same shape, at most LARGEST in size; NaN stays NaN."""
        low, width = self._columns()
        unit = raw.astype(np.float64)  # what follows is done in place, since a tile has megabytes of them
        unit -= low
        with np.errstate(over="ignore"):
            unit /= width
        np.clip(unit, -LARGEST, LARGEST, out=unit)
        return unit.astype(np.float32)

    def from_unit(self, unit: NDArray[np.floating], *, nodata: float | None = None) -> NDArray[np.generic]:
        """unit: (bands, h, w) -> the source's type: rounded to nearest for integers, clipped to the type's range.

        nodata: a number that no result may be taken for, since all results are valid; such a one moves to the nearest
        of the type's numbers that is not, on the side that the unrounded value lies.
        """
        low, width = self._columns()
        numbers = unit * width  # float64; what follows is done in place, since a tile has 25 MB of them
        numbers += low
        np.clip(numbers, *type_range(self.dtype), out=numbers)
        if np.dtype(self.dtype).kind in "iu":
            np.rint(numbers, out=numbers)
        result: NDArray[np.generic] = numbers.astype(self.dtype)
        if nodata is not None and not np.isnan(nodata):
            taken = _mistaken(result, float(nodata))  # a NumPy number would wrap around beside its type's ends
            if taken.any():
                result[taken] = _beside(float(nodata), self.dtype, (unit * width + low)[taken])
        return result

    def _columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low = np.array(self.low, np.float64)[:, None, None]
        return low, np.array(self.high, np.float64)[:, None, None] - low


def type_range(dtype: str) -> tuple[float, float]:
    """The smallest and the largest finite number of a type."""
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
    return float(limits.min), float(limits.max)


def _mistaken(result: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    """Where numbers are nodata to GDAL: equal to it, as the type holds it, and floats also very near."""
    if result.dtype.kind != "f" or not np.isfinite(nodata):
        return np.asarray(result == np.asarray(nodata))
    with np.errstate(over="ignore"):
        here = result.dtype.type(nodata)
        return np.asarray(np.abs(result - here) <= MISTAKEN * np.abs(here))


def _beside(nodata: float, dtype: str, exact: NDArray[np.float64]) -> NDArray[np.generic]:
    """For results taken for nodata: the next number that is not, upwards where the exact value is not below nodata."""
    smallest, largest = type_range(dtype)
    if np.dtype(dtype).kind in "iu":
        step = 1.0
    else:
        step = max(5 * 2.0**-23 * abs(nodata), float(np.finfo(dtype).smallest_subnormal))
    upwards = (exact >= nodata) & (nodata + step <= largest) | (nodata - step < smallest)
    return np.where(upwards, nodata + step, nodata - step).astype(dtype)


class ValueHistogram:
    """How often each value occurs in a stream of any type and length: 8 MB, one pass, independent of order and cuts.

    The bins are the leading bits of float32 numbers, which sort as the numbers do; so nothing about the values has to
    be known beforehand, and a percentile is right to 1/2048 of its own size.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(1 << _KEY_BITS, np.int64)

    def add(self, values: NDArray[np.generic]) -> None:
        """Count the finite ones of these values."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
        if finite.size == 0:
            return
        bits = np.clip(finite, *type_range("float32")).astype(np.float32).view(np.uint32)
        negative = bits >> 31 == 1
        keys = np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(32 - _KEY_BITS)
        self.counts += np.bincount(keys, minlength=self.counts.size)

    def range(self, percent: tuple[float, float] = ROBUST_PERCENT) -> tuple[float, float] | None:
        """The values at two percentages, widened where they coincide; None where nothing was counted."""
        reached = np.cumsum(self.counts)
        if reached[-1] == 0:
            return None
        first, last = (int(np.searchsorted(reached, max(1.0, reached[-1] * p / 100))) for p in percent)
        low, high = _value_of_key(first), _value_of_key(last)
        # A scene of one value has no contrast to keep; any width will do that does not vanish beside the value.
        return (low, high) if low < high else (low, low + max(1.0, abs(low) / 1024))


def _value_of_key(key: int) -> float:
    """The smallest float32 of a bin, taken towards zero for negative ones."""
    bits = key << (32 - _KEY_BITS)
    bits = bits & 0x7FFFFFFF if bits >> 31 else ~bits & 0xFFFFFFFF & ~((1 << (32 - _KEY_BITS)) - 1)
    return float(np.array(bits, np.uint32).view(np.float32))
