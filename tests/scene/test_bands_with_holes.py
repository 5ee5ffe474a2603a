"""Bands that lack pixels which others have: what is nodata there is missing there, of floats and
integers alike.
"""

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
        upscale_file(
            write_raster("in.tif", data, nodata=nodata),
            tmp_path / "out.tif",
            bicubic,
            overwrite=True,
        )
        with rasterio.open(tmp_path / "out.tif") as file:
            assert file.nodata == nodata
            results.append(file.read())
    assert (results[0][1, :32] == np.dtype(data.dtype).type(nodata)).all()
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1, 32:], results[1][1, 32:])
    assert -0.1 < results[0][1, 32:].min() < results[0][1, 32:].max() < 0.4


def test_an_integer_that_is_nodata_in_one_band_gives_what_a_float_gives(
    write_raster, smooth, tmp_path, bicubic
):
    """Bands of one scene that end at different columns, as of Landsat and any gdalbuildvrt
    -separate.
    """
    results = {}
    for dtype in ("int16", "float32"):
        data = smooth(3, 64, 64, "int16", 600, 3500).astype(dtype)
        for band in range(3):
            data[band, :, : 10 + 3 * band] = -9999
        path = write_raster("in.tif", data, nodata=-9999, photometric="RGB")
        upscale_file(path, tmp_path / "out.tif", bicubic, overwrite=True)
        with rasterio.open(tmp_path / "out.tif") as file:
            results[dtype] = file.read()
    missing = (data == -9999).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(results["int16"] == -9999, missing)
    np.testing.assert_array_equal(results["float32"] == -9999, missing)
    assert np.abs(results["int16"] - results["float32"])[~missing].max() <= 0.6  # rounding
    assert results["int16"][~missing].min() > 400


def test_nodata_of_the_last_of_four_bands_is_not_that_of_all(
    write_raster, smooth, tmp_path, bicubic
):
    """rasterio's dataset_mask takes the fourth band of RGB for alpha, be it infrared."""
    data = smooth(4, 40, 40, "int16", 600, 3500)
    data[3, :8] = -9999
    path = write_raster("in.tif", data, nodata=-9999, photometric="RGB", alpha="NO")
    upscale_file(path, tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        result = file.read()
    assert (result[:3] != -9999).all()
    assert (result[3, :16] == -9999).all()
    assert (result[3, 16:] != -9999).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_black_that_is_nodata_stays_where_one_band_has_it(
    write_raster, smooth, tmp_path, bicubic, dtype
):
    data = smooth(2, 40, 40, dtype, 20, 230)
    data[1, 5:7, 5:9] = 0
    data[:, 20, 20] = 0
    upscale_file(write_raster("in.tif", data, nodata=0), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read() == 0, (data == 0).repeat(2, 1).repeat(2, 2))


def test_overviews_leave_out_what_is_missing_in_one_band(write_raster, smooth, tmp_path, bicubic):
    """Each band has a nodata of its own, so a mask tells what is missing in both; a COG has
    overviews.
    """
    data = smooth(2, 300, 300, "int16", 600, 3500)
    data[0, 100:151], data[1, 200:] = -9999, -1
    path = write_raster("in.tif", data)
    target = tmp_path / "out.cog.tif"
    upscale_file(path, target, bicubic, nodata=(-9999, -1))
    with rasterio.open(target, overview_level=0) as file:
        half = file.read()
    np.testing.assert_array_equal(half[0] < 400, (data[0] == -9999))
    np.testing.assert_array_equal(half[1] < 400, (data[1] == -1))
