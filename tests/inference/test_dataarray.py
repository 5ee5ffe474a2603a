"""xarray: a DataArray comes back larger, in its place, missing pixels still missing."""

import dask
import numpy as np
import pytest
import rioxarray  # noqa: F401  # arrays have .rio
import xarray
from affine import Affine

from repmamba import load
from repmamba.errors import ShapeMismatch, UsageError


@pytest.fixture(scope="session")
def upscaler(small_weights):
    return load(small_weights)


def scene(values, dims=("band", "y", "x"), *, nodata=None, crs="EPSG:32633"):
    transform = Affine(10, 0, 500000, 0, -10, 4100000)
    sizes = dict(zip(dims, values.shape, strict=True))
    coords = {
        "x": transform.c + 10 * (np.arange(sizes["x"]) + 0.5),
        "y": transform.f - 10 * (np.arange(sizes["y"]) + 0.5),
    }
    if "band" in dims:
        coords["band"] = [f"B{number}" for number in range(sizes["band"])]
    array = xarray.DataArray(
        values, dims=dims, coords=coords, name="scene", attrs={"sensor": "one"}
    )
    array = array.rio.write_crs(crs).rio.write_transform(transform)
    return array if nodata is None else array.rio.write_nodata(nodata)


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("y", "x")])
def test_a_dataarray_keeps_dimensions_georeferencing_names_and_attributes(upscaler, dims):
    sizes = {"band": 3, "y": 8, "x": 11}
    values = (
        np.random.default_rng(0).integers(0, 256, [sizes[name] for name in dims]).astype(np.uint8)
    )
    before = scene(values, dims)
    after = upscaler.upscale(before)
    assert after.dims == before.dims
    assert after.dtype == before.dtype
    assert (after.sizes["y"], after.sizes["x"]) == (16, 22)
    assert (after.name, after.attrs["sensor"]) == ("scene", "one")
    assert after.rio.crs == before.rio.crs
    assert after.rio.bounds() == pytest.approx(before.rio.bounds(), abs=1e-6)
    assert after.x.values[0] == pytest.approx(500002.5)
    if "band" in dims:
        assert list(after.band.values) == ["B0", "B1", "B2"]
        as_numpy = before.transpose("y", "x", "band").values
        np.testing.assert_array_equal(
            after.transpose("y", "x", "band").values, upscaler.upscale(as_numpy)
        )


@pytest.mark.parametrize(
    "chosen",
    [
        lambda array: array[::2, ::2],
        lambda array: array.coarsen(x=2, y=2).mean(),
        lambda array: array.sortby("y"),
        lambda array: array[:, ::-1],
        lambda array: array[::3, 4:5],
    ],
    ids=["every second", "means of blocks", "south up", "east first", "one column"],
)
def test_a_slice_of_a_raster_is_placed_by_its_coordinates(upscaler, chosen):
    """rioxarray keeps the transform of the file through all of these."""
    before = chosen(scene(np.random.default_rng(3).random((8, 12), np.float32), ("y", "x")))
    after = upscaler.upscale(before)
    for axis, step in (("x", 10), ("y", -10)):
        np.testing.assert_allclose(after[axis].values.reshape(-1, 2).mean(1), before[axis].values)
        if before.sizes[axis] > 1:
            step = float(before[axis][1] - before[axis][0])
        np.testing.assert_allclose(np.diff(after[axis].values), step / 2)
    corner = after.rio.transform() @ (0.5, 0.5)
    assert corner == pytest.approx((after.x.values[0], after.y.values[0]))


def test_one_column_without_a_transform_is_placed_by_its_coordinate(upscaler):
    array = xarray.DataArray(
        np.zeros((8, 1), np.float32), dims=("y", "x"), coords={"y": np.arange(8.0), "x": [3.0]}
    )
    assert upscaler.upscale(array).x.values == pytest.approx([2.75, 3.25])


def test_missing_pixels_stay_missing_and_affect_no_others(upscaler):
    values = np.random.default_rng(1).integers(50, 200, (3, 20, 20)).astype(np.uint16)
    values[:, 5:8, 5:8] = 0
    values[0, 15, 15] = 0  # in only one band: data
    after = upscaler.upscale(scene(values, nodata=0))
    expected = np.zeros((40, 40), bool)
    expected[10:16, 10:16] = True
    np.testing.assert_array_equal((after.values == 0).all(0), expected)
    assert after.rio.nodata == 0


def test_a_float_nodata_value_is_only_missing_in_its_band(upscaler):
    values = np.random.default_rng(4).random((2, 24, 24), np.float32)
    values[1, :8] = -9999
    after = upscaler.upscale(scene(values, nodata=-9999)).values
    assert (after[1, :16] == -9999).all()
    assert np.abs(after[0]).max() < 3
    assert np.abs(after[1, 16:]).max() < 3


def test_statistics_of_the_input_are_dropped(upscaler):
    before = scene(np.zeros((8, 8), np.uint8), ("y", "x")).assign_attrs(
        STATISTICS_MAXIMUM=200, wavelength=665
    )
    assert {"sensor", "wavelength"} == set(upscaler.upscale(before).attrs)


def test_an_array_without_coordinates_gets_none(upscaler):
    values = np.zeros((8, 10), np.float32)
    assert not upscaler.upscale(xarray.DataArray(values, dims=("y", "x"))).coords
    placed = xarray.DataArray(values, dims=("y", "x")).rio.write_transform(
        Affine(10, 0, 500, 0, -10, 400)
    )
    after = upscaler.upscale(placed)
    assert set(after.coords) == {"spatial_ref"}
    assert after.rio.transform() == Affine(5, 0, 500, 0, -5, 400)


def test_more_dimensions_than_bands_are_refused(upscaler):
    array = xarray.DataArray(np.zeros((2, 3, 4, 4)), dims=("time", "band", "y", "x"))
    with pytest.raises(ShapeMismatch, match="time, band, y, x is not an image"):
        upscaler.upscale(array)


def test_a_dataset_is_refused_with_what_to_give(upscaler):
    with pytest.raises(UsageError, match=r"several arrays: give one"):
        upscaler.upscale(xarray.Dataset({"scene": scene(np.zeros((3, 8, 8), np.uint8))}))


def test_unknown_dimension_names_are_refused_until_they_are_set(upscaler):
    values = np.random.default_rng(2).integers(0, 256, (8, 11)).astype(np.uint8)
    array = xarray.DataArray(values, dims=("lat", "lon"))
    with pytest.raises(UsageError, match=r"dimensions lat, lon .*set_spatial_dims"):
        upscaler.upscale(array)
    named = upscaler.upscale(array.rio.set_spatial_dims(x_dim="lon", y_dim="lat"))
    assert (named.dims, named.shape) == (("lat", "lon"), (16, 22))


def along(x, y=None):
    """An array with these coordinates."""
    x = np.asarray(x)
    y = np.arange(float(8 if y is None else len(y)))[::-1] if y is None else np.asarray(y)
    return xarray.DataArray(
        np.zeros((len(y), len(x)), np.float32), dims=("y", "x"), coords={"y": y, "x": x}
    )


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (
            np.r_[345:360, 0:15] * 1.0,
            r"x are not evenly spaced: the step is 1, then -359 after x=359",
        ),
        (np.r_[170:180, -180:-170] * 1.0, r"then -359 after x=179"),
        (np.r_[0:4, 10:16] * 1.0, r"the step is 1, then 7 after x=3"),
        (np.r_[0:500, 501:1000], r"the step is 1, then 2 after x=499"),
        (np.r_[10:0:-1, -3] * 10.0, r"the step is -10, then -40 after x=10"),
        ([0.0, 1.0, 1.0, 2.0], r"then 0 after x=1"),
        ([3.0, 3.0], r"all of them are 3"),
        ([3.0, 3.0, 3.0], r"all of them are 3"),
        ([0.0, 2.0, 1.0, 3.0], r"then -1 after x=2"),
        ([0.0, np.nan, 2.0], r"number 2 of 3 is nan"),
        ([0.0, 1.0, np.inf], r"number 3 of 3 is inf"),
        (np.array(["a", "b", "c"]), r"numbers are expected"),
        (np.arange("2020-01-01", "2020-01-09", dtype="datetime64[D]"), r"numbers are expected"),
        # Gaussian latitudes
        (np.degrees(np.arcsin(np.polynomial.legendre.leggauss(64)[0])), r"not evenly spaced"),
        (
            np.degrees(np.arcsin(np.polynomial.legendre.leggauss(1280)[0])).astype("f4"),
            r"not evenly spaced",
        ),
        (np.geomspace(1, 2, 20), r"not evenly spaced"),
    ],
)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_uneven_coordinates_are_refused_with_the_first_jump(upscaler, x, says, axis):
    array = along(x) if axis == "x" else along(np.arange(8.0), x)
    with pytest.raises(
        UsageError,
        match=says if axis == "x" else says.replace("x=", "y=").replace("x are", "y are"),
    ):
        upscaler.upscale(array)


@pytest.mark.parametrize(
    "x",
    [
        (np.arange(-180, 180, 1 / 12) + 1 / 24).astype("f4"),
        (np.arange(-180, 180, 1 / 12) + 1 / 24).astype("f4").astype("f8"),
        np.linspace(0, 1, 300),
        np.round(np.arange(0, 10, 1 / 3), 4),
        4_000_000 + np.arange(200) * 0.5,
        (4_000_000 + np.arange(200) * 0.5).astype("f4"),
        (500_000 + np.arange(300) * 0.3).astype("f4"),
        np.arange(20)[::-1],
        np.arange(20, dtype="uint8"),
        np.array([5.0]),
        np.array([5.0, 7.5]),
        np.array([7.5, 5.0]),
        1e-7 * np.arange(50),
    ],
)
def test_coordinates_that_are_even_except_for_rounding_are_interpolated(upscaler, x):
    after = upscaler.upscale(along(x)).x.values
    middles = after.reshape(-1, 2).mean(1)
    step = np.diff(x.astype(float)).mean() if len(x) > 1 else 1
    np.testing.assert_allclose(middles, x.astype(float), atol=0.3 * abs(step))
    assert np.allclose(np.diff(after), step / 2, rtol=1e-3)


def test_an_integer_nodata_value_is_only_missing_in_its_band(upscaler):
    values = np.random.default_rng(4).integers(300, 4000, (2, 24, 24)).astype(np.int16)
    values[1, :8] = -9999
    after = upscaler.upscale(scene(values, nodata=-9999), value_range=(0, 4000)).values
    np.testing.assert_array_equal(after == -9999, (values == -9999).repeat(2, 1).repeat(2, 2))
    assert np.abs(after[1, 16:]).max() < 8000


@pytest.mark.parametrize("nodata", [-9999, np.nan, 256])
def test_a_nodata_value_outside_the_type_is_ignored(upscaler, nodata):
    values = np.random.default_rng(4).integers(0, 255, (3, 8, 8)).astype(np.uint8)
    array = scene(values)
    array.attrs["_FillValue"] = nodata
    np.testing.assert_array_equal(
        upscaler.upscale(array).values, upscaler.upscale(scene(values)).values
    )


@pytest.mark.parametrize("declared", [None, -1.0])
def test_the_nodata_argument_overrides_the_array(upscaler, declared):
    values = np.random.default_rng(4).random((2, 16, 16), np.float32)
    values[:, :4] = -9999
    after = upscaler.upscale(scene(values, nodata=declared), nodata=-9999)
    assert after.rio.nodata == -9999
    assert (after.values[:, :8] == -9999).all()
    assert (after.values[:, 8:] > -3).all()


@pytest.mark.parametrize("encoded", [False, True])
def test_nodata_none_makes_the_nodata_of_the_array_data(upscaler, encoded):
    values = np.random.default_rng(4).random((2, 16, 16), np.float32)
    values[:, :4] = 0.5
    array = scene(values, nodata=0.5)
    if encoded:
        array = array.rio.write_nodata(0.5, encoded=True)
    after = upscaler.upscale(array, nodata="none")
    assert (after.rio.nodata, after.rio.encoded_nodata) == (None, None)
    plain = upscaler.upscale(scene(values, nodata=None))
    np.testing.assert_array_equal(after.values, plain.values)


def test_different_nodata_per_band_leaves_none_declared(upscaler):
    values = np.random.default_rng(4).random((2, 16, 16), np.float32)
    values[0, :4], values[1, :4] = -1, -9999
    after = upscaler.upscale(scene(values, nodata=-9999), nodata=(-1, -9999))
    assert after.rio.nodata is None
    assert (after.values[0, :8] == -1).all()
    assert (after.values[1, :8] == -9999).all()


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("y", "x")])
@pytest.mark.parametrize("chunks", [{"y": 16, "x": 40}, {"y": 7, "x": 9}, {}])
def test_a_lazy_array_stays_lazy_and_has_the_same_numbers(upscaler, dims, chunks):
    values = np.random.default_rng(3).integers(
        0, 4000, [{"band": 4, "y": 53, "x": 37}[name] for name in dims]
    )
    eager = scene(values.astype(np.uint16), dims, nodata=0)
    eager[dict.fromkeys(dims, slice(0, 3))] = 0
    computed = []

    def noted(block):
        computed.append(block.shape)
        return block

    lazy = eager.chunk(chunks)
    lazy = lazy.copy(
        data=lazy.data.map_blocks(
            noted, dtype=lazy.dtype, meta=np.empty((0,) * lazy.ndim, lazy.dtype)
        )
    )
    options = {"value_range": (0, 4000), "tile": 16, "halo": 4}
    expected = upscaler.upscale(eager, **options)
    result = upscaler.upscale(lazy, **options)
    assert not computed
    assert result.chunks is not None
    assert (result.dims, result.dtype, result.sizes) == (
        expected.dims,
        expected.dtype,
        expected.sizes,
    )
    with dask.config.set(scheduler="synchronous"):
        part = result.isel(x=slice(0, 8), y=slice(0, 8)).compute()
    assert len(computed) < 53 * 37 / 60 + 2  # only the chunks around the corner
    assert part.equals(expected.isel(x=slice(0, 8), y=slice(0, 8)))
    xarray.testing.assert_identical(result.compute(scheduler="threads"), expected)


def test_a_lazy_array_is_not_read_to_find_its_range(upscaler):
    lazy = scene(np.zeros((1, 8, 8), np.uint16)).chunk({"x": 4})
    with pytest.raises(UsageError, match=r"value_range='robust' needs.*array\.compute\(\) first"):
        upscaler.upscale(lazy, value_range="robust")
