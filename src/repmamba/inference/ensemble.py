"""The mean over the eight flips and rotations of an image, each enlarged and turned back, for eight times the work.

A network that learnt from turned pictures answers each of the eight a little differently, and what they do not share is
mostly error. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS_AND_COLS = (-2, -1)


def mean_of_eight(run: Callable[[Tensor], Tensor], unit: Tensor) -> Tensor:
    """unit: (B, bands, h, w) -> (B, bands, scale h, scale w), by eight calls of run, which enlarges."""
    total: Tensor | None = None  # summed one by one: eight results at once would be most of a tile's memory
    for turns in range(4):
        for mirror in (False, True):
            seen = torch.rot90(unit.flip(-1) if mirror else unit, turns, ROWS_AND_COLS)
            result = torch.rot90(run(seen.contiguous()), -turns, ROWS_AND_COLS)
            result = result.flip(-1) if mirror else result
            total = result if total is None else total + result
    assert total is not None
    return total / 8
