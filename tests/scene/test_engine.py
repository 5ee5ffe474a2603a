"""upscale_file: whole files in and out. A bicubic stand-in takes the network's place, so the truth
is known.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import RPCTransformer

from repmamba import load
from repmamba.errors import (
    JobChanged,
    NoSpace,
    OutOfMemory,
    SourceError,
    TargetError,
    TargetExists,
    UsageError,
)
from repmamba.pixels.radiometry import DTYPES, type_range
from repmamba.pixels.resize import imresize
from repmamba.scene import estimate
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result import space
from repmamba.scene.result.lock import TargetLock
from repmamba.tiles.window import Window

from .conftest import bicubic_upscaler

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::repmamba.errors.OutsideTraining"),
]

GEOTIFFS = {  # name -> options that it needs
    "201404_13SED190110_201404_0x1500m_CL_1_mask.tif": {},
    "RGBA.uint16.tif": {},
    "all-nodata.tif": {},
    "au-3577-rotated.tif": {},
    "cog.tif": {"tile": 512},
    "cog_gcps.tif": {"tile": 256},
    "cog_hirise_mars.tif": {"tile": 256},
    "cog_nodata_nan.tif": {},
    "cog_scale.tif": {},
    "goes.tif": {},
    "image_colormap.tif": {"expand_palette": True, "tile": 256},
    "image_nodata.tif": {},
    "mosaic_cog1.tif": {"tile": 256},
    "pix4d_alpha_nodata.tif": {},
    "rgb_lzw.tif": {},
    "test_rpcs.tif": {},
}


# 28 and 22 million numbers to compare; a window of the second in journeys/
LONG = {"cog.tif", "cog_hirise_mars.tif"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in GEOTIFFS]
)
def test_a_real_raster_keeps_place_type_bands_missing_pixels_and_tags(
    geotiffs, tmp_path, bicubic, name
):
    upscale_file(geotiffs / name, tmp_path / "out.tif", bicubic, **GEOTIFFS[name])
    with rasterio.open(geotiffs / name) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert (after.width, after.height) == (2 * before.width, 2 * before.height)
        assert after.crs == before.crs
        for col, row in (
            (0, 0),
            (before.width, 0),
            (0, before.height),
            (before.width, before.height),
        ):
            if not before.transform.is_identity:
                found = ~before.transform @ (after.transform @ (2 * col, 2 * row))
                np.testing.assert_allclose(found, (col, row), rtol=0, atol=1e-6)
        assert after.transform.is_identity == before.transform.is_identity
        mask = before.dataset_mask() != 0
        np.testing.assert_array_equal(after.dataset_mask() != 0, mask.repeat(2, 0).repeat(2, 1))
        assert after.tags()["AREA_OR_POINT"] == before.tags()["AREA_OR_POINT"]
        if name == "image_colormap.tif":
            assert after.colorinterp[:3] == tuple(
                rasterio.enums.ColorInterp[c] for c in ("red", "green", "blue")
            )
            return
        assert after.dtypes == before.dtypes
        assert after.nodatavals == before.nodatavals
        assert after.colorinterp == before.colorinterp
        assert after.descriptions == before.descriptions
        assert (after.scales, after.offsets, after.units) == (
            before.scales,
            before.offsets,
            before.units,
        )
        kept = {
            key: value
            for key, value in before.tags().items()
            if not key.startswith(("OVR_", "STATISTICS"))
        }
        assert kept.items() <= after.tags().items()
        check_gcps(before, after)
        check_rpcs(before, after)
        check_values(before, after, mask)


def check_gcps(before, after) -> None:
    assert after.gcps[1] == before.gcps[1]
    for one, other in zip(before.gcps[0], after.gcps[0], strict=True):
        assert (other.row, other.col) == pytest.approx((2 * one.row, 2 * one.col), abs=1e-6)
        assert (other.x, other.y, other.z) == pytest.approx((one.x, one.y, one.z), abs=1e-9)


def check_rpcs(before, after) -> None:
    assert (before.rpcs is None) == (after.rpcs is None)
    if before.rpcs is None:
        return
    exactly = {"RPC_PIXEL_ERROR_THRESHOLD": "1e-7", "RPC_MAX_ITERATIONS": "100"}
    with RPCTransformer(before.rpcs, **exactly) as lr, RPCTransformer(after.rpcs, **exactly) as hr:
        np.testing.assert_allclose(
            hr.xy(100, 60, offset="ul", zs=50.0),
            lr.xy(50, 30, offset="ul", zs=50.0),
            rtol=0,
            atol=1e-9,
        )


def check_values(before, after, mask) -> None:
    """Reduced again, the result is the input: within the rounding of its type, or a thousandth of
    its spread.

    Left out are pixels near one whose result its type (or nodata) did not allow, and two pixels
    from missing ones.
    """
    source, result = before.read().astype(float), after.read().astype(float)
    alpha = [band for band, colour in enumerate(before.colorinterp) if colour.name == "alpha"]
    for band in range(before.count):
        lr, sr = source[band], result[band]
        known = mask & np.isfinite(lr)
        np.testing.assert_array_equal(np.isfinite(sr), np.isfinite(lr).repeat(2, 0).repeat(2, 1))
        if band in alpha or not known.any():
            continue
        stopped = in_lr(np.isin(sr, forbidden(before)))
        counted = known & ~near(~known, 2) & ~near(stopped & known, 3)
        difference = np.abs(imresize(np.nan_to_num(sr, nan=0, posinf=0, neginf=0), 0.5) - lr)[
            counted
        ]
        if difference.size:
            integer = np.dtype(before.dtypes[0]).kind in "iu"
            most, mean = (1, 0.5) if integer else (1e-3 * np.ptp(lr[known]),) * 2
            assert difference.mean() <= mean
            assert (difference <= most).mean() >= 0.999


def forbidden(file) -> list[float]:
    """Where results are stopped: at the ends of the type, and beside nodata."""
    ends = list(type_range(file.dtypes[0]))
    return ends if file.nodata is None else [*ends, file.nodata - 1, file.nodata + 1]


def in_lr(hr):
    """Pixels of the input of whose four hr pixels any is set."""
    height, width = hr.shape
    return hr.reshape(height // 2, 2, width // 2, 2).any((1, 3))


def near(pixels, steps: int):
    """Those pixels, and all that are so many steps away, diagonal ones included."""
    for _ in range(steps):
        padded = np.pad(pixels, 1)
        shifts = [
            padded[r : r + pixels.shape[0], c : c + pixels.shape[1]]
            for r in range(3)
            for c in range(3)
        ]
        pixels = np.logical_or.reduce(shifts)
    return pixels


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back_by_the_same_map(write_raster, smooth, tmp_path, bicubic, dtype):
    eight_bits = {"uint8": (20, 230), "int8": (-100, 110)}
    low, high = eight_bits.get(dtype, (300, 9000) if dtype.startswith(("u", "i")) else (-0.5, 3))
    data = smooth(2, 90, 100, dtype, low, high)
    upscale_file(write_raster("in.tif", data), tmp_path / "out.tif", bicubic, consistent=False)
    with rasterio.open(tmp_path / "out.tif") as file:
        result = file.read()
    expected = np.stack([imresize(band, 2) for band in data])
    tolerance = 0.51 + 1e-3 if np.dtype(dtype).kind in "iu" else 1e-5
    assert np.abs(result - expected).max() <= tolerance


def test_values_beyond_the_range_are_not_clipped_to_it(write_raster, smooth, tmp_path, bicubic):
    data = smooth(1, 60, 60, "uint16", 1000, 2000)
    data[0, 20:40, 20:40] = 50000
    upscale_file(
        write_raster("in.tif", data), tmp_path / "out.tif", bicubic, value_range=(1000, 2000)
    )
    with rasterio.open(tmp_path / "out.tif") as file:
        assert abs(int(file.read(1)[60, 60]) - 50000) <= 1


def test_a_window_holds_the_same_pixels_as_the_whole(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(3, 170, 190, "uint16", 100, 5000))
    upscale_file(path, tmp_path / "whole.tif", bicubic)
    with rasterio.open(tmp_path / "whole.tif") as file:
        whole, transform = file.read(), file.transform
    for number, window in enumerate(
        (Window(5, 7, 20, 30), Window(60, 63, 9, 5), Window(100, 0, 70, 190))
    ):
        target = tmp_path / f"part{number}.tif"
        upscale_file(path, target, bicubic, window=window)
        with rasterio.open(target) as file:
            np.testing.assert_array_equal(file.read(), whole[:, *window.scaled(2).slices])
            np.testing.assert_allclose(
                file.transform @ (0, 0), transform @ (2 * window.col, 2 * window.row)
            )


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_number_of_workers_gives_the_same_bytes(
    write_raster, smooth, tmp_path, small_upscaler, dtype
):
    path = write_raster("in.tif", smooth(4, 60, 70, dtype))
    for workers in (1, 2, 5):
        upscale_file(
            path, tmp_path / f"{workers}.tif", small_upscaler, workers=workers, tile=32, halo=8
        )
    contents = {(tmp_path / f"{workers}.tif").read_bytes() for workers in (1, 2, 5)}
    assert len(contents) == 1


def test_a_scene_by_an_ensemble_is_the_array_by_one(
    write_raster, smooth, tmp_path, tiny_weights, small_upscaler
):
    data = smooth(3, 20, 26)
    path = write_raster("in.tif", data, photometric="RGB")
    weights = tiny_weights(seed=3)
    upscale_file(path, tmp_path / "out.tif", weights, ensemble=True, consistent=False)
    expected = load(weights, ensemble=True).upscale(np.moveaxis(data, 0, 2))
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, 2), expected)
    assert (expected != small_upscaler.upscale(np.moveaxis(data, 0, 2))).any()


@pytest.fixture
def small_upscaler(tiny_weights):
    """A real network of one block, so that sums have an order that threads could change."""
    return load(tiny_weights(seed=3))


@pytest.mark.parametrize("told", ["nodata", "mask", "alpha", "nan"])
def test_missing_pixels_have_no_influence_and_keep_their_footprint(
    write_raster, smooth, tmp_path, bicubic, told
):
    valid = np.ones((90, 80), bool)
    valid[10:30, 20:50] = valid[70, 70] = valid[0, 0] = False
    results = []
    for rubbish in (0, 77):
        data = smooth(3, 90, 80, "float32" if told == "nan" else "uint8")
        profile = {"photometric": "RGB"}
        if told == "mask":
            data[:, ~valid] = rubbish
            profile["mask"] = valid
        elif told == "alpha":
            data[:, ~valid] = rubbish
            data = np.concatenate([data, np.where(valid, 255, 0).astype(np.uint8)[None]])
            profile["alpha"] = "YES"
        elif told == "nodata":
            data[:, ~valid] = 255
            profile["nodata"] = 255
        else:
            data[:, ~valid] = np.nan
        path = write_raster(f"in{rubbish}.tif", data, **profile)
        target = tmp_path / f"out{rubbish}.tif"
        upscale_file(path, target, bicubic)
        with rasterio.open(target) as file:
            footprint = valid.repeat(2, 0).repeat(2, 1)
            results.append(file.read()[:, footprint])
            if told == "nan":
                np.testing.assert_array_equal(np.isfinite(file.read(1)), footprint)
            else:
                np.testing.assert_array_equal(file.dataset_mask() != 0, footprint)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("told", ["mask", "alpha"])
def test_what_lies_under_a_mask_or_alpha_stays(write_raster, smooth, tmp_path, bicubic, told):
    data = smooth(3, 90, 140)
    valid = np.ones((90, 140), bool)
    valid[10:30, 20:50] = valid[0, 0] = valid[:, 64:] = False  # a whole tile of them, and more
    options = {"mask": valid}
    if told == "alpha":
        data, options = (
            np.concatenate([data, np.where(valid, 255, 0).astype(np.uint8)[None]]),
            {"alpha": "YES"},
        )
    path = write_raster("in.tif", data, photometric="RGB", **options)
    for bands in ((1, 2, 3), (3, 1)):
        target = tmp_path / f"out{len(bands)}.tif"
        upscale_file(path, target, bicubic, bands=bands)
        with rasterio.open(target) as file:
            beneath = ~valid.repeat(2, 0).repeat(2, 1)
            expected = data[[band - 1 for band in bands]].repeat(2, 1).repeat(2, 2)
            np.testing.assert_array_equal(file.read()[: len(bands), beneath], expected[:, beneath])


def test_nan_in_one_band_is_missing_in_that_band_alone(write_raster, smooth, tmp_path, bicubic):
    data = smooth(2, 40, 40, "float32")
    data[1, 5, 5] = np.nan
    upscale_file(write_raster("in.tif", data), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        result = file.read()
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1, 10:12, 10:12]).all()
    assert np.isnan(result[1]).sum() == 4


def test_a_valid_result_never_equals_nodata(write_raster, tmp_path, bicubic):
    data = np.tile(np.array([[1, 2], [3, 1]], np.uint8), (1, 30, 30)).reshape(1, 60, 60)
    data[0, :5] = 0
    upscale_file(write_raster("in.tif", data, nodata=0), tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read(1)[:10] == 0).all()
        assert (file.read(1)[10:] > 0).all()


def test_tiles_without_a_valid_pixel_are_not_computed(write_raster, smooth, tmp_path):
    calls = []

    class Counting:
        scale, bands = 2, 3

        def run(self, unit):
            calls.append(unit.shape)
            return unit.repeat_interleave(2, -1).repeat_interleave(2, -2)

    from dataclasses import replace

    data = smooth(1, 256, 256)
    data[:, :, 64:] = 0
    counting = replace(bicubic_upscaler(), runner=Counting())
    upscale_file(write_raster("in.tif", data, nodata=0), tmp_path / "out.tif", counting)
    assert len(calls) == 4  # of 16


def test_two_hundred_bands_go_through(write_raster, smooth, tmp_path, bicubic):
    data = smooth(200, 12, 13, "uint16", 10, 2000)
    upscale_file(
        write_raster("in.tif", data),
        tmp_path / "out.tif",
        bicubic,
        value_range="type",
        consistent=False,
    )
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.count == 200
        np.testing.assert_allclose(file.read(157), imresize(data[156], 2), atol=0.6)


def test_chosen_bands_come_in_the_order_asked(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(4, 30, 30, "uint16"))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("a", "b", "c", "d")
        file.update_tags(3, wavelength="705")
    upscale_file(path, tmp_path / "out.tif", bicubic, bands=(3, 1))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.descriptions == ("c", "a")
        assert file.tags(1)["wavelength"] == "705"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_picture_stays_a_picture(tmp_path, smooth, bicubic, suffix):
    Image.fromarray(np.moveaxis(smooth(3, 50, 60), 0, 2)).save(tmp_path / "in.png")
    upscale_file(tmp_path / "in.png", tmp_path / f"out.{suffix}", bicubic)
    with Image.open(tmp_path / f"out.{suffix}") as image:
        assert (image.size, image.mode) == ((120, 100), "RGB")
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", f"out.{suffix}"} | sidecars(
        tmp_path
    )


def sidecars(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.endswith((".aux.xml", ".json"))}


def test_pixels_of_a_tiled_run_are_those_of_one_pass(write_raster, smooth, tmp_path, bicubic):
    """imresize sees two pixels far, so a halo of eight leaves no trace of tiles."""
    path = write_raster("in.tif", smooth(3, 150, 140), crs=None, transform=None)
    upscale_file(path, tmp_path / "tiled.tif", bicubic, tile=32)
    upscale_file(path, tmp_path / "whole.tif", bicubic, tile=160)
    with (
        rasterio.open(tmp_path / "tiled.tif") as tiled,
        rasterio.open(tmp_path / "whole.tif") as whole,
    ):
        np.testing.assert_array_equal(tiled.read(), whole.read())


def test_progress_counts_output_pixels_to_the_last(write_raster, smooth, tmp_path, bicubic):
    said = []
    path = write_raster("in.tif", smooth(1, 100, 100))
    upscale_file(
        path, tmp_path / "out.tif", bicubic, progress=lambda done, total: said.append((done, total))
    )
    assert said[0] == (0, 40000)
    assert said[-1] == (40000, 40000)
    assert said == sorted(said)


def test_assembling_is_told_to_the_last_pixel(write_raster, smooth, tmp_path, bicubic):
    said = []
    path = write_raster("in.tif", smooth(1, 100, 100))
    upscale_file(
        path,
        tmp_path / "out.tif",
        bicubic,
        assembling=lambda done, total: said.append((done, total)),
    )
    assert said[-1] == (40000, 40000)
    assert said == sorted(said)


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(3, 200, 200))
    upscale_file(path, tmp_path / "whole.tif", bicubic)

    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_file(path, tmp_path / "again.tif", bicubic, progress=stop_half_way)
    assert not (tmp_path / "again.tif").exists()
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("repmamba-tile")
    ]
    result = upscale_file(path, tmp_path / "again.tif", bicubic)
    assert 0 < result.resumed < result.tiles
    assert (tmp_path / "again.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_corrupt_blocks_are_missing_in_the_result_and_counted(geotiffs, tmp_path, bicubic):
    content = (geotiffs / "rgb_lzw.tif").read_bytes()
    (tmp_path / "in.tif").write_bytes(content[: len(content) // 2])
    result = upscale_file(tmp_path / "in.tif", tmp_path / "out.tif", bicubic, on_corrupt="fill")
    assert result.corrupt_pixels > 0
    assert "corrupt input pixels are missing" in result.summary()
    with (
        rasterio.open(tmp_path / "out.tif") as after,
        rasterio.open(geotiffs / "rgb_lzw.tif") as before,
    ):
        lost = before.dataset_mask().repeat(2, 0).repeat(2, 1).astype(int) - after.dataset_mask()
        assert (lost >= 0).all()
        assert (lost > 0).any()


def test_corrupt_blocks_that_an_earlier_run_met_are_counted_too(geotiffs, tmp_path, bicubic):
    content = (geotiffs / "rgb_lzw.tif").read_bytes()
    (tmp_path / "in.tif").write_bytes(content[: len(content) // 2])
    how = {"on_corrupt": "fill", "tile": 256, "workers": 1}
    whole = upscale_file(tmp_path / "in.tif", tmp_path / "whole.tif", bicubic, **how)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_file(tmp_path / "in.tif", tmp_path / "out.tif", bicubic, progress=stop, **how)
    result = upscale_file(tmp_path / "in.tif", tmp_path / "out.tif", bicubic, **how)
    assert result.resumed == result.tiles
    assert result.corrupt_pixels == whole.corrupt_pixels > 0
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


@pytest.mark.parametrize("name", ["in.tif", "link.tif"])
def test_the_input_is_never_the_output(write_raster, smooth, tmp_path, bicubic, name):
    path = write_raster("in.tif", smooth(1, 9, 9))
    (tmp_path / "link.tif").symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is the input"):
        upscale_file(path, tmp_path / name, bicubic, overwrite=True)
    assert path.read_bytes() == before


def test_the_output_is_no_part_of_the_input(write_raster, smooth, tmp_path, bicubic):
    part = write_raster("part.tif", smooth(1, 9, 9))
    (tmp_path / "mosaic.vrt").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" '
        'band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">part.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    before = part.read_bytes()
    with pytest.raises(UsageError, match=r"part\.tif is a part of the input"):
        upscale_file(tmp_path / "mosaic.vrt", part, bicubic, overwrite=True)
    assert part.read_bytes() == before


def test_an_output_that_is_there_is_kept_unless_it_may_be_replaced(
    write_raster, smooth, tmp_path, bicubic
):
    path = write_raster("in.tif", smooth(1, 9, 9))
    (tmp_path / "out.tif").write_text("mine")
    with pytest.raises(TargetExists, match="overwrite=True"):
        upscale_file(path, tmp_path / "out.tif", bicubic)
    assert (tmp_path / "out.tif").read_text() == "mine"
    upscale_file(path, tmp_path / "out.tif", bicubic, overwrite=True)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.width == 18


@pytest.mark.parametrize(
    ("target", "options", "red"),
    [
        ("out.png", {}, 0),
        ("out.jpg", {}, 0),
        ("out.tif", {}, 2),  # says of each band what it is, so none has to move
        ("out.png", {"bands": (1, 2, 3)}, 2),  # as asked
    ],
)
def test_a_picture_shows_red_as_red_in_whatever_order_the_bands_are(
    write_raster, tmp_path, bicubic, target, options, red
):
    path = write_raster("in.tif", np.full((3, 20, 20), 10, np.uint8))
    with rasterio.open(path, "r+") as file:
        colours = rasterio.enums.ColorInterp
        file.colorinterp = [colours.blue, colours.green, colours.red]
        file.write(np.full((20, 20), 200, np.uint8), 3)
    upscale_file(path, tmp_path / target, bicubic, **options)
    with rasterio.open(tmp_path / target) as file:
        assert file.read().mean((1, 2)).argmax() == red


def test_a_run_killed_when_only_its_lock_was_left_to_remove_is_ended_by_the_same_call(
    write_raster, smooth, tmp_path, bicubic
):
    path, target = write_raster("in.tif", smooth(1, 9, 9)), tmp_path / "out.tif"
    upscale_file(path, target, bicubic)
    whole, lock = target.read_bytes(), TargetLock(target).path
    lock.write_text("process 1 on nowhere\n")
    upscale_file(path, target, bicubic)
    assert target.read_bytes() == whole
    assert not lock.exists()
    lock.write_text("process 1 on nowhere\n")
    target.write_text("mine")
    with pytest.raises(TargetExists, match="overwrite=True"):
        upscale_file(path, target, bicubic)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("target", ["nowhere/out.tif", "folder"])
def test_an_output_that_cannot_be_is_refused(write_raster, smooth, tmp_path, bicubic, target):
    (tmp_path / "folder").mkdir()
    with pytest.raises(TargetError, match=r"does not exist|is a folder"):
        upscale_file(write_raster("in.tif", smooth(1, 9, 9)), tmp_path / target, bicubic)


@pytest.mark.parametrize("all_are_read", [False, True])
def test_a_source_that_changes_meanwhile_leaves_no_result(
    write_raster, smooth, tmp_path, bicubic, all_are_read
):
    path = write_raster("in.tif", smooth(1, 200, 200))

    def touch(done: int, total: int) -> None:
        if done == total if all_are_read else done:
            os.utime(path, ns=(1, 1))

    with pytest.raises(SourceError, match="changed while it was read"):
        upscale_file(path, tmp_path / "out.tif", bicubic, progress=touch)
    assert not (tmp_path / "out.tif").exists()


def test_a_plan_that_memory_does_not_hold_is_refused_with_the_tile_that_fits(
    write_raster, smooth, tmp_path, bicubic, monkeypatch
):
    path = write_raster("in.tif", smooth(3, 600, 600))
    monkeypatch.setattr(estimate, "available_memory", lambda: 800_000_000)
    with pytest.raises(OutOfMemory, match=r"tile=2\d\d fits") as caught:
        upscale_file(path, tmp_path / "out.tif", bicubic, tile=512, workers=1)
    fitting = int(str(caught.value).split("tile=")[2].split()[0])
    upscale_file(path, tmp_path / "out.tif", bicubic, tile=fitting, workers=1)


def test_workers_beyond_the_number_of_tiles_take_no_memory(write_raster, smooth, tmp_path, bicubic):
    # rows 0, 1 and 2 of tiles
    path, window = write_raster("in.tif", smooth(1, 300, 200)), Window(100, 0, 200, 200)
    made = [
        plan_file(
            path,
            tmp_path / "out.tif",
            bicubic,
            tile=128,
            workers=workers,
            window=window,
            bands=(1,),
        )
        for workers in (5, 6, 64)
    ]
    assert made[1].tiles == 6
    five, six, many = (each.memory_bytes - each.program_bytes for each in made)
    assert five < six == many


PLAN_THEN_RUN = r"""
import json, re, sys
from pathlib import Path
import repmamba
from repmamba.scene.engine import plan_file

source, target, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
upscaler = repmamba.load("x4", device="cpu")
told = plan_file(source, target, upscaler, workers=workers)
repmamba.upscale_file(source, target, upscaler, workers=workers)
most = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss has the parent's
print(json.dumps({"told": told.memory_bytes, "program": told.program_bytes, "measured": most}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no /proc")
def test_the_memory_that_is_told_is_that_of_the_whole_process(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 272, 500, "uint16"))
    command = [sys.executable, "-c", PLAN_THEN_RUN, str(path), str(tmp_path / "out.tif"), "2"]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    memory = json.loads(ended.stdout)
    assert memory["program"] > 150_000_000  # torch alone takes that
    assert 0.6 * memory["told"] < memory["measured"] < memory["told"]


def test_memory_that_ends_on_the_way_stops_the_run_with_one_line(write_raster, smooth, tmp_path):
    from dataclasses import replace

    class Greedy:
        scale, bands = 2, 3

        def run(self, unit):
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    greedy = replace(bicubic_upscaler(), runner=Greedy())
    with pytest.raises(OutOfMemory, match="smaller workers="):
        upscale_file(write_raster("in.tif", smooth(3, 20, 20)), tmp_path / "out.tif", greedy)
    assert not (tmp_path / "out.tif").exists()


def test_a_dry_run_says_what_would_be_and_writes_nothing(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(3, 300, 200))
    made = plan_file(path, tmp_path / "out.tif", bicubic, tile=128)
    assert (made.width, made.height, made.bands, made.tiles) == (400, 600, 3, 6)
    assert made.output_bytes == 400 * 600 * 3
    assert made.seconds is not None
    for word in ("400 x 600", "6 tiles of 128 + 8", "disk", "memory", "time"):
        assert word in made.summary()
    one = plan_file(
        path, tmp_path / "out.tif", bicubic, bands=(1,), window=Window(0, 0, 64, 64)
    ).summary()
    assert "1 band of" in one
    assert "1 tile of" in one
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize("name", ["out.tif", "out.cog.tif", "out.png", "out.jpg"])
def test_a_dry_run_tells_and_checks_the_disk_that_a_run_asks_for(
    write_raster, smooth, tmp_path, bicubic, monkeypatch, name
):
    path, target = write_raster("in.tif", smooth(3, 300, 300), photometric="RGB"), tmp_path / name
    needed = plan_file(path, target, bicubic).disk_bytes
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed - 1)
    said = []
    for attempt in (plan_file, upscale_file):
        with pytest.raises(NoSpace) as caught:
            attempt(path, target, bicubic)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed)
    plan_file(path, target, bicubic)
    upscale_file(path, target, bicubic)


def test_a_dry_run_raises_what_a_run_would(write_raster, smooth, tmp_path, bicubic, monkeypatch):
    path, target = write_raster("in.tif", smooth(3, 300, 300)), tmp_path / "out.tif"
    target.write_text("mine")
    with pytest.raises(TargetExists):
        plan_file(path, target, bicubic)
    plan_file(path, target, bicubic, overwrite=True)
    target.unlink()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_file(path, target, bicubic, progress=stop)
    plan_file(path, target, bicubic)
    with pytest.raises(JobChanged, match=r"settings\.tile: 64 -> 32"):
        plan_file(path, target, bicubic, tile=32)
    plan_file(path, target, bicubic, tile=32, restart=True)
    monkeypatch.setattr(estimate, "available_memory", lambda: 1000)
    with pytest.raises(OutOfMemory):
        plan_file(path, target, bicubic)


def test_memory_is_that_of_the_machine_within_the_limit_of_its_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "meminfo")
    for left, there in ((None, 8_192_000), (100_000, 100_000), (9_000_000, 8_192_000)):
        monkeypatch.setattr(estimate, "memory_left", lambda left=left: left)
        assert estimate.available_memory() == there


def test_where_memory_holds_fewer_workers_fewer_compute(
    write_raster, smooth, tmp_path, bicubic, monkeypatch, caplog
):
    """Any number of them gives the same bytes, so this is nothing to refuse a scene for, whoever
    chose the number.
    """
    path = write_raster("in.tif", smooth(3, 600, 600))
    whole = plan_file(path, tmp_path / "out.tif", bicubic, tile=64, workers=64)
    assert whole.workers == 64
    there = (whole.memory_bytes - whole.program_bytes) // 2
    monkeypatch.setattr(estimate, "available_memory", lambda: there)
    with caplog.at_level("INFO", "repmamba"):
        half = plan_file(path, tmp_path / "out.tif", bicubic, tile=64, workers=64)
    assert 1 < half.workers < 40
    assert half.memory_bytes - half.program_bytes <= there
    assert f"workers: {half.workers} instead of 64" in caplog.text
    upscale_file(path, tmp_path / "out.tif", bicubic, tile=64, workers=64)
    monkeypatch.undo()
    upscale_file(path, tmp_path / "two.tif", bicubic, tile=64, workers=2)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


@pytest.mark.parametrize("kind", ["uint8 nodata", "uint16 nodata", "float NaN", "mask"])
def test_a_scene_without_a_valid_pixel_says_so(
    write_raster, smooth, tmp_path, bicubic, caplog, kind
):
    data = smooth(
        3, 40, 50, {"f": "float32"}.get(kind[0], kind.split()[0] if kind[0] == "u" else "uint8")
    )
    how = {}
    if kind == "mask":
        how["mask"] = np.zeros((40, 50), bool)
    elif kind == "float NaN":
        data[:] = np.nan
    else:
        data[:], how["nodata"] = 7, 7
    path = write_raster("none.tif", data, **how)
    upscale_file(path, tmp_path / "out.tif", bicubic)
    assert "none.tif has no valid pixel: the whole result is missing." in caplog.text
    caplog.clear()
    if kind == "uint8 nodata":
        data[:, 30:, 30:] = 90
        part = write_raster("part.tif", data, **how)
        upscale_file(part, tmp_path / "corner.tif", bicubic, window=(0, 0, 20, 20), tile=16)
        assert "part.tif has no valid pixel in the part asked for" in caplog.text
        caplog.clear()
        upscale_file(part, tmp_path / "all.tif", bicubic, tile=16)
        assert "no valid pixel" not in caplog.text


def test_a_mosaic_of_sixteen_bit_tiles_is_one_scene(write_raster, smooth, tmp_path, bicubic):
    """A virtual raster over four files: no seam where they meet, and the same as the same pixels in
    one file.
    """
    from affine import Affine

    data = smooth(3, 128, 160, "uint16", 200, 9000)
    place = Affine(10, 0, 500000, 0, -10, 4100000)
    parts = []
    for row in (0, 64):
        for col in (0, 80):
            name = f"part{row}-{col}.tif"
            shift = place @ Affine.translation(col, row)
            write_raster(name, data[:, row : row + 64, col : col + 80], transform=shift)
            parts.append((name, row, col))
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}">'
        + "".join(
            "<SimpleSource><SourceFilename "
            f'relativeToVRT="1">{name}</SourceFilename><SourceBand>{band}</SourceBand>'
            '<SrcRect xOff="0" yOff="0" xSize="80" ySize="64"/>'
            f'<DstRect xOff="{col}" yOff="{row}" xSize="80" ySize="64"/>'
            "</SimpleSource>"
            for name, row, col in parts
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (tmp_path / "mosaic.vrt").write_text(
        '<VRTDataset rasterXSize="160" rasterYSize="128"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000, 10, 0, 4100000, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    upscale_file(tmp_path / "mosaic.vrt", tmp_path / "mosaic.tif", bicubic)
    upscale_file(write_raster("one.tif", data), tmp_path / "whole.tif", bicubic)
    with (
        rasterio.open(tmp_path / "mosaic.tif") as mosaic,
        rasterio.open(tmp_path / "whole.tif") as whole,
    ):
        np.testing.assert_array_equal(mosaic.read(), whole.read())
        assert mosaic.transform == whole.transform


def test_an_upscaler_of_another_scale_is_refused_with_what_to_do(
    write_raster, smooth, tmp_path, bicubic
):
    path = write_raster("in.tif", smooth(1, 20, 20))
    with pytest.raises(
        UsageError,
        match="is of x2, and x3 was asked for: load weights of x3, or leave the scale out",
    ):
        upscale_file(path, tmp_path / "out.tif", bicubic, scale=3)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "levels"), [("float32", 1), ("bfloat16", 8)])
def test_a_gpu_gives_the_pixels_of_the_cpu(tmp_path, precision, levels):
    results = []
    for device in ("cpu", "cuda"):
        target = tmp_path / f"{device}.tif"
        kind = "float32" if device == "cpu" else precision
        upscale_file(
            EXAMPLES / "colorado.tif",
            target,
            device=device,
            precision=kind,
            window=(0, 0, 160, 160),
        )
        with rasterio.open(target) as raster:
            results.append(raster.read().astype(int))
    assert np.abs(results[0] - results[1]).max() <= levels
