"""An array gives the numbers that a file of it gives: both go through one step."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from repmamba.scene.engine import upscale_file


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("int16", -9999), ("uint16", 0), ("float32", -9999.0), ("float32", np.nan), ("uint8", 0)],
)
def test_an_array_with_holes_and_spikes_becomes_what_a_file_of_it_becomes(
    bicubic, tmp_path, dtype, nodata, consistent
):
    random = np.random.default_rng(3)
    data = random.uniform(20, 240, (4, 70, 60)).astype(dtype)
    data[:, :9] = nodata
    data[1, 30:40, 20:50] = nodata
    if dtype != "uint8":
        data[0, 50, 30] = 30_000  # a spike
    place = {
        "crs": "EPSG:32632",
        "transform": Affine(10, 0, 500000, 0, -10, 5200000),
        "photometric": "RGB",
    }
    shape = {"count": 4, "height": 70, "width": 60, "dtype": dtype, "nodata": nodata, "alpha": "NO"}
    with rasterio.open(tmp_path / "in.tif", "w", driver="GTiff", **place, **shape) as file:
        file.write(data)
    how = {"value_range": (0.0, 255.0), "consistent": consistent, "tile": 32, "halo": 8}
    upscale_file(tmp_path / "in.tif", tmp_path / "out.tif", bicubic, **how)
    with rasterio.open(tmp_path / "out.tif") as file:
        expected = file.read()
    result = bicubic.upscale(data, layout="bands-first", nodata=nodata, **how)
    np.testing.assert_array_equal(result, expected)
    missing = (np.isnan(data) if np.isnan(nodata) else data == nodata).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(
        np.isnan(result) if np.isnan(nodata) else result == nodata, missing
    )
