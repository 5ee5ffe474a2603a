"""Scenes nearly all of whose pixels have one value, or a few of which are very bright: made small
again, the input.
"""

import logging

import numpy as np
import pytest
import rasterio

from repmamba.pixels.resize import imresize
from repmamba.scene.engine import upscale_file


def scene(what):
    """An island of 0.4 % in a sea of 0, lamps in a night, and a few tiny numbers among zeros: (96,
    96).
    """
    random = np.random.default_rng(0)
    data = np.zeros((96, 96), "float32")
    if what == "island":
        data[40:46, 40:46] = random.uniform(200, 464, (6, 6)).round()
    elif what == "lamps":
        data = random.normal(0.2, 0.02, data.shape).astype("float32")
        data[50:55, 50:55] += random.uniform(20, 80, (5, 5)).astype("float32")
    else:
        data[20:22, 20:22] = [[1e-8, 3e-8], [2e-8, 5e-8]]
    return data


@pytest.mark.parametrize(
    ("what", "dtype"),
    [("island", "int16"), ("island", "float32"), ("lamps", "float32"), ("tiny", "float32")],
)
def test_a_sparse_scene_made_small_again_is_its_input(write_raster, tmp_path, bicubic, what, dtype):
    data = scene(what).astype(dtype)
    upscale_file(write_raster("in.tif", data[None]), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        result = file.read(1)
    difference = np.abs(imresize(result, 0.5) - data)
    assert difference.max() < (3 if dtype == "int16" else 1e-3 * data.max())


def test_the_log_tells_how_many_numbers_are_spikes(write_raster, smooth, tmp_path, bicubic, caplog):
    data = smooth(1, 64, 64, "float32", 0, 1)
    data[0, 30, 30:33] = -3.4e38
    with caplog.at_level(logging.INFO, "repmamba"):
        upscale_file(write_raster("in.tif", data), tmp_path / "out.tif", bicubic)
    assert "outliers (upscaled smoothly, not made consistent): 3." in caplog.text
