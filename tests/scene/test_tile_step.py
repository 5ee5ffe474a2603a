"""One tile: what single numbers far outside a scene's range do to it, with the projection that
makes it consistent.
"""

import numpy as np
import pytest
import rasterio

from repmamba.scene.engine import upscale_file


@pytest.mark.parametrize(
    ("dtype", "high", "spike"),
    [
        ("float32", 0.1, -3.4028235e38),
        ("float64", 0.1, 1e300),
        ("float32", 200, -3.4e38),
        ("float32", 200, -1e20),
        ("uint16", 1000, 65535),
    ],
)
def test_one_absurd_number_spoils_nothing_around_it_in_a_scene_made_consistent(
    write_raster, smooth, tmp_path, bicubic, dtype, high, spike
):
    data = smooth(1, 128, 128, dtype, 0, high)
    results = []
    for number in (spike, data[0, 50, 49]):
        data[0, 50, 50] = number
        upscale_file(
            write_raster("in.tif", data),
            tmp_path / "out.tif",
            bicubic,
            overwrite=True,
            consistent=True,
        )
        with rasterio.open(tmp_path / "out.tif") as file:
            results.append(file.read(1).astype(float))
    difference = np.abs(results[0] - results[1]) / high
    assert np.isfinite(results[0]).all()
    assert abs(results[0][100, 100]) > 10 * high
    distance = np.abs(np.mgrid[:256, :256] - 100.5).max(0) / 2  # lr pixels
    assert difference[distance > 1.5].max() < 0.15  # as beside any bright pixel
    assert difference[distance > 5].max() < 0.01


def test_absurd_numbers_are_not_continued_into_missing_pixels(
    write_raster, smooth, tmp_path, bicubic
):
    data = smooth(1, 64, 64, "float32", 0, 1)
    data[0, 30, 30:33] = -3.4e38
    data[0, 20:30, 20:60] = np.nan
    upscale_file(write_raster("in.tif", data), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        result = file.read(1)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(data[0]).repeat(2, 0).repeat(2, 1))
    rows, cols = np.nonzero(np.abs(result) > 2)
    # one lr pixel around, at most
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (60, 62, 59, 66)


def test_numbers_moderately_outside_the_range_stay_consistent(
    write_raster, smooth, tmp_path, bicubic
):
    """A cloud or a fire is a measurement: made small again, it is what it was."""
    from repmamba.pixels.resize import imresize

    data = smooth(1, 128, 128, "float32", 0, 1)
    data[0, 50, 50] = 30
    upscale_file(write_raster("in.tif", data), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_allclose(
            imresize(file.read(1), 0.5)[8:-8, 8:-8], data[0, 8:-8, 8:-8], atol=1e-3
        )
