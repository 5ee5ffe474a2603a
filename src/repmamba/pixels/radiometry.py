"""Radiometry: what a scene's numbers are in [0, 1], and back, by one reversible linear map for the whole scene.

Eight-bit scenes map their type's range; others the range that holds nearly all of their values, found in one pass by
`ValueHistogram`, or a range that is given. Values outside the range map outside [0, 1] and come back unharmed: results
are clipped to what the type can hold and to nothing else. A map is never made from one tile: its neighbours would not
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
ROBUST_PERCENT = (0.5, 99.5)  # of the valid values: a few clouds, glints or dead pixels must not set the contrast

# Unit; beyond it are dead pixels and undeclared nodata, to which nothing around is made to fit. What is measured comes
# to 33 in the reference rasters: a tail of bright pixels, which stays consistent.
SPIKE = (-40.0, 41.0)
FEW = 3  # values of a scene of which no range is made, wherever they lie
DROWNING = 100.0  # a range so many times wider than a scene's contrast would leave of it what a network errs by

MISTAKEN = 4.5 * 2.0**-23  # of nodata: GDAL takes a float that is nearer to it for missing, float64 too
LARGEST = 2.0**125  # of unit: four of them still add up in float32
_KEY_BITS = 20  # sign, exponent and 11 bits of mantissa: bins 1/2048 of their value wide


@dataclass(frozen=True, slots=True)
class Radiometry:
    """The linear map of each band: low is 0 in unit, high is 1."""

    dtype: str  # numpy name, of source and result
    low: tuple[float, ...]  # one a band, in the source's numbers
    high: tuple[float, ...]
    largest: float | None = None  # that a result may be, where a file has fewer bits than its type

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"Pixels of type {self.dtype} cannot be enlarged; these can: {', '.join(DTYPES)}.")
        for low, high in zip(self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise UsageError(
                    f"A range from {low:g} to {high:g} holds no values; give two numbers, the lower first."
                )

    @classmethod
    def of_type(cls, dtype: str, bands: int, largest: float | None = None) -> Radiometry:
        """The whole range of an integer type, up to largest where that is given; [0, 1] for floats."""
        low, high = type_range(dtype) if np.dtype(dtype).kind in "iu" else (0.0, 1.0)
        return cls(dtype, (low,) * bands, (high if largest is None else largest,) * bands, largest)

    def of_bands(self, bands: Sequence[int]) -> Radiometry:
        """The map of some of the bands, counted from 0."""
        low, high = (tuple(ends[band] for band in bands) for ends in (self.low, self.high))
        return replace(self, low=low, high=high)

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
        """unit: (bands, h, w) -> the source's type: rounded to nearest for integers, clipped to what it can hold.

        nodata: a number that no result may be taken for, since all results are valid; such a one moves to the nearest
        of the type's numbers that is not, on the side that the unrounded value lies.
        """
        low, width = self._columns()
        numbers = unit * width  # float64; what follows is done in place, since a tile has 25 MB of them
        numbers += low
        np.clip(numbers, *self._limits(), out=numbers)
        if np.dtype(self.dtype).kind in "iu":
            np.rint(numbers, out=numbers)
        result: NDArray[np.generic] = numbers.astype(self.dtype)
        if nodata is not None and not np.isnan(nodata):
            taken = mistaken(result, float(nodata))  # a NumPy number would wrap around beside its type's ends
            if taken.any():
                result[taken] = _beside(float(nodata), self.dtype, self._limits(), (unit * width + low)[taken])
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
    """Where numbers are nodata to GDAL: equal to it, as the type holds it, and floats also very near."""
    if result.dtype.kind != "f":
        return np.asarray(result == np.asarray(nodata))
    with np.errstate(over="ignore"):
        here = result.dtype.type(nodata)
        if not np.isfinite(here):  # a double that float32 has not, among others
            return np.asarray(result == here)
        return np.asarray(np.abs(result - here) <= MISTAKEN * np.abs(here))


def _beside(nodata: float, dtype: str, limits: tuple[float, float], exact: NDArray[np.float64]) -> NDArray[np.generic]:
    """For results taken for nodata: the next number that is not, upwards where the exact value is not below nodata."""
    smallest, largest = limits
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

    def merge(self, other: ValueHistogram, times: int = 1) -> None:
        """Count what another histogram has counted, so many times."""
        self.counts += times * other.counts

    def is_plain(self) -> bool:
        """Whether the percentages alone give the range, so that a sample of the values would give it too."""
        values, counts = self._values()
        if counts.size == 0:
            return False
        ranks = (max(1.0, counts.sum() * p / 100) for p in ROBUST_PERCENT)
        return self.range() == tuple(_at_rank(values, counts, rank) for rank in ranks)

    def range(self, percent: tuple[float, float] = ROBUST_PERCENT) -> tuple[float, float] | None:
        """The values at two percentages; None where nothing was counted.

        Where nearly all values are one, the range is that of the others. Where a tail of values would be spikes, it is
        widened until they are none. Neither looks at FEW values, nor at one number that more of them have: those are
        spikes, and undeclared nodata.
        """
        values, counts = self._values()
        if counts.size == 0:
            return None
        low, high = (_at_rank(values, counts, max(1.0, counts.sum() * p / 100)) for p in percent)
        if low == high:
            low, high = _of_sparse(values, counts, low, (percent[1] - percent[0]) / 100)
        return _with_tail(values, counts, low, high)

    def spikes(self, low: float, high: float) -> int:
        """How many values are spikes in a scene of this range."""
        values, counts = self._values()
        return int(counts[_widths_beyond(values, low, high) > -SPIKE[0]].sum())

    def _values(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values that occur, ascending, and how often: of each bin the one nearest to zero."""
        keys = np.flatnonzero(self.counts)
        bits = (keys << (32 - _KEY_BITS)).astype(np.uint32)
        negative = keys >> (_KEY_BITS - 1) == 0
        bits = np.where(negative, ~bits & ~np.uint32((1 << (32 - _KEY_BITS)) - 1), bits & np.uint32(0x7FFFFFFF))
        return bits.view(np.float32).astype(np.float64), self.counts[keys]


def _at_rank(values: NDArray[np.float64], counts: NDArray[np.int64], rank: float) -> float:
    """The value at a rank, from 1, among ascending values that occur so often."""
    return float(values[np.searchsorted(np.cumsum(counts), rank)])


def _telling(counts: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often the values chosen occur, without the commonest where more than FEW have it; 0 for all others."""
    counts = np.where(chosen, counts, 0)
    commonest = counts.argmax()
    if counts[commonest] > FEW:
        counts[commonest] = 0  # a nodata that nobody declared, or as good as one
    return counts


def _of_sparse(
    values: NDArray[np.float64], counts: NDArray[np.int64], usual: float, share: float
) -> tuple[float, float]:
    """The range of a scene nearly all of whose values are the usual one: it, and a share of the others."""
    distances = np.abs(values - usual)
    others = _telling(counts, distances > 0)
    total = int(others.sum())
    if total > FEW:
        order = np.argsort(distances)
        reach = _at_rank(distances[order], others[order], min(total - FEW, total * share))
        near = values[distances <= reach]
        return float(near[0]), float(near[-1])
    # There is no contrast to keep; a width will do that does not vanish beside the value, nor hide what little differs.
    nearest = distances[distances > 0].min(initial=np.inf if usual == 0 or counts.size > 1 else 0)
    return usual, usual + max(min(1.0, float(nearest)), abs(usual) / 1024)


def _widths_beyond(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """How far values lie outside a range, in units of its width; negative inside."""
    return np.maximum(low - values, values - high) / (high - low)


def _with_tail(values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """The range, widened where more than FEW values would be spikes; at most DROWNING times."""
    beyond = _widths_beyond(values, low, high)
    tail = _telling(counts, (beyond > -SPIKE[0]) & (beyond < -SPIKE[0] * DROWNING))
    total = int(tail.sum())
    if total <= FEW:
        return low, high
    order = np.argsort(beyond)
    reach = 2 * _at_rank(beyond[order], tail[order], total - FEW)  # FEW are left out where they are far from the rest
    reach = float(beyond[(tail > 0) & (beyond <= reach)].max())
    wider = reach / -SPIKE[0] * (1 + 2.0**-10)  # by what a value may exceed that of its bin
    return low, low + (high - low) * wider
