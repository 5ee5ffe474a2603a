"""Back-projection: a result is changed so that, made small again, it is the image it came from.

A network promises nothing about the sum of the pixels it makes of one; on imagery that is measured (reflectance,
temperature) the sum has to stay. What the result differs by, made small with the specification's imresize, is enlarged
by the same function and added, a few times over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repmamba.pixels.resize import imresize_torch

STEPS = 4  # each leaves a tenth or less of the difference in all but the finest patterns


def consistent(sr: Tensor, lr: Tensor, known: Tensor, scale: int) -> Tensor:
    """sr: (bands, scale h, scale w) -> the same, reduced to lr where it is known, within what rounding does anyway.

    lr: (bands, h, w), in the same numbers.  known: (bands, h, w), False where lr stands for a missing pixel.
    """
    for _ in range(STEPS):
        difference = lr - imresize_torch(sr[None], 1 / scale)[0]
        sr = sr + imresize_torch(torch.where(known, difference, 0.0)[None], scale)[0]
    return sr
