"""ValueHistogram: how often each value of a scene occurs, the range of nearly all of them, and what
fills it.

A fill is one number in many pixels, apart from all others, as nodata is that no header declares.
Whether it means that pixels are missing, nobody can tell from the numbers: so it is named, and
where it would drag an end of the range far away from all others, it is left out of that; nothing
else is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UndeclaredNodata
from repmamba.pixels.radiometry import SPIKE, type_range

# of the valid values: a few clouds, glints or dead pixels must not set the contrast
ROBUST_PERCENT = (0.5, 99.5)
FEW = 3  # values of a scene of which no range is made, wherever they lie
# a range so many times wider than a scene's contrast would leave of it what a network errs by
DROWNING = 100.0
_KEY_BITS = 20  # sign, exponent and 11 bits of mantissa: bins 1/2048 of their value wide

FILLING = 0.001  # of all values, which a fill has at least
AT_AN_END = 3  # fills that are looked for below all others, and above them
MANY = 5  # different values beside fills, without which these may be steps of a few
DRAGGING = 1.0  # widths of the others' range, from which on a fill is left out of it
APART = 0.5  # the same, from which on a number is a fill
# the same, of an integer 0, and how many whole numbers lie between at least
ZERO_APART, ZERO_STEPS = 0.03, 3
# of a fill's pixels, which may have other numbers as near: those that were resampled at its edge
CROWD = 0.1


@dataclass(frozen=True, slots=True)
class Fill:
    """One number that many pixels have, and where the others lie."""

    number: float
    share: float  # of all numbers
    low: float  # the range of nearly all others
    high: float

    @property
    def distance(self) -> float:
        """From the range of the others, in their numbers."""
        return max(self.low - self.number, self.number - self.high)

    @property
    def drags(self) -> bool:
        """Whether a range that holds it would leave little of itself to the others."""
        return self.distance > DRAGGING * (self.high - self.low)

    def drags_with_it(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """It, and what lies as far on its side of the others: pixels resampled at its edge are a
        mean of both.
        """
        beyond = self.low - values if self.number < self.low else values - self.high
        return beyond > DRAGGING * (self.high - self.low)

    def said(self, dtype: str) -> str:
        """The number as its type has it, its share, and how far it lies from the others."""
        side = "below" if self.number < self.low else "above"
        return (
            f"{np.dtype(dtype).type(self.number)!s} in {100 * self.share:.3g} % of it, "
            f"{self.distance:.4g} {side} all others ({self.low:.4g} to {self.high:.4g})"
        )


def said_of_fills(histograms: Iterable[ValueHistogram], dtype: str) -> str:
    """All fills in one line, each once; "" where there are none."""
    fills = [fill for each in histograms for fill in each.fills(zero=np.dtype(dtype).kind in "iu")]
    largest = {fill.number: fill for fill in sorted(fills, key=lambda fill: fill.share)}
    return "; ".join(fill.said(dtype) for fill in largest.values())


def warn_of_fills(name: str, said: str, *, stacklevel: int) -> None:
    """Warn of fills, where any are said. name: of what holds them.  stacklevel: as for
    warnings.warn.
    """
    if said:
        warnings.warn(
            f"{name} may have nodata that is not declared: {said}. It is enlarged as data; if "
            "those pixels are missing, say so with --nodata NUMBER (Python: nodata=NUMBER).",
            UndeclaredNodata,
            stacklevel=stacklevel + 1,
        )


class ValueHistogram:
    """How often each value occurs in a stream of any type and length: 16 MB, one pass, independent
    of order and cuts.

    The bins are the leading bits of float32 numbers, which sort as the numbers do; so nothing about
    the values has to be known beforehand, and a percentile is right to 1/2048 of its own size.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(1 << _KEY_BITS, np.int64)
        self._numbers = np.zeros(1 << _KEY_BITS)  # one of each bin, by which a fill is named

    def add(self, values: NDArray[np.generic]) -> None:
        """Count the finite ones of these values."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
        if finite.size == 0:
            return
        bits = np.clip(finite, *type_range("float32")).astype(np.float32).view(np.uint32)
        negative = bits >> 31 == 1
        keys = np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(32 - _KEY_BITS)
        self.counts += np.bincount(keys, minlength=self.counts.size)
        self._numbers[keys] = finite

    def merge(self, other: ValueHistogram, times: int = 1) -> None:
        """Count what another histogram has counted, so many times."""
        self.counts += times * other.counts
        np.copyto(self._numbers, other._numbers, where=other.counts > 0)

    def is_plain(self) -> bool:
        """Whether only the percentages, fills aside, give the range, so that a sample would give it
        too.
        """
        values, counts = self._without_fills()
        return counts.size > 0 and self.range() == _percentiles(values, counts, ROBUST_PERCENT)

    def range(self, percent: tuple[float, float] = ROBUST_PERCENT) -> tuple[float, float] | None:
        """The values at two percentages; None where nothing was counted.

        Fills that drag it are left out. Where nearly all values are one, the range is that of the
        others. Where a tail of values would be spikes, it is widened until they are none. Neither
        looks at FEW values, nor at one number that more of them have: those are spikes, and
        undeclared nodata.
        """
        values, counts = self._without_fills()
        if counts.size == 0:
            return None
        low, high = _percentiles(values, counts, percent)
        if low == high:
            low, high = _of_sparse(values, counts, low, (percent[1] - percent[0]) / 100)
        return _with_tail(values, counts, low, high)

    def fills(self, *, zero: bool = False) -> list[Fill]:
        """Numbers that look like nodata which nobody declared, the most frequent first.

        zero: 0 looks so even when it is near the others, as integers of a swath's collar do.
        """
        return sorted(self._fills(*self._values(), zero=zero), key=lambda fill: -fill.share)

    def _fills(
        self, values: NDArray[np.float64], counts: NDArray[np.int64], *, zero: bool = False
    ) -> list[Fill]:
        numbers = self._numbers[np.flatnonzero(self.counts)]
        total = counts.sum()
        heavy = np.flatnonzero((counts > FEW) & (counts >= FILLING * total))
        # As many as possible, since each of two would hide that the other one is far from the rest.
        numbers_of = (
            (below, above) for below in range(AT_AN_END + 1) for above in range(AT_AN_END + 1)
        )
        for below, above in sorted(numbers_of, key=sum, reverse=True):
            if not 0 < below + above <= len(heavy):
                continue
            suspects = [*heavy[:below], *heavy[len(heavy) - above :]]
            others = counts.copy()
            others[suspects] = 0
            if np.count_nonzero(others) < MANY:
                continue
            low, high = _percentiles(values, others, ROBUST_PERCENT)
            if low == high:
                low, high = values[others > 0][[0, -1]]
            found = [
                Fill(float(numbers[place]), float(counts[place] / total), float(low), float(high))
                for place in suspects
            ]
            if all(
                _stands_apart(fill, values, others, fill.share * total, zero=zero) for fill in found
            ):
                return found
        return []

    def _without_fills(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values, and how often each occurs: never, of fills that would drag a range, and what
        they drag.
        """
        values, counts = self._values()
        for fill in self._fills(values, counts):
            if fill.drags:
                counts[fill.drags_with_it(values)] = 0
        return values, counts

    def spikes(self, low: float, high: float) -> int:
        """How many values are spikes in a scene of this range."""
        values, counts = self._values()
        return int(counts[_widths_beyond(values, low, high) > -SPIKE[0]].sum())

    def _values(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values that occur, ascending, and how often: of each bin the one nearest to zero."""
        keys = np.flatnonzero(self.counts)
        bits = (keys << (32 - _KEY_BITS)).astype(np.uint32)
        negative = keys >> (_KEY_BITS - 1) == 0
        bits = np.where(
            negative, ~bits & ~np.uint32((1 << (32 - _KEY_BITS)) - 1), bits & np.uint32(0x7FFFFFFF)
        )
        return bits.view(np.float32).astype(np.float64), self.counts[keys]


def _stands_apart(
    fill: Fill, values: NDArray[np.float64], others: NDArray[np.int64], count: float, *, zero: bool
) -> bool:
    """Whether a number is far from all others, but for a few that were resampled at its edge."""
    width = fill.high - fill.low
    far = max(ZERO_APART * width, ZERO_STEPS) if zero and fill.number == 0 else APART * width
    crowd = others[np.abs(values - fill.number) < far].sum()
    return fill.distance > far and bool(crowd <= CROWD * count)


def _percentiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], percent: tuple[float, float]
) -> tuple[float, float]:
    """The values at two percentages, among ascending values that occur so often."""
    low, high = (_at_rank(values, counts, max(1.0, counts.sum() * part / 100)) for part in percent)
    return low, high


def _at_rank(values: NDArray[np.float64], counts: NDArray[np.int64], rank: float) -> float:
    """The value at a rank, from 1, among ascending values that occur so often."""
    return float(values[np.searchsorted(np.cumsum(counts), rank)])


def _telling(counts: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often the values chosen occur, without the commonest where more than FEW have it; 0 for
    all others.
    """
    counts = np.where(chosen, counts, 0)
    commonest = counts.argmax()
    if counts[commonest] > FEW:
        counts[commonest] = 0  # a nodata that nobody declared, or as good as one
    return counts


def _of_sparse(
    values: NDArray[np.float64], counts: NDArray[np.int64], usual: float, share: float
) -> tuple[float, float]:
    """The range of a scene nearly all of whose values are the usual one: it, and a share of the
    others.
    """
    distances = np.abs(values - usual)
    others = _telling(counts, distances > 0)
    total = int(others.sum())
    if total > FEW:
        order = np.argsort(distances)
        reach = _at_rank(distances[order], others[order], min(total - FEW, total * share))
        near = values[distances <= reach]
        return float(near[0]), float(near[-1])
    # There is no contrast to keep; a width will do that does not vanish beside the value, nor hide
    # what little differs.
    nearest = distances[distances > 0].min(initial=np.inf if usual == 0 or counts.size > 1 else 0)
    return usual, usual + max(min(1.0, float(nearest)), abs(usual) / 1024)


def _widths_beyond(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """How far values lie outside a range, in units of its width; negative inside."""
    return np.maximum(low - values, values - high) / (high - low)


def _with_tail(
    values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float
) -> tuple[float, float]:
    """The range, widened where more than FEW values would be spikes; at most DROWNING times."""
    beyond = _widths_beyond(values, low, high)
    tail = _telling(counts, (beyond > -SPIKE[0]) & (beyond < -SPIKE[0] * DROWNING))
    total = int(tail.sum())
    if total <= FEW:
        return low, high
    order = np.argsort(beyond)
    # FEW are left out where they are far from the rest
    reach = 2 * _at_rank(beyond[order], tail[order], total - FEW)
    reach = float(beyond[(tail > 0) & (beyond <= reach)].max())
    wider = reach / -SPIKE[0] * (1 + 2.0**-10)  # by what a value may exceed that of its bin
    return low, low + (high - low) * wider
