"""Alpha stands where the source has it, and is only what the user takes for it."""

import logging

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from repmamba.errors import UsageError
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result.overviews import halved

ORDERS = {
    "middle": "red green blue alpha undefined",
    "first": "alpha red green blue",
    "last": "red green blue alpha",
    "before grey": "alpha gray",
    "two": "red green blue alpha alpha",
    "two apart": "alpha red green alpha blue undefined",
}


def labelled(write_raster, smooth, colours, dtype="uint8", hole=slice(0, 12), **profile):
    """Bands with these colours; each alpha is 0 in a hole, and 200 elsewhere."""
    names = colours.split()
    data = smooth(len(names), 48, 40, dtype, 30, 220)
    for band, name in enumerate(names):
        if name == "alpha":
            data[band] = 200
            data[band, hole] = 0
    path = write_raster("in.tif", data, **profile)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp[name] for name in names]
        for band, name in enumerate(names, 1):
            file.set_band_description(band, f"{band} {name}")
    with rasterio.open(path) as file:
        assert [colour.name for colour in file.colorinterp] == names
    return path, data


def opened(path):
    with rasterio.open(path) as file:
        return file.read(), [colour.name for colour in file.colorinterp], list(file.descriptions)


@pytest.mark.parametrize("name", ["out.tif", "out.cog.tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("colours", ORDERS.values(), ids=ORDERS)
def test_bands_come_back_in_the_order_of_the_source(
    write_raster, smooth, tmp_path, bicubic, colours, dtype, name
):
    path, data = labelled(write_raster, smooth, colours, dtype)
    upscale_file(path, tmp_path / name, bicubic)
    result, found, descriptions = opened(tmp_path / name)
    assert found == colours.split()
    assert descriptions == [f"{band} {colour}" for band, colour in enumerate(found, 1)]
    alpha = found.index("alpha")
    np.testing.assert_array_equal(result[alpha], data[alpha].repeat(2, 0).repeat(2, 1))
    # what is missing keeps its numbers, and the rest looks like its source
    for band in range(len(data)):
        np.testing.assert_array_equal(result[band, :24], data[band, :12].repeat(2, 0).repeat(2, 1))
        if band != alpha:
            small = result[band].reshape(48, 2, 40, 2).mean((1, 3))
            assert np.abs(small - data[band])[13:-1, 1:-1].max() < 8


def test_bands_asked_for_come_in_that_order_and_alpha_last(write_raster, smooth, tmp_path, bicubic):
    path, _ = labelled(write_raster, smooth, ORDERS["middle"])
    upscale_file(path, tmp_path / "out.tif", bicubic, bands=(5, 1))
    assert opened(tmp_path / "out.tif")[2] == ["5 undefined", "1 red", "4 alpha"]


def test_pictures_have_alpha_last(write_raster, smooth, tmp_path, bicubic):
    path, data = labelled(write_raster, smooth, ORDERS["first"])
    upscale_file(path, tmp_path / "out.png", bicubic)
    result, found, _ = opened(tmp_path / "out.png")
    assert found == ["red", "green", "blue", "alpha"]
    np.testing.assert_array_equal(result[3], data[0].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("how", [{"alpha": False}, {"bands": (1, 2, 3, 4)}])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_infrared_that_is_called_alpha_is_enlarged_where_the_user_says_so(
    write_raster, smooth, tmp_path, bicubic, how, dtype
):
    data = smooth(4, 48, 40, dtype, 0, 220)
    data[3, 10:20, 10:20] = 0  # water
    paths = []
    for name, alpha in (("called.tif", "YES"), ("not.tif", "NO")):
        path = write_raster(name, data, photometric="RGB", alpha=alpha)
        upscale_file(path, tmp_path / f"out_{name}", bicubic, **(how if alpha == "YES" else {}))
        paths.append(tmp_path / f"out_{name}")
    with rasterio.open(paths[0]) as called, rasterio.open(paths[1]) as plain:
        np.testing.assert_array_equal(called.read(), plain.read())
        assert called.colorinterp == plain.colorinterp
        assert called.dataset_mask().all()


def test_bands_can_name_one_of_two_alphas_as_data(write_raster, smooth, tmp_path, bicubic):
    path, _ = labelled(write_raster, smooth, ORDERS["two"])
    upscale_file(path, tmp_path / "out.tif", bicubic, bands=(4, 1, 2, 3))
    _, found, descriptions = opened(tmp_path / "out.tif")
    assert descriptions == ["4 alpha", "1 red", "2 green", "3 blue", "5 alpha"]
    assert found == ["undefined", "red", "green", "blue", "alpha"]


def test_nodata_counts_where_the_user_says_that_there_is_no_alpha(
    write_raster, smooth, tmp_path, bicubic
):
    data = smooth(4, 40, 40, "int16", 100, 900)
    data[:, :10] = -9999
    path = write_raster("in.tif", data, photometric="RGB", alpha="YES", nodata=-9999)
    upscale_file(path, tmp_path / "out.tif", bicubic, alpha=False)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.nodata == -9999
        np.testing.assert_array_equal(
            (file.read() == -9999).all(0), np.arange(80)[:, None].repeat(80, 1) < 20
        )


def test_the_log_and_a_dry_run_say_what_is_taken_for_alpha(
    write_raster, smooth, tmp_path, bicubic, caplog
):
    path, _ = labelled(write_raster, smooth, ORDERS["middle"])
    with caplog.at_level(logging.INFO, "repmamba"):
        made = plan_file(path, tmp_path / "out.tif", bicubic)
    assert "alpha: band 4, as the file says (alpha=False if it is data)." in caplog.text
    assert "alpha    band 4, as the file says" in made.summary()
    assert "alpha    none" in plan_file(path, tmp_path / "out.tif", bicubic, alpha=False).summary()


def test_lossy_webp_is_refused_where_alpha_is_not_the_last(write_raster, smooth, tmp_path, bicubic):
    path, _ = labelled(write_raster, smooth, ORDERS["first"])
    with pytest.raises(UsageError, match="WEBP needs alpha as the last band"):
        upscale_file(path, tmp_path / "out.tif", bicubic, creation={"COMPRESS": "WEBP"})


def test_an_overview_of_alpha_that_is_not_last_leaves_out_what_is_transparent():
    data = np.array([[[255, 0], [255, 0]], [[10, 99], [20, 99]]], np.uint8)
    assert halved(data, None, alpha=0)[0].ravel().tolist() == [128, 15]
