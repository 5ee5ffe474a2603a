"""--nodata: a number that no header declares is missing and written into the result; a warning asks
for it.
"""

import warnings

import numpy as np
import pytest
import rasterio

from repmamba.errors import JobChanged, UndeclaredNodata, UsageError
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result.receipt import read_receipt, receipt_path

FILLS = [  # of a scene from 300 to 4000, or 0.02 to 0.6
    ("float32", -9999.0),
    ("float32", -3.4028235e38),
    ("float64", -1.7976931348623157e308),
    ("float32", 1e20),
    ("int16", -9999),
    ("int16", 32767),
    ("int32", -2147483648),
    ("uint16", 65535),
    ("uint16", 0),
]


def scene(smooth, dtype):
    low, high = (0.02, 0.6) if np.dtype(dtype).kind == "f" else (300, 4000)
    return smooth(1, 96, 96, dtype, low, high)


def enlarged(path, upscaler, **options):
    """The result and the warnings of nodata."""
    target = path.with_name("out.tif")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndeclaredNodata)
        upscale_file(path, target, upscaler, overwrite=True, restart=True, **options)
    with rasterio.open(target) as file:
        told = [str(each.message) for each in caught if each.category is UndeclaredNodata]
        assert {each.filename for each in caught} <= {__file__}  # the line that called
        return file.read(), file.nodata, told


@pytest.mark.parametrize(("dtype", "number"), FILLS)
@pytest.mark.parametrize("rows", [1, 24, 80])
def test_a_fill_that_is_not_declared_is_named_and_changes_nothing_far_from_it(
    write_raster, smooth, bicubic, dtype, number, rows
):
    data = scene(smooth, dtype)
    clean, _, told = enlarged(write_raster("in.tif", data), bicubic)
    assert not told
    data[0, :rows] = number
    result, nodata, (told,) = enlarged(write_raster("in.tif", data), bicubic)
    assert nodata is None
    assert f"{np.dtype(dtype).type(number)!s} in {100 * rows / 96:.3g} % of it, " in told
    assert "all others (" in told
    assert "nodata=NUMBER" in told
    apart = slice(2 * (rows + 6), None)
    error = np.abs(result[0, apart].astype(float) - clean[0, apart])
    assert error.mean() < 0.002 * clean.std(dtype=float)


@pytest.mark.parametrize(("dtype", "number"), FILLS)
def test_the_number_given_is_missing_kept_and_declared(
    write_raster, smooth, bicubic, dtype, number
):
    data = scene(smooth, dtype)
    data[0, :20, :30] = number
    missing = np.zeros((96, 96), bool)
    missing[:20, :30] = True
    expected, _, _ = enlarged(write_raster("in.tif", data, nodata=number), bicubic)
    result, nodata, told = enlarged(write_raster("in.tif", data), bicubic, nodata=number)
    assert not told
    assert np.dtype(dtype).type(nodata) == np.dtype(dtype).type(number)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(
        result[0] == np.dtype(dtype).type(number), missing.repeat(2, 0).repeat(2, 1)
    )


def test_nan_can_be_declared(write_raster, smooth, bicubic):
    data = scene(smooth, "float32")
    data[0, :20] = np.nan
    result, nodata, _ = enlarged(write_raster("in.tif", data), bicubic, nodata=np.nan)
    assert np.isnan(nodata)
    assert np.isnan(result[0, :40]).all()
    assert np.isfinite(result[0, 40:]).all()


def test_each_band_can_have_a_number_of_its_own(write_raster, smooth, bicubic):
    data = smooth(2, 60, 60, "int16", 300, 4000)
    data[0, :20], data[1, 10:30] = -9999, 0
    result, nodata, told = enlarged(write_raster("in.tif", data), bicubic, nodata=(-9999, 0))
    assert (nodata, told) == (None, [])
    np.testing.assert_array_equal(result[0] == -9999, (data[0] == -9999).repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(result[1] == 0, (data[1] == 0).repeat(2, 0).repeat(2, 1))
    with rasterio.open(write_raster("in.tif", data).with_name("out.tif")) as file:
        both = (data[0] == -9999) & (data[1] == 0)
        np.testing.assert_array_equal(file.dataset_mask() == 0, both.repeat(2, 0).repeat(2, 1))


def test_what_is_given_takes_the_place_of_what_is_declared(write_raster, smooth, bicubic):
    data = scene(smooth, "int16")
    data[0, :10], data[0, 10:20] = -9999, -32768
    path = write_raster("in.tif", data, nodata=-32768)
    result, nodata, told = enlarged(path, bicubic, nodata=-9999)
    assert nodata == -9999
    assert (result[0, :20] == -9999).all()
    assert "-32768 in " in told[0]


@pytest.mark.parametrize(
    ("dtype", "number", "bands"), [("uint8", 0, 3), ("int16", 0, 1), ("float32", -9999, 2)]
)
def test_none_makes_a_declared_nodata_and_what_looks_like_one_data(
    write_raster, smooth, bicubic, dtype, number, bands
):
    data = smooth(bands, 60, 60, dtype, 40, 200)
    data[:, :20] = number
    (expected, _, told) = enlarged(write_raster("in.tif", data), bicubic)
    assert len(told) == 1
    assert told[0].endswith("if not, nodata='none'.")
    for declared in ({}, {"nodata": number}):
        path = write_raster("in.tif", data, **declared)
        result, nodata, told = enlarged(path, bicubic, nodata="none")
        assert (nodata, told) == (None, [])
        np.testing.assert_array_equal(result, expected)
        with rasterio.open(path.with_name("out.tif")) as file:
            assert file.dataset_mask().all()
        decided = plan_file(path, path.with_name("new.tif"), bicubic, nodata="none").decisions
        assert decided["missing"] == "none, as given"


@pytest.mark.parametrize("told", ["mask", "alpha"])
def test_none_leaves_a_mask_and_alpha_as_they_are(write_raster, smooth, bicubic, told):
    data = smooth(4 if told == "alpha" else 3, 60, 60)
    valid = np.ones((60, 60), bool)
    valid[50:] = False
    if told == "alpha":
        data[3] = np.where(valid, 255, 0)
        path = write_raster("in.tif", data, photometric="RGB", alpha="YES", nodata=7)
    else:
        path = write_raster("in.tif", data, photometric="RGB", mask=valid, nodata=7)
    _, nodata, _ = enlarged(path, bicubic, nodata="none")
    assert nodata is None
    with rasterio.open(path.with_name("out.tif")) as file:
        np.testing.assert_array_equal(file.dataset_mask() != 0, valid.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("told", ["mask", "alpha"])
def test_it_is_missing_beside_a_mask_or_alpha_too(write_raster, smooth, bicubic, told):
    data = smooth(4 if told == "alpha" else 3, 60, 60)
    data[:3, :20] = 7
    data[:3, 20:] = np.clip(data[:3, 20:], 8, None)
    valid = np.ones((60, 60), bool)
    valid[50:] = False
    if told == "alpha":
        data[3] = np.where(valid, 255, 0)
        path = write_raster("in.tif", data, photometric="RGB", alpha="YES")
    else:
        path = write_raster("in.tif", data, photometric="RGB", mask=valid)
    result, nodata, _ = enlarged(path, bicubic, nodata=7)
    assert nodata == 7
    valid[:20] = False
    large = valid.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal((result[:3] == 7).all(0), ~large)
    np.testing.assert_array_equal((result[:3] == 7).any(0), ~large)
    if told == "alpha":
        np.testing.assert_array_equal(result[3], np.where(large, 255, 0))
    else:
        with rasterio.open(path.with_name("out.tif")) as file:
            np.testing.assert_array_equal(file.read_masks(1) != 0, large)


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_a_format_without_nodata_tells_of_it_by_other_means(
    write_raster, smooth, tmp_path, bicubic, name
):
    data = smooth(3, 40, 40)
    data[:, :10] = 0
    path = write_raster("in.tif", data, photometric="RGB")
    upscale_file(path, tmp_path / name, bicubic, nodata=0)
    with rasterio.open(tmp_path / name) as file:
        missing = file.dataset_mask() == 0
    np.testing.assert_array_equal(missing, np.arange(80)[:, None].repeat(80, 1) < 20)


@pytest.mark.parametrize(
    ("dtype", "nodata", "says"),
    [
        (
            "uint8",
            -9999,
            "Nodata -9999 is not a number of type uint8, which holds whole numbers from 0 to 255",
        ),
        ("uint16", 65536, "not a number of type uint16"),
        ("int16", np.nan, "Nodata nan is not a number of type int16"),
        ("int32", 0.5, "not a number of type int32"),
        ("float32", 1e300, "not a number of type float32"),
        (
            "uint8",
            (1, 2),
            "has 2 numbers, and .*in.tif has 3 bands: give one number, or one per band",
        ),
        ("uint8", (), r"nodata=\(\): give a number, one for each band, or 'none'"),
        ("uint8", "no", "nodata='no': give a number, one for each band, or 'none'"),
    ],
)
def test_a_nodata_that_cannot_be_is_refused_in_one_line(
    write_raster, smooth, bicubic, tmp_path, dtype, nodata, says
):
    path = write_raster("in.tif", smooth(3, 20, 20, dtype))
    with pytest.raises(UsageError, match=says) as refused:
        upscale_file(path, tmp_path / "out.tif", bicubic, nodata=nodata)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.tif").exists()


def test_a_virtual_raster_takes_it_too(write_raster, smooth, bicubic, tmp_path):
    data = scene(smooth, "int16")
    data[0, :20] = -9999
    write_raster("in.tif", data)
    (tmp_path / "in.vrt").write_text(
        '<VRTDataset rasterXSize="96" rasterYSize="96"><SRS>EPSG:32633</SRS><VRTRasterBand '
        'dataType="Int16" band="1">'
        "<SimpleSource><SourceFilename "
        'relativeToVRT="1">in.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        "</VRTDataset>"
    )
    result, nodata, told = enlarged(tmp_path / "in.vrt", bicubic, nodata=-9999)
    assert (nodata, told) == (-9999, [])
    assert (result[0, :40] == -9999).all()
    assert (result[0, 40:] > 0).all()


def test_the_receipt_and_a_stopped_run_know_it(write_raster, smooth, tmp_path, bicubic):
    data = scene(smooth, "int16")
    path, target = write_raster("in.tif", data), tmp_path / "out.tif"

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_file(path, target, bicubic, nodata=-9999, progress=stop)
    with pytest.raises(JobChanged, match=r"nodata: \[-9999.0\] -> \[None\]"):
        upscale_file(path, target, bicubic)
    upscale_file(path, target, bicubic, nodata=-9999)
    assert read_receipt(receipt_path(target)).job["settings"]["nodata"] == [-9999.0]


def test_a_collar_of_zeros_in_eight_bits_is_named_from_a_sample(write_raster, smooth, bicubic):
    data = smooth(3, 300, 300)
    data[:, np.add.outer(np.arange(300), np.arange(300)) < 60] = 0
    _, _, (told,) = enlarged(write_raster("in.tif", data, photometric="RGB"), bicubic)
    assert "undeclared nodata: of a sample, 0 in " in told
    picture = write_raster("picture.tif", data, photometric="RGB", crs=None, transform=None)
    assert not enlarged(picture, bicubic)[2]


def test_a_dry_run_says_what_is_missing_and_who_says_so(write_raster, smooth, bicubic, tmp_path):
    path = write_raster("in.tif", scene(smooth, "int16"), nodata=-1)
    for options, says in (
        ({}, "where a band is -1, as the file declares"),
        ({"nodata": -9999}, "-9999, as given"),
    ):
        made = plan_file(path, tmp_path / "out.tif", bicubic, **options)
        assert says in made.decisions["missing"]
        assert says in made.summary()
