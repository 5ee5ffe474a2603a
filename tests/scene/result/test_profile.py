"""What a result says of itself fits the format that it is stored in."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from repmamba import __version__
from repmamba.errors import TargetError
from repmamba.scene.engine import upscale_file

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize("name", ["out.tif", "out.cog.tif"])
@pytest.mark.parametrize("compression", ["JPEG", "WEBP"])
def test_a_compression_that_changes_pixels_changes_no_footprint(
    write_raster, smooth, tmp_path, bicubic, name, compression
):
    data = smooth(3, 60, 60)
    data[:, 7:31, 5:26] = 0
    path = write_raster("in.tif", data, nodata=0, photometric="RGB")
    upscale_file(path, tmp_path / name, bicubic, creation={"COMPRESS": compression})
    with rasterio.open(tmp_path / name) as file:
        np.testing.assert_array_equal(
            file.dataset_mask() == 0, (data[0] == 0).repeat(2, 0).repeat(2, 1)
        )
        assert file.nodata is None


@pytest.mark.parametrize("name", ["out.tif", "out.cog.tif"])
def test_lossy_webp_may_change_the_colours_of_what_is_transparent(
    write_raster, smooth, tmp_path, bicubic, name
):
    data = np.concatenate([smooth(3, 300, 300), np.full((1, 300, 300), 255, np.uint8)])
    data[:3, :150], data[3, :150] = np.random.default_rng(0).integers(0, 2, (3, 150, 300)) * 255, 0
    path = write_raster("in.tif", data, photometric="RGB", alpha="YES")
    upscale_file(path, tmp_path / name, bicubic, creation={"COMPRESS": "WEBP"})
    with rasterio.open(tmp_path / name) as file:
        np.testing.assert_array_equal(file.read(4), data[3].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("bands", [2, 4])
def test_a_band_that_is_no_alpha_does_not_become_it(write_raster, smooth, tmp_path, bicubic, bands):
    path = write_raster(
        "in.tif", smooth(bands, 20, 20), photometric="RGB" if bands == 4 else None, alpha="NO"
    )
    with pytest.raises(TargetError, match=rf"PNG cannot hold {bands} bands.*GTiff, COG"):
        upscale_file(path, tmp_path / "out.png", bicubic)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_says_inside_that_it_is_super_resolved(smooth, tmp_path, bicubic, suffix):
    Image.fromarray(np.moveaxis(smooth(3, 30, 30), 0, 2)).save(
        tmp_path / "in.tif", description="x" * 100_000
    )
    upscale_file(tmp_path / "in.tif", tmp_path / f"out.{suffix}", bicubic)
    with Image.open(tmp_path / f"out.{suffix}") as image:
        pairs = image.getexif().get(0x010E, "").split(", ")  # ImageDescription
        said = image.text if suffix == "png" else dict(pair.split("=") for pair in pairs)
    assert said == {
        "SUPER_RESOLVED": "YES",
        "SUPER_RESOLUTION_SCALE": "2",
        "SUPER_RESOLUTION_WEIGHTS": f"bicubic {'0' * 32}",
        "SUPER_RESOLUTION_SOFTWARE": f"repmamba {__version__}",
    }
    assert not list(tmp_path.glob("*.aux.xml"))
