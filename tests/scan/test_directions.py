"""The four orders of pixels."""

import torch
from hypothesis import given
from hypothesis.strategies import integers

from repmamba.scan.directions import to_image, to_sequences, visits

SIDES = integers(1, 9)


def counted(height: int, width: int) -> torch.Tensor:
    """A map whose pixel (i, j) holds i w + j, once for each direction."""
    return (
        torch.arange(height * width).reshape(1, 1, 1, height, width).expand(1, 4, 1, height, width)
    )


def test_a_map_of_two_by_three_is_visited_in_the_four_published_orders():
    assert to_sequences(counted(2, 3))[0, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


@given(height=SIDES, width=SIDES)
def test_visits_agrees_with_to_sequences(height: int, width: int):
    assert visits(height, width).tolist() == to_sequences(counted(height, width))[0, :, 0].tolist()


@given(height=SIDES, width=SIDES)
def test_each_sequence_comes_back_to_its_own_pixels_and_the_four_are_added(height: int, width: int):
    maps = torch.rand(2, 4, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(to_image(to_sequences(maps), height, width), maps.sum(1))
