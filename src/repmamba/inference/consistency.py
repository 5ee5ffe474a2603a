"""Consistency: the smallest change of a result by which, made small again, it is the image it came from.

A network promises nothing about the sum of the pixels it makes of one; on imagery that is measured (reflectance,
temperature) the sum has to stay. Making small is the specification's imresize, a linear map D of each axis. What D sr
differs by from lr is added to sr through D's pseudoinverse. That is an orthogonal projection: where lr is indeed D of
some truth, no result moves away from that truth by it. Iterated back-projection tends to the same set of images, and
needs many rounds for fine patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmamba.pixels.resize import contributions


def consistent(sr: Tensor, lr: Tensor, known: Tensor, scale: int) -> Tensor:
    """sr: (bands, scale h, scale w) -> the nearest to it that imresize reduces to lr where that is known.

    lr: (bands, h, w), in the same numbers.  known: (bands, h, w), False where lr stands for a missing pixel; there
    sr reduces to what it did before. Float32 throughout.
    """
    down_rows, up_rows = _axis(lr.shape[-2], scale)
    down_cols, up_cols = _axis(lr.shape[-1], scale)
    difference = torch.where(known, lr - down_rows @ sr @ down_cols.T, 0.0)
    return sr + up_rows @ difference @ up_cols.T


@lru_cache(maxsize=32)  # tiles come in a few sizes, and the matrices of one are 3 MB
def _axis(length: int, scale: int) -> tuple[Tensor, Tensor]:
    """D of an axis, (length, scale length), and its pseudoinverse, (scale length, length)."""
    weights, sources = contributions(scale * length, 1 / scale)
    down: NDArray[np.float64] = np.zeros((length, scale * length))
    np.add.at(down, (np.broadcast_to(np.arange(length), sources.shape), sources), weights)
    up = down.T @ np.linalg.inv(down @ down.T)
    return torch.from_numpy(down).float(), torch.from_numpy(up).float()
