"""Consistency: the smallest change of a result such that downsampling it gives the input.

A network does not preserve the sum of pixels; for measurements (reflectance, temperature) it must
be preserved. Downsampling is the specification's imresize, a linear map D along each axis. The
difference between lr and D sr is added to sr through the pseudoinverse of D. That is an orthogonal
projection: if lr is D of some truth, no result moves away from that truth. Iterated back-projection
converges to the same set of images, but needs many iterations for fine patterns.

The pseudoinverse decays by a factor of three per pixel, and D is 0 beyond its kernel. So both are
multiplied in blocks of rows, each without its negligible columns, in half the time of the whole
matrices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmamba.pixels.resize import contributions

# a matrix: for each block of rows, the columns, and the numbers
Blocks: TypeAlias = tuple[tuple[slice, Tensor], ...]

BLOCK_ROWS = 32

NEGLIGIBLE = 1e-9  # float32 has a relative precision of 6e-8


def make_consistent(sr: Tensor, lr: Tensor, known: Tensor, scale: int) -> Tensor:
    """The nearest image to sr that imresize reduces to lr wherever lr is known.

    sr: (bands, scale h, scale w).  lr: (bands, h, w).  known: (bands, h, w), False for missing
    pixels of lr, where the downsampled sr stays as it is. All float32.
    """
    down_rows, up_rows = _axis(lr.shape[-2], scale)
    down_cols, up_cols = _axis(lr.shape[-1], scale)
    reduced = _along_rows(_down_columns(down_rows, sr), down_cols)
    difference = torch.where(known, lr - reduced, 0.0)
    return sr + _down_columns(up_rows, _along_rows(difference, up_cols))


def _down_columns(matrix: Blocks, image: Tensor) -> Tensor:
    """matrix @ image, for (bands, h, w)."""
    return torch.cat([numbers @ image[:, there] for there, numbers in matrix], dim=1)


def _along_rows(image: Tensor, matrix: Blocks) -> Tensor:
    """image @ matrix.T, for (bands, h, w)."""
    return torch.cat([image[..., there] @ numbers.T for there, numbers in matrix], dim=2)


@lru_cache(maxsize=32)  # tiles come in a few sizes
def _axis(length: int, scale: int) -> tuple[Blocks, Blocks]:
    """D of an axis, (length, scale length), and its pseudoinverse, (scale length, length)."""
    weights, sources = contributions(scale * length, 1 / scale)
    down: NDArray[np.float64] = np.zeros((length, scale * length))
    np.add.at(down, (np.broadcast_to(np.arange(length), sources.shape), sources), weights)
    up = down.T @ np.linalg.inv(down @ down.T)
    return _blocks(down), _blocks(up)


def _blocks(matrix: NDArray[np.float64]) -> Blocks:
    """A matrix with numbers around its diagonal, without the negligible ones."""
    blocks = []
    for row in range(0, len(matrix), BLOCK_ROWS):
        numbers = matrix[row : row + BLOCK_ROWS]
        there = np.flatnonzero((np.abs(numbers) > NEGLIGIBLE).any(0))
        columns = slice(int(there[0]), int(there[-1]) + 1)
        blocks.append((columns, torch.from_numpy(numbers[:, columns]).float()))
    return tuple(blocks)
