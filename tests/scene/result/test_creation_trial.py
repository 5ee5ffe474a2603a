"""Options that GDAL does not take together are known before the first tile, and those that it takes
pass.
"""

from dataclasses import replace

import pytest

from repmamba.errors import UsageError
from repmamba.scene.engine import plan_file
from repmamba.scene.result.creation_trial import check_options
from repmamba.scene.result.formats import FORMATS
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.source.grid import Grid

RGB = OutputProfile("GTiff", Grid(100, 80), 3, "uint8")
RGBA = OutputProfile(
    "GTiff", Grid(100, 80), 4, "uint8", colorinterp=("red", "green", "blue", "alpha")
)
GREY = OutputProfile("GTiff", Grid(100, 80), 1, "uint8")


@pytest.mark.parametrize(
    ("profile", "name", "asked"),
    [
        (RGB, "GTiff", {"PREDICTOR": "3"}),
        (RGB, "GTiff", {"PHOTOMETRIC": "YCBCR"}),
        (RGB, "GTiff", {"PREDICTOR": "3", "COMPRESS": "ZSTD"}),
        (RGB, "COG", {"PREDICTOR": "FLOATING_POINT"}),
    ],
)
def test_options_that_gdal_does_not_take_are_refused_in_one_line(profile, name, asked):
    with pytest.raises(
        UsageError, match=rf"^{name} cannot hold {profile.count} bands of uint8.*creation="
    ) as refused:
        check_options(replace(profile, format=name, creation=tuple(asked.items())))
    assert "\n" not in str(refused.value)
    assert "trial" not in str(refused.value)
    assert all(f"{option}={value}" in str(refused.value) for option, value in asked.items())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "profile", [GREY, RGB, RGBA, replace(RGB, mask=True), replace(RGB, nodata=0.0)]
)
def test_the_usual_options_are_taken_for_whatever_a_format_holds(profile, name):
    profile = replace(profile, format=name)
    if FORMATS[name].holds(profile) is None:
        check_options(profile)


@pytest.mark.parametrize("dtype", FORMATS["GTiff"].dtypes)
@pytest.mark.parametrize("compression", ["NONE", "LZW", "DEFLATE", "ZSTD", "LZMA"])
@pytest.mark.parametrize("name", ["GTiff", "COG"])
def test_every_lossless_compression_is_taken_for_every_type(name, compression, dtype):
    check_options(OutputProfile(name, Grid(9, 9), 5, dtype, creation=(("COMPRESS", compression),)))


@pytest.mark.parametrize(
    "asked",
    [
        {"COMPRESS": "JPEG", "PHOTOMETRIC": "YCBCR", "JPEG_QUALITY": "1"},
        {"COMPRESS": "WEBP", "WEBP_LEVEL": "1"},
        {"BLOCKXSIZE": "4096", "BLOCKYSIZE": "4096"},
    ],
)
def test_options_that_go_together_are_taken(asked):
    check_options(replace(RGB, creation=tuple(asked.items())))


def test_a_plan_tries_the_options_that_were_asked_for(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(3, 20, 20), photometric="RGB")
    with pytest.raises(UsageError, match="PREDICTOR=3"):
        plan_file(path, tmp_path / "out.tif", bicubic, creation={"PREDICTOR": "3"})
