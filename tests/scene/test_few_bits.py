"""Files whose numbers have fewer bits than their type (NBITS): no number of a result needs more."""

import numpy as np
import pytest
import rasterio

from repmamba.scene.engine import upscale_file
from repmamba.scene.options import SceneOptions
from repmamba.scene.plan import plan_scene
from repmamba.scene.source.raster import open_raster


@pytest.mark.parametrize(("dtype", "bits"), [("uint16", 12), ("uint8", 4)])
@pytest.mark.parametrize("value_range", [None, "type"])
def test_numbers_of_fewer_bits_than_their_type_stay_within_them(
    write_raster, smooth, tmp_path, bicubic, dtype, bits, value_range
):
    largest = (1 << bits) - 1
    data = np.minimum(smooth(1, 40, 40, "float32", 0, 1.5) * largest, largest).astype(dtype)
    source = write_raster("in.tif", data, nbits=bits)
    with open_raster(source) as raster:
        plan = plan_scene(raster, tmp_path / "out.tif", bicubic, SceneOptions(value_range="type"))
        assert (plan.radiometry.low, plan.radiometry.high) == ((0,), (largest,))
    upscale_file(source, tmp_path / "out.tif", bicubic, value_range=value_range)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.read().max() == largest
