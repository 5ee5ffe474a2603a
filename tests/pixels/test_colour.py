import numpy as np
import pytest

from repmamba.errors import ShapeMismatch
from repmamba.pixels.colour import luma


def test_black_white_and_the_primaries_have_the_values_of_bt_601():
    rgb = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(rgb)[0] == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_luma_is_not_rounded():
    assert luma(np.full((1, 1, 3), 1, np.uint8))[0, 0] == pytest.approx(16 + 219 / 255)


def test_other_numbers_of_bands_are_refused():
    with pytest.raises(ShapeMismatch, match=r"\(4, 4, 4\)"):
        luma(np.zeros((4, 4, 4)))
