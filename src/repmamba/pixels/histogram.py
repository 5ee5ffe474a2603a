"""ValueHistogram: the distribution of a scene's values, its robust range, and undeclared nodata.

A fill is a single number in many pixels, far from all others, as undeclared nodata is. The numbers
do not show whether these pixels are missing, so a fill is only reported, and left out of the range
if it would widen it much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UndeclaredNodata, warn
from repmamba.pixels.radiometry import OUTLIER, type_range

# of the valid values, so that a few clouds, glints or dead pixels do not set the contrast
ROBUST_PERCENT = (0.5, 99.5)
FEW = 3  # values that do not affect the range, wherever they are
# in a range this many times wider, a scene's contrast would be as small as a network's error
WIDEST = 100.0
_KEY_BITS = 20  # sign, exponent and 11 bits of mantissa: bins 1/2048 of their value wide
_LARGEST = 2.0**1000  # values are clipped to it, so that their differences are finite
FILL_SHARE = 0.001  # smallest share of a fill
MOST_FILLS = 3  # largest number of fills below all other values, and above them
MANY = 5  # fewest other values; with fewer, fills may be levels of a scale
WIDENING = 1.0  # distance in widths of the others' range from which a fill is left out of it
APART = 0.5  # the same, from which a number is a fill
ZERO_APART, ZERO_STEPS = 0.03, 3  # the same for an integer 0, and the fewest integers between
# largest share, of a fill's count, of other numbers near it: pixels resampled at its edge
CROWD = 0.1


@dataclass(frozen=True, slots=True)
class Fill:
    """A number that many pixels have, and the range of the others."""

    number: float
    share: float  # of all values
    low: float  # the range of nearly all others
    high: float

    @property
    def distance(self) -> float:
        """Distance from the range of the others."""
        return max(self.low - self.number, self.number - self.high)

    @property
    def widens(self) -> bool:
        """Whether including it would leave the others only a small part of the range."""
        return self.distance > WIDENING * (self.high - self.low)

    def beyond(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """It, and values as far on its side: pixels resampled at its edge are a mean of both."""
        beyond = self.low - values if self.number < self.low else values - self.high
        return beyond > WIDENING * (self.high - self.low)

    def describe(self, dtype: str) -> str:
        """The number in its type, its share, and its distance from the others."""
        side = "below" if self.number < self.low else "above"
        return (
            f"{np.dtype(dtype).type(self.number)!s} in {100 * self.share:.3g} % of it, "
            f"{self.distance:.4g} {side} all others ({self.low:.4g} to {self.high:.4g})"
        )


def describe_fills(histograms: Iterable[ValueHistogram], dtype: str) -> str:
    """All fills in one line, each once; "" if there are none."""
    fills = [fill for each in histograms for fill in each.fills(zero=np.dtype(dtype).kind in "iu")]
    largest = {fill.number: fill for fill in sorted(fills, key=lambda fill: fill.share)}
    return "; ".join(fill.describe(dtype) for fill in largest.values())


def warn_of_fills(name: str, described: str) -> None:
    """Warn of the described fills, if any, in what has this name."""
    if described:
        warn(
            f"{name} may have undeclared nodata: {described}. It is enlarged as data; if these "
            "pixels are missing, use nodata=NUMBER; if not, nodata='none'.",
            UndeclaredNodata,
        )


class ValueHistogram:
    """Counts of values of any type and number: 16 MB, one pass, independent of order and tiling.

    The bins are the leading bits of float32 numbers, which sort as the numbers do. So nothing needs
    to be known about the values, and a percentile is exact to 1/2048 of its value. Types that
    float32 cannot store may have values beyond it, or all values in one bin: for these, each bin
    also keeps its smallest and its largest value (16 MB more).
    """

    def __init__(self) -> None:
        self.counts = np.zeros(1 << _KEY_BITS, np.int64)
        self._numbers = np.zeros(1 << _KEY_BITS)  # one number per bin, to report a fill
        # (2, bins): the smallest and the largest value of each
        self._ends: NDArray[np.float64] | None = None

    def add(self, values: NDArray[np.generic]) -> None:
        """Count the finite values."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
        if finite.size == 0:
            return
        bits = np.clip(finite, *type_range("float32")).astype(np.float32).view(np.uint32)
        negative = bits >> 31 == 1
        keys = np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(32 - _KEY_BITS)
        self.counts += np.bincount(keys, minlength=self.counts.size)
        self._numbers[keys] = finite
        if not np.can_cast(values.dtype, np.float32):
            least, most = self._ends = _no_ends() if self._ends is None else self._ends
            exact = np.clip(finite.astype(np.float64), -_LARGEST, _LARGEST)
            np.minimum.at(least, keys, exact)
            np.maximum.at(most, keys, exact)

    def merge(self, other: ValueHistogram, times: int = 1) -> None:
        """Add the counts of another histogram, multiplied by times."""
        self.counts += times * other.counts
        np.copyto(self._numbers, other._numbers, where=other.counts > 0)
        if other._ends is not None:
            least, most = self._ends = _no_ends() if self._ends is None else self._ends
            np.minimum(least, other._ends[0], out=least)
            np.maximum(most, other._ends[1], out=most)

    def is_plain(self) -> bool:
        """Whether the range is just the percentiles, fills aside: a sample would give it too."""
        bins = self._without_fills()
        return bins.counts.size > 0 and self.range() == _percentiles(bins, ROBUST_PERCENT)

    def range(self, percent: tuple[float, float] = ROBUST_PERCENT) -> tuple[float, float] | None:
        """The values at two percentiles; None if nothing was counted.

        Fills that would widen it much are left out. If nearly all values are equal, it is the range
        of the others. If a tail of values would be outliers, it is widened to include them. FEW
        values, or a single number that more of them have, do not count: those are outliers and
        undeclared nodata.
        """
        bins = self._without_fills()
        values, counts = bins.values, bins.counts
        if counts.size == 0:
            return None
        low, high = _percentiles(bins, percent)
        if low == high:
            low, high = _of_sparse(values, counts, low, (percent[1] - percent[0]) / 100)
        return _with_tail(values, counts, low, high)

    def fills(self, *, zero: bool = False) -> list[Fill]:
        """Numbers that look like undeclared nodata, the most frequent first.

        zero: whether 0 may be one even if it is near the others, as in the collar of an integer
        swath.
        """
        return sorted(self._fills(self._bins(), zero=zero), key=lambda fill: -fill.share)

    def _fills(self, bins: _Bins, *, zero: bool = False) -> list[Fill]:
        values, counts = bins.values, bins.counts
        numbers = self._numbers[np.flatnonzero(self.counts)]
        total = counts.sum()
        heavy = np.flatnonzero((counts > FEW) & (counts >= FILL_SHARE * total))
        # As many as possible, as one of two fills would hide that the other is far from the rest.
        numbers_of = product(range(MOST_FILLS + 1), repeat=2)
        for below, above in sorted(numbers_of, key=sum, reverse=True):
            if not 0 < below + above <= len(heavy):
                continue
            suspects = [*heavy[:below], *heavy[len(heavy) - above :]]
            others = counts.copy()
            others[suspects] = 0
            if np.count_nonzero(others) < MANY:
                continue
            low, high = _percentiles(replace(bins, counts=others), ROBUST_PERCENT)
            if low == high:
                low, high = values[others > 0][[0, -1]]
            found = [
                Fill(float(numbers[place]), float(counts[place] / total), float(low), float(high))
                for place in suspects
            ]
            if all(_stands_apart(fill, values, others, total, zero=zero) for fill in found):
                return found
        return []

    def _without_fills(self) -> _Bins:
        """The bins, without fills that widen the range, and their edges."""
        bins = self._bins()
        for fill in self._fills(bins):
            if fill.widens:
                bins.counts[fill.beyond(bins.values)] = 0
        return bins

    def outliers(self, low: float, high: float) -> int:
        """The number of values that are outliers in a scene of this range."""
        bins = self._bins()
        return int(bins.counts[_widths_beyond(bins.values, low, high) > -OUTLIER[0]].sum())

    def _bins(self) -> _Bins:
        """The bins that hold values."""
        keys = np.flatnonzero(self.counts)
        bits = (keys << (32 - _KEY_BITS)).astype(np.uint32)
        negative = keys >> (_KEY_BITS - 1) == 0
        whole_bins = ~np.uint32((1 << (32 - _KEY_BITS)) - 1)
        bits = np.where(negative, ~bits & whole_bins, bits & np.uint32(0x7FFFFFFF))
        counts = self.counts[keys]
        if self._ends is None:
            values = bits.view(np.float32).astype(np.float64)
            return _Bins(values, values, values, counts)
        least, most = self._ends[:, keys]
        return _Bins(np.where(negative, most, least), least, most, counts)


@dataclass(frozen=True, slots=True)
class _Bins:
    """Bins in ascending order."""

    values: NDArray[np.float64]  # the value nearest to 0
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    counts: NDArray[np.int64]


def _no_ends() -> NDArray[np.float64]:
    return np.array([[np.inf], [-np.inf]]).repeat(1 << _KEY_BITS, axis=1)


def _stands_apart(
    fill: Fill, values: NDArray[np.float64], others: NDArray[np.int64], total: float, *, zero: bool
) -> bool:
    """Whether a number is far from all others, except a few that were resampled at its edge."""
    width = fill.high - fill.low
    far = max(ZERO_APART * width, ZERO_STEPS) if zero and fill.number == 0 else APART * width
    crowd = others[np.abs(values - fill.number) < far].sum()
    return fill.distance > far and bool(crowd <= CROWD * fill.share * total)


def _percentiles(bins: _Bins, percent: tuple[float, float]) -> tuple[float, float]:
    """The values at two percentiles, at the outer ends of their bins."""
    low, high = (max(1.0, bins.counts.sum() * part / 100) for part in percent)
    return _at_rank(bins.least, bins.counts, low), _at_rank(bins.most, bins.counts, high)


def _at_rank(values: NDArray[np.float64], counts: NDArray[np.int64], rank: float) -> float:
    """The value at a rank (from 1), from ascending values and their counts."""
    return float(values[np.searchsorted(np.cumsum(counts), rank)])


def _counts_of(counts: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counts of the chosen values, without the commonest if more than FEW have it; else 0."""
    counts = np.where(chosen, counts, 0)
    commonest = counts.argmax()
    if counts[commonest] > FEW:
        counts[commonest] = 0  # undeclared nodata, or similar
    return counts


def _of_sparse(
    values: NDArray[np.float64], counts: NDArray[np.int64], usual: float, share: float
) -> tuple[float, float]:
    """The range of a scene with nearly all values equal: that value, and a share of the others."""
    distances = np.abs(values - usual)
    others = _counts_of(counts, distances > 0)
    total = int(others.sum())
    if total > FEW:
        order = np.argsort(distances)
        reach = _at_rank(distances[order], others[order], min(total - FEW, total * share))
        near = values[distances <= reach]
        return float(near[0]), float(near[-1])
    # There is no contrast to keep: any width that is significant beside the value and shows small
    # differences.
    nearest = distances[distances > 0].min(initial=np.inf if usual == 0 or counts.size > 1 else 0)
    return usual, usual + max(min(1.0, float(nearest)), abs(usual) / 1024)


def _widths_beyond(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Distance of values outside a range, in units of its width; negative inside."""
    with np.errstate(over="ignore"):
        return np.asarray(np.maximum(low - values, values - high) / (high - low))


def _with_tail(
    values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float
) -> tuple[float, float]:
    """The range, widened if more than FEW values would be outliers; at most WIDEST times."""
    beyond = _widths_beyond(values, low, high)
    tail = _counts_of(counts, (beyond > -OUTLIER[0]) & (beyond < -OUTLIER[0] * WIDEST))
    total = int(tail.sum())
    if total <= FEW:
        return low, high
    order = np.argsort(beyond)
    # FEW are left out if they are far from the rest
    reach = 2 * _at_rank(beyond[order], tail[order], total - FEW)
    reach = float(beyond[(tail > 0) & (beyond <= reach)].max())
    wider = reach / -OUTLIER[0] * (1 + 2.0**-10)  # by how much a value may exceed its bin
    return low, low + (high - low) * wider
