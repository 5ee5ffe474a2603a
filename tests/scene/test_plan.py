"""The plan of a scene: everything is decided before the first pixel, and by nothing but scene,
weights and options.
"""

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image

from repmamba.errors import OutsideTraining, TargetError, UsageError
from repmamba.inference.upscaler import Upscaler
from repmamba.scene.band_selection import describe_grey_bands
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.options import SceneOptions
from repmamba.scene.plan import ScenePlan, plan_scene
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.raster import open_raster
from repmamba.tiles.window import Window

from .conftest import BicubicRunner, bicubic_upscaler


@pytest.fixture
def plan(bicubic, tmp_path):
    """Plan a file with options, for the stand-in or one that differs from it."""

    def make(
        path: Path,
        target: str = "out.tif",
        *,
        how: ReadOptions | None = None,
        network: Upscaler = bicubic,
        **options,
    ) -> ScenePlan:
        with open_raster(path, how or ReadOptions()) as raster:
            return plan_scene(raster, tmp_path / target, network, SceneOptions(**options), how)

    return make


def test_eight_bits_are_mapped_by_their_type_and_others_by_robust_percentiles(
    write_raster, smooth, plan
):
    eight = plan(write_raster("a.tif", smooth(3, 30, 30)))
    assert (eight.radiometry.low, eight.radiometry.high) == ((0,) * 3, (255,) * 3)
    signed = plan(write_raster("signed.tif", smooth(1, 30, 30, "int8", -20, 60)))
    assert (signed.radiometry.low, signed.radiometry.high) == ((-128,), (127,))
    data = smooth(1, 200, 200, "uint16", 1000, 3000)
    data[0, 0, :40] = 60000  # 0.1 % of all: a glint
    deep = plan(write_raster("b.tif", data))
    assert deep.radiometry.low[0] == pytest.approx(1000, abs=20)
    assert deep.radiometry.high[0] == pytest.approx(3000, abs=20)


def test_a_range_can_be_given_or_be_that_of_the_type(write_raster, smooth, plan):
    path = write_raster("a.tif", smooth(2, 20, 20, "uint16"))
    assert plan(path, value_range=(0, 4000)).radiometry.high == (4000, 4000)
    assert plan(path, value_range="type").radiometry.high == (65535, 65535)
    with pytest.raises(UsageError, match="holds no values"):
        plan(path, value_range=(5, 5))


def test_missing_pixels_have_no_part_in_the_range(write_raster, smooth, plan):
    data = smooth(1, 60, 60, "float32", 10, 20)
    data[:, 20:] = -9999
    data[0, 0, 0] = np.nan
    radiometry = plan(write_raster("a.tif", data, nodata=-9999)).radiometry
    assert 10 <= radiometry.low[0] < radiometry.high[0] <= 20


def test_the_range_is_that_of_the_scene_whatever_the_window(write_raster, smooth, plan):
    path = write_raster("a.tif", smooth(1, 200, 90, "uint16", 100, 9000))
    whole, part = plan(path), plan(path, window=Window(3, 5, 7, 9))
    assert whole.radiometry == part.radiometry
    assert part.profile.grid.width == 18


def test_colours_share_one_map_and_other_bands_have_their_own(write_raster, smooth, plan):
    data = np.concatenate(
        [smooth(1, 50, 50, "uint16", 1000 * n, 1000 * n + 500) for n in range(1, 6)]
    )
    radiometry = plan(write_raster("a.tif", data), rgb=(4, 2, 1)).radiometry
    ranges = list(zip(radiometry.low, radiometry.high, strict=True))
    assert ranges[0] == ranges[1] == ranges[3] == pytest.approx((1000, 4500), rel=0.01)
    assert ranges[2] == pytest.approx((3000, 3500), rel=0.01)
    assert ranges[4] == pytest.approx((5000, 5500), rel=0.01)


def test_colour_interpretation_says_which_bands_are_red_green_and_blue(write_raster, smooth, plan):
    path = write_raster("a.tif", smooth(4, 10, 10, "uint16"))
    with rasterio.open(path, "r+") as file:
        colours = rasterio.enums.ColorInterp
        file.colorinterp = [colours.blue, colours.green, colours.red, colours.undefined]
    assert plan(path).groups == ((2, 1, 0), (3,))
    assert plan(path, rgb=(1, 2, 4)).groups == ((0, 1, 3), (2,))
    assert plan(path, bands=(3, 1)).groups == ((0,), (1,))
    assert plan(path, bands=(4, 3, 2, 1)).groups == ((1, 2, 3), (0,))


@pytest.mark.parametrize(
    "options", [{"bands": (1, 5)}, {"bands": (2, 2)}, {"bands": ()}, {"rgb": (1, 2, 9)}]
)
def test_bands_that_are_not_there_are_refused(write_raster, smooth, plan, options):
    with pytest.raises(UsageError, match=r"no band 5|each band once|rgb= takes three"):
        plan(write_raster("a.tif", smooth(3, 10, 10, "uint16")), **options)


def test_a_bbox_is_the_window_of_the_pixels_it_meets(write_raster, smooth, plan):
    path = write_raster("a.tif", smooth(1, 50, 60), transform=Affine(10, 0, 1000, 0, -10, 5000))
    assert plan(path, bbox=(1100, 4700, 1200, 4900)).tiles.window == Window(10, 10, 20, 10)
    assert plan(path, bbox=(1101, 4701, 1199, 4899)).tiles.window == Window(10, 10, 20, 10)
    assert plan(path, bbox=(0, 0, 1010, 9999)).tiles.window == Window(0, 0, 50, 1)
    with pytest.raises(UsageError, match="does not intersect"):
        plan(path, bbox=(0, 0, 10, 10))
    with pytest.raises(UsageError, match="give one of them"):
        plan(path, bbox=(1100, 4700, 1200, 4900), window=Window(0, 0, 1, 1))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_bbox_of_a_picture_means_nothing(write_raster, smooth, plan):
    with pytest.raises(UsageError, match="use window="):
        plan(write_raster("a.tif", smooth(1, 9, 9), transform=None, crs=None), bbox=(0, 0, 1, 1))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_bbox_is_of_finite_numbers(number):
    with pytest.raises(UsageError, match="give four finite numbers"):
        SceneOptions(bbox=(0, number, 1, 1))


@pytest.mark.parametrize("option", [{"tile": 33}, {"halo": 7}, {"tile": 0}, {"halo": -2}])
def test_tile_and_halo_are_even(option):
    with pytest.raises(UsageError, match="even number"):
        SceneOptions(**option)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_scenes_with_a_place_are_made_consistent_and_pictures_are_not(
    write_raster, smooth, plan, geotiffs
):
    assert plan(write_raster("a.tif", smooth(1, 9, 9))).consistent
    assert not plan(write_raster("b.tif", smooth(1, 9, 9), transform=None, crs=None)).consistent
    assert plan(geotiffs / "test_rpcs.tif").consistent
    assert not plan(write_raster("c.tif", smooth(1, 9, 9)), consistent=False).consistent


def test_weights_that_remove_noise_do_not_have_it_restored(write_raster, smooth, tmp_path, caplog):
    scene, denoising = write_raster("a.tif", smooth(1, 9, 9)), bicubic_upscaler(denoises=True)
    with caplog.at_level("INFO", "repmamba"):
        plan_file(scene, tmp_path / "out.tif", denoising)
    assert "not made consistent with its input, because that would restore the" in caplog.text
    assert plan_file(scene, tmp_path / "out.tif", denoising, consistent=True).consistent


def test_the_log_says_whether_a_result_is_made_consistent_and_why(
    write_raster, smooth, tmp_path, bicubic, caplog
):
    placed = write_raster("a.tif", smooth(1, 9, 9))
    picture = write_raster("b.tif", smooth(1, 9, 9), transform=None, crs=None)
    with caplog.at_level("INFO", "repmamba"):
        for path, asked in ((placed, None), (picture, None), (placed, False), (picture, True)):
            plan_file(path, tmp_path / "out.tif", bicubic, consistent=asked)
    assert [message.split(": ", 1)[1].split(" (")[0] for message in caplog.messages] == [
        "made consistent with its input, because the scene is georeferenced",
        "not made consistent with its input, because the picture is not georeferenced",
        "not made consistent with its input, as asked.",
        "made consistent with its input, as asked.",
    ]


@pytest.mark.parametrize("name", ["cog_gcps.tif", "cog_nodata_nan.tif"])
def test_radar_is_warned_of(geotiffs, plan, name):
    with pytest.warns(OutsideTraining, match="looks like radar"):
        plan(geotiffs / name)


def test_optical_scenes_are_not_warned_of(geotiffs, plan, recwarn):
    for name in ("rgb_lzw.tif", "cog_hirise_mars.tif", "all-nodata.tif"):
        plan(geotiffs / name)
    assert not [warning for warning in recwarn if warning.category is OutsideTraining]


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ({"nodata": 0}, "out.tif", "nodata"),
        ({"nodata": 0}, "out.jpg", "mask"),
        ({"mask": np.ones((10, 10), bool)}, "out.tif", "mask"),
        ({"mask": np.ones((10, 10), bool)}, "out.png", "alpha"),
        ({}, "out.png", ""),
    ],
)
def test_the_output_tells_of_missing_pixels_as_the_source_does_or_as_its_format_can(
    write_raster, smooth, plan, source, target, told
):
    made = plan(write_raster("a.tif", smooth(3, 10, 10), photometric="RGB", **source), target)
    assert made.profile.mask == (told == "mask")
    assert made.profile.has_alpha == (told == "alpha")
    assert (made.profile.nodata is not None) == (told == "nodata")
    assert made.profile.count == 3 + (told == "alpha")


def test_a_format_that_cannot_hold_the_scene_is_refused_with_those_that_can(
    write_raster, smooth, plan
):
    path = write_raster("a.tif", smooth(5, 10, 10, "float32"))
    with pytest.raises(TargetError, match=r"PNG cannot hold float32 pixels. These can: GTiff, COG"):
        plan(path, "out.png")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tags_say_what_the_result_is(tmp_path, smooth, plan):
    path = tmp_path / "a.tif"
    Image.fromarray(smooth(1, 10, 10)[0]).save(path, dpi=(72, 72))
    with rasterio.open(path, "r+") as file:
        file.update_tags(SATELLITE="one")
    tags = plan(path).profile.tags[""]
    assert tags["SATELLITE"] == "one"
    assert tags["TIFFTAG_XRESOLUTION"] == "144"
    assert tags["SUPER_RESOLVED"] == "YES"
    assert tags["SUPER_RESOLUTION_SCALE"] == "2"
    assert tags["SUPER_RESOLUTION_WEIGHTS"].startswith("bicubic 000")
    assert tags["SUPER_RESOLUTION_SOFTWARE"].startswith("repmamba ")


def test_whatever_changes_a_pixel_changes_the_job_and_nothing_else_does(
    write_raster, smooth, plan, bicubic
):
    path = write_raster("a.tif", smooth(3, 40, 40, "uint16"), mask=np.ones((40, 40), bool))
    usual = plan(path).job
    assert plan(path).job.id == usual.id
    assert plan(path, "other.tif", creation={"COMPRESS": "LZW"}).job.id == usual.id
    networks = [
        {"digest": "1" * 32},
        {"runner": BicubicRunner(3)},
        {"precision": "bfloat16"},
        {"backend": "chunked"},
        {"ensemble": True},
        {"device": torch.device("cuda")},
    ]
    others = [plan(path, network=replace(bicubic, **changes)).job for changes in networks]
    others += [
        plan(path, **options).job
        for options in (
            {"tile": 32},
            {"halo": 4},
            {"window": Window(0, 0, 9, 9)},
            {"bands": (1, 2)},
            {"rgb": (1, 2, 3)},
            {"value_range": "type"},
            {"consistent": False},
            {"target": "out.png"},  # has no mask: alpha tells of missing pixels
        )
    ]
    readings = (
        ReadOptions(on_corrupt="fill"),
        ReadOptions(expand_palette=True),
        ReadOptions(nodata=(60,)),
    )
    others += [plan(path, how=how).job for how in readings]
    path.write_bytes(path.read_bytes() + b"\0")
    others.append(plan(path).job)
    assert len({usual.id, *(other.id for other in others)}) == 1 + len(others)
    varied = {
        key
        for key, value in usual.settings.items()
        if any(other.settings[key] != value for other in others)
    }
    # constants
    assert usual.settings.keys() - varied == {"compute_threads_of_a_tile", "tiles_in_one_pass"}


def test_bands_that_go_alone_and_may_be_colours_are_told_before_they_cost_a_pass_each(
    write_raster, smooth, tmp_path, bicubic, caplog
):
    path = write_raster("in.tif", smooth(3, 30, 30, "uint16"), photometric="MINISBLACK")
    said = "bands 1, 2, 3 one by one as grey (3 passes); if they are colours, give rgb=(1, 2, 3)"
    with caplog.at_level(logging.INFO, "repmamba"):
        assert said in plan_file(path, tmp_path / "out.tif", bicubic).summary()
        assert f"through the network: {said}" in caplog.text
        caplog.clear()
        assert (
            "as grey" not in plan_file(path, tmp_path / "out.tif", bicubic, rgb=(1, 2, 3)).summary()
        )
        assert "as grey" not in caplog.text
    with open_raster(write_raster("six.tif", smooth(6, 9, 9))) as raster:
        assert describe_grey_bands([[1], [2]], raster.facts) is None
        said = describe_grey_bands([[4, 3, 2], [1], [5], [6]], raster.facts)
    assert said == "bands 1, 5, 6 one by one as grey (3 passes)"


def test_a_bbox_gives_no_warning_of_ours_where_warnings_are_errors(
    write_raster, smooth, tmp_path, bicubic
):
    path = write_raster("in.tif", smooth(1, 40, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upscale_file(path, tmp_path / "out.tif", bicubic, bbox=(500100, 4099700, 500300, 4099900))
    with rasterio.open(tmp_path / "out.tif") as result:
        assert result.bounds == (500100, 4099700, 500300, 4099900)
