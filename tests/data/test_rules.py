"""How each benchmark's images are cropped and downsampled, against the paper's bicubic."""

import numpy as np
import pytest

from repmamba.data.benchmarks import BENCHMARKS
from repmamba.data.draw import Item, Settings, Skipped
from repmamba.data.images import read_image, write_png
from repmamba.data.pair_files import Made, make_item
from repmamba.data.pairs import pair_from_hr
from repmamba.pixels.resize import imresize, to_uint8


def made(tmp_path, name, height, width, scale=4):
    """An original of noise, and the result of its benchmark's rule; the files are in pairs/."""
    image = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    write_png(tmp_path / "originals" / "one.png", image)
    settings = Settings(BENCHMARKS[name], scale)
    return image, make_item(
        Item("", "one", "one.png"), tmp_path / "originals", tmp_path / "pairs", settings
    )


@pytest.mark.parametrize(
    ("name", "size", "row", "edge"),
    [("aid", 600, 43, 510), ("nwpu", 256, 0, 255), ("folder", 64, 0, 63)],
)
def test_aid_nwpu_and_a_folder_use_matlabs_bicubic_for_lr_and_bicubic(
    tmp_path, name, size, row, edge
):
    image, outcome = made(tmp_path, name, size, size, scale=3)
    assert isinstance(outcome, Made)
    expected = pair_from_hr("one", image[row : row + edge, row : row + edge], 3)
    unrounded = imresize(expected.hr / 255.0, 1 / 3)
    np.testing.assert_array_equal(read_image(tmp_path / "pairs" / "GT" / "one.png"), expected.hr)
    np.testing.assert_array_equal(read_image(tmp_path / "pairs" / "LR" / "one.png"), expected.lr)
    np.testing.assert_array_equal(
        read_image(tmp_path / "pairs" / "Bicubic" / "one.png"), to_uint8(imresize(unrounded, 3))
    )


def test_an_aid_image_of_another_size_is_left_out(tmp_path):
    _, outcome = made(tmp_path, "aid", 600, 640)
    assert outcome == Skipped("one.png", "600x640 pixels; 600x600 are expected.")
    assert not (tmp_path / "pairs").exists()


def test_only_aid_is_drawn_for_training_and_test_as_published():
    assert {name: benchmark.drawn for name, benchmark in BENCHMARKS.items() if benchmark.drawn} == {
        "aid": (100, 30)
    }
