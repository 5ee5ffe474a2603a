"""An image as four sequences, and the four results as an image again.

| direction | order                       | pixel (i, j) of an (h, w) image is at |
| 0         | row by row                  | i w + j                               |
| 1         | column by column            | j h + i                               |
| 2         | row by row, backwards       | h w - 1 - (i w + j)                   |
| 3         | column by column, backwards | h w - 1 - (j h + i)                   |

`to_sequences` and `to_image` copy. A backend that walks the image itself only needs `visits`.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_sequences(maps: Tensor) -> Tensor:
    """Each direction's map in its own order.

    maps: (batch, 4, channel, h, w), the k-th for direction k. Returns (batch, 4, channel, h * w).
    """
    by_row, by_column = maps[:, 0::2].flatten(-2), maps[:, 1::2].transpose(-1, -2).flatten(-2)
    return torch.stack(
        (by_row[:, 0], by_column[:, 0], by_row[:, 1].flip(-1), by_column[:, 1].flip(-1)), dim=1
    )


def to_image(sequences: Tensor, height: int, width: int) -> Tensor:
    """The sum of the four sequences, each value back at its pixel.

    sequences: (batch, 4, channel, height * width). Returns (batch, channel, height, width).
    """
    batch, _, channel, _ = sequences.shape
    by_row = sequences[:, 0] + sequences[:, 2].flip(-1)
    by_column = sequences[:, 1] + sequences[:, 3].flip(-1)
    down_columns = by_column.reshape(batch, channel, width, height).transpose(-1, -2)
    return by_row.reshape(batch, channel, height, width) + down_columns


@lru_cache(maxsize=32)
def visits(height: int, width: int) -> np.ndarray:
    """The pixels in each direction's order: (4, height * width), int64, pixel (i, j) as i w + j.

    Calls of the same size share the array: do not write to it.
    """
    by_row = np.arange(height * width).reshape(height, width)
    by_column = by_row.T.ravel()
    return np.stack((by_row.ravel(), by_column, by_row.ravel()[::-1], by_column[::-1]))
