"""The mean over the eight flips and rotations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from repmamba import load
from repmamba.inference.ensemble import mean_of_eight


def nearest_with_a_mark(unit: Tensor) -> Tensor:
    """Upscales by nearest neighbour, and adds 8 to the first pixel of its input."""
    result = unit.repeat_interleave(2, -1).repeat_interleave(2, -2)
    result[..., 0, 0] += 8
    return result


def test_each_of_the_eight_is_used_once_and_turned_back():
    unit = torch.rand(2, 3, 5, 7)
    result = mean_of_eight(nearest_with_a_mark, unit)
    extra = result - unit.repeat_interleave(2, -1).repeat_interleave(2, -2)
    corners = extra[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    # two of the eight start at each corner
    torch.testing.assert_close(corners, torch.full_like(corners, 2))
    assert extra.abs().gt(1e-5).sum() == 4 * 2 * 3


@pytest.mark.parametrize(
    "turn", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.swapaxes(0, 1)]
)
def test_the_result_of_a_rotated_image_is_the_rotated_result(small_weights, turn):
    picture = np.random.default_rng(5).random((18, 22, 3), np.float32)
    upscaler = load(small_weights, ensemble=True)
    np.testing.assert_allclose(
        upscaler.upscale(np.ascontiguousarray(turn(picture))),
        turn(upscaler.upscale(picture)),
        atol=1e-5,
    )
