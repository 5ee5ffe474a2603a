"""Bands that lack pixels which others have: floats that are nodata there, and integers that may be data."""

import logging

import numpy as np
import pytest
import rasterio

from repmamba.scene.engine import upscale_file


@pytest.mark.parametrize("nodata", [-9999.0, -3.4028234663852886e38])
@pytest.mark.parametrize("profile", [{}, {"dtype": "float64"}])
def test_a_float_that_is_nodata_in_one_band_is_missing_in_that_band_alone(
    write_raster, smooth, tmp_path, bicubic, nodata, profile
):
    data = smooth(2, 64, 64, profile.get("dtype", "float32"), 0, 0.3)
    data[1, :16] = nodata
    results = []
    for number in (nodata, np.nan):
        data[1, :16] = number
        upscale_file(write_raster("in.tif", data, nodata=nodata), tmp_path / "out.tif", bicubic, overwrite=True)
        with rasterio.open(tmp_path / "out.tif") as file:
            assert file.nodata == nodata
            results.append(file.read())
    assert (results[0][1, :32] == np.dtype(data.dtype).type(nodata)).all()
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1, 32:], results[1][1, 32:])
    assert -0.1 < results[0][1, 32:].min() < results[0][1, 32:].max() < 0.4


def test_integers_that_are_nodata_in_one_band_are_data_and_counted_in_one_warning(
    write_raster, smooth, tmp_path, bicubic, caplog
):
    data = smooth(2, 40, 40, "uint16", 100, 900)
    data[1, 5:7, 5:9] = 0
    data[:, 20, 20] = 0
    with caplog.at_level(logging.WARNING, "repmamba"):
        upscale_file(write_raster("in.tif", data, nodata=0), tmp_path / "out.tif", bicubic)
    warned = [record.message for record in caplog.records if "nodata in one band" in record.message]
    assert len(warned) == 1
    assert "8 numbers" in warned[0]
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read() == 0).all(0).sum() == 4
