"""The eight flips and rotations of an image: the mean of the results, and their variance.

A network that was trained with flips and rotations answers each a little differently, and the
differences are mostly error: the mean removes part of it, and the variance shows where it was.
Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS_AND_COLS = (-2, -1)

Run = Callable[[Tensor], Tensor]  # (B, bands, h, w) -> (B, bands, scale h, scale w)


def mean_of_eight(run: Run, unit: Tensor) -> Tensor:
    """unit: (B, bands, h, w) -> (B, bands, scale h, scale w), by eight calls of run."""
    results = _eight(run, unit)
    # summed one at a time: eight results at once would be most of a tile's memory
    total = next(results)
    for result in results:
        total = total + result
    return total / 8


def mean_and_variance(run: Run, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The same mean, bit by bit, and the variance; both (B, bands, scale h, scale w)."""
    results = _eight(run, unit)
    first = next(results)
    total, away, squares = first, torch.zeros_like(first), torch.zeros_like(first)
    for result in results:
        total = total + result
        # Of differences from the first, which are small: with squares of the values, float32 would
        # lose the variance.
        difference = result - first
        away, squares = away + difference, squares + difference.square()
    return total / 8, (squares / 8 - (away / 8).square()).clamp_min(0)


def _eight(run: Run, unit: Tensor) -> Iterator[Tensor]:
    for turns in range(4):
        for mirror in (False, True):
            seen = torch.rot90(unit.flip(-1) if mirror else unit, turns, ROWS_AND_COLS)
            result = torch.rot90(run(seen.contiguous()), -turns, ROWS_AND_COLS)
            yield result.flip(-1) if mirror else result
