"""The range of a large scene: from a sample where that will do, and never without a word."""

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as Part

from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.source import raster as rasters
from repmamba.scene.source import sampling
from repmamba.scene.source.raster import Raster


@pytest.fixture
def large(monkeypatch):
    """From so few pixels on, a scene counts as large; returned is a list of how many each pass has
    read.
    """
    for name, value in (
        ("WHOLE", 1 << 16),
        ("SAMPLE", 1 << 14),
        ("LEAST_CELLS", 16),
        ("LONG", 1 << 14),
    ):
        monkeypatch.setattr(sampling, name, value)
    monkeypatch.setattr(rasters, "CELL", 16)
    pixels = []
    read = Raster.read

    def noted(self, window):
        pixels.append(window.height * window.width)
        return read(self, window)

    monkeypatch.setattr(Raster, "read", noted)
    return pixels


TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def ground(smooth, dtype="uint16"):
    return smooth(1, 640, 640, dtype, 300, 4000)


def range_of(path, tmp_path, upscaler, **options):
    made = plan_file(path, tmp_path / "out.tif", upscaler, **options)
    return made.low[0], made.high[0]


def range_of_all(path, tmp_path, upscaler, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "WHOLE", 1 << 40)
        return range_of(path, tmp_path, upscaler, **options)


@pytest.mark.parametrize("how", [TILED, {}], ids=["tiles", "strips"])
def test_a_sample_gives_the_range_of_the_whole(
    large, write_raster, smooth, tmp_path, bicubic, monkeypatch, how
):
    path = write_raster("in.tif", ground(smooth), **how)
    low, high = range_of_all(path, tmp_path, bicubic, monkeypatch)
    large.clear()
    found = range_of(path, tmp_path, bicubic)
    assert sum(large) < 640 * 640 / 2
    assert np.abs(np.subtract(found, (low, high))).max() <= sampling.SHARE * (high - low)
    # The same for every window of the scene, and each time.
    assert range_of(path, tmp_path, bicubic, window=(32, 32, 48, 48)) == found


def test_a_range_that_few_pixels_decide_is_found_from_all(
    large, write_raster, smooth, tmp_path, bicubic, monkeypatch
):
    """Islands in a sea of one value, and lamps far brighter than the rest: a sample may miss
    them.
    """
    islands = np.zeros((1, 640, 640), np.uint16)
    islands[:, 200:216, 400:416] = ground(smooth)[:, :16, :16]
    lamps = ground(smooth, "float32") / 4000
    lamps[0, ::32, ::32] = np.linspace(200, 300, 400).reshape(20, 20)
    for name, values in (("islands", islands), ("lamps", lamps)):
        path = write_raster(f"{name}.tif", values, **TILED)
        assert range_of(path, tmp_path, bicubic) == range_of_all(
            path, tmp_path, bicubic, monkeypatch
        )


def test_blocks_that_a_file_leaves_out_are_counted_without_reading_each(
    large, smooth, tmp_path, bicubic, monkeypatch
):
    path = tmp_path / "sparse.tif"
    profile = {
        "driver": "GTiff",
        "height": 1600,
        "width": 1600,
        "count": 1,
        "dtype": "uint16",
        **TILED,
    }
    with rasterio.open(path, "w", sparse_ok=True, crs="EPSG:32633", **profile) as file:
        file.write(ground(smooth)[:, :160, :160], window=Part(320, 320, 160, 160))
    whole = range_of_all(path, tmp_path, bicubic, monkeypatch)
    large.clear()
    assert range_of(path, tmp_path, bicubic) == whole
    assert sum(large) <= 160 * 160 + 16 * 16


def test_what_takes_long_is_told(large, write_raster, smooth, tmp_path, bicubic, caplog):
    path = write_raster("in.tif", ground(smooth), **TILED)
    told = []
    with caplog.at_level("INFO", "repmamba"):
        upscale_file(
            path,
            tmp_path / "out.tif",
            bicubic,
            window=(0, 0, 64, 64),
            measuring=lambda *reached: told.append(reached),
        )
    assert "reading a sample of" in caplog.text
    assert "to find its value range; value_range=(LOW, HIGH) avoids this" in caplog.text
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    told.clear()
    upscale_file(
        path,
        tmp_path / "given.tif",
        bicubic,
        window=(0, 0, 64, 64),
        value_range=(0, 4000),
        measuring=told.append,
    )
    assert told == []
