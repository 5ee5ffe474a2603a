"""The files beside a result: none of them may be one that the input is read from."""

import numpy as np
import pytest
from PIL import Image

from repmamba.errors import UsageError
from repmamba.scene.engine import plan_file, upscale_file

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize("call", [upscale_file, plan_file])
def test_the_world_file_of_the_input_is_not_replaced_by_that_of_the_result(
    tmp_path, smooth, bicubic, call
):
    Image.fromarray(np.moveaxis(smooth(3, 40, 50), 0, 2)).save(tmp_path / "w.jpg")
    (tmp_path / "w.jgw").write_text("10\n0\n0\n-10\n500005\n4099995\n")
    with pytest.raises(
        UsageError, match=r"w\.jgw, which goes with .*w\.jpeg, is a part of the input"
    ):
        call(tmp_path / "w.jpg", tmp_path / "w.jpeg", bicubic, overwrite=True)
    assert (tmp_path / "w.jgw").read_text().startswith("10\n")
    upscale_file(tmp_path / "w.jpg", tmp_path / "w.tif", bicubic)  # a GeoTIFF has no world file


def test_the_side_car_of_the_input_is_not_replaced(tmp_path, smooth, bicubic, write_raster):
    source = write_raster("in.tif", smooth(1, 40, 50))
    (tmp_path / "out.tif.ovr").symlink_to(source)
    with pytest.raises(UsageError, match=r"out\.tif\.ovr, which goes with"):
        upscale_file(source, tmp_path / "out.tif", bicubic, overwrite=True)
