"""The radiometric map is reversible, and results are clipped only to the type."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.io import MemoryFile

from repmamba.errors import UsageError
from repmamba.pixels.radiometry import DTYPES, Radiometry, type_range

INTEGERS = [dtype for dtype in DTYPES if np.dtype(dtype).kind in "iu"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_every_number_of_a_type_is_restored(dtype):
    low, high = (int(limit) for limit in type_range(dtype))
    raw = np.arange(low, high + 1).astype(dtype).reshape(1, 1, -1)
    for radiometry in (
        Radiometry.of_type(dtype, 1),
        Radiometry(dtype, (low + 7.0,), (low + 187.5,)),
    ):
        np.testing.assert_array_equal(radiometry.from_unit(radiometry.to_unit(raw)), raw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_far_outside_the_range_are_restored_to_the_precision_of_unit(dtype):
    radiometry = Radiometry(dtype, (10.0,), (110.0,))
    raw = np.array([0, 10, 60, 110, min(250, type_range(dtype)[1])]).astype(dtype).reshape(1, 1, -1)
    np.testing.assert_allclose(
        radiometry.from_unit(radiometry.to_unit(raw)).astype(float),
        raw.astype(float),
        rtol=1e-5,
        atol=1e-5,
    )
    assert radiometry.to_unit(raw).ravel()[[1, 3]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("number", [-3.4e38, 1e300, -np.inf])
def test_the_sum_of_any_four_unit_values_is_finite_in_float32(number):
    unit = Radiometry("float64", (0.0,), (0.1,)).to_unit(np.full((1, 2, 2), number))
    assert np.isfinite(unit.sum(dtype=np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_clipped_only_to_the_type(dtype):
    radiometry = Radiometry(dtype, (0.0,), (100.0,))
    lowest, highest = type_range(dtype)
    result = radiometry.from_unit(np.array([-np.inf, 1.2, np.inf]).reshape(1, 1, -1)).ravel()
    assert float(result[0]) == lowest
    assert float(result[1]) == pytest.approx(120, rel=1e-6)
    assert float(result[2]) == highest
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", INTEGERS)
@given(
    exact=hnp.arrays(np.float64, (1, 4, 4), elements=st.floats(-5, 260)), nodata=st.integers(0, 127)
)
def test_a_valid_integer_never_equals_nodata_and_moves_by_one(dtype, exact, nodata):
    radiometry = Radiometry(dtype, (0.0,), (1.0,))
    free = radiometry.from_unit(exact)
    kept = radiometry.from_unit(exact, nodata=[nodata])
    assert not (kept == nodata).any()
    np.testing.assert_array_equal(kept[free != nodata], free[free != nodata])
    assert (np.abs(kept.astype(float) - nodata)[free == nodata] == 1).all()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("end", [0, 1])
def test_a_nodata_at_the_end_of_the_type_moves_inwards(dtype, end):
    nodata = type_range(dtype)[end]
    unit = np.full((1, 2, 2), -1e12 if end == 0 else 1e12)
    result = Radiometry(dtype, (0.0,), (100.0,)).from_unit(unit, nodata=[nodata])
    assert float(result[0, 0, 0]) == (nodata + 1 if end == 0 else nodata - 1)


def test_a_numpy_nodata_does_not_wrap_around():
    radiometry = Radiometry.of_type("uint16", 1)
    # a quarter below 0: rounds to 0, and must not become 65535
    unit = np.full((1, 1, 1), -0.25 / 65535, np.float32)
    assert radiometry.from_unit(unit, nodata=[np.uint16(0)]).item() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [0.0, -9999.0, 0.1, "lowest", "highest"])
def test_a_valid_float_moves_to_the_next_float_that_is_not_taken_for_nodata(dtype, nodata):
    if isinstance(nodata, str):
        nodata = type_range(dtype)[nodata == "highest"]
    result = Radiometry(dtype, (0.0,), (1.0,)).from_unit(
        np.full((1, 1, 1), nodata), nodata=[nodata]
    )
    value = result[0, 0, 0]
    assert value != np.dtype(dtype).type(nodata)
    assert np.isfinite(value)
    assert abs(float(value) - nodata) <= abs(nodata) * 7e-7 + 1e-37


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [0.0, -9999.0, 0.1, 1.0, -32768.0, 1e-20])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_does_not_take_a_valid_float_for_nodata(dtype, nodata):
    place = np.dtype(dtype).type(nodata)
    around = np.concatenate(
        [
            place * (1 + np.linspace(-1e-6, 1e-6, 401)),
            place + np.spacing(place) * np.arange(-9, 10),
            [0.5 * place],
        ]
    )
    result = Radiometry(dtype, (0.0,), (1.0,)).from_unit(
        around[None, None].astype(float), nodata=[nodata]
    )
    profile = {
        "driver": "GTiff",
        "width": around.size,
        "height": 1,
        "count": 1,
        "dtype": dtype,
        "nodata": nodata,
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(result)
        with memory.open() as file:
            assert file.dataset_mask().all()
    np.testing.assert_allclose(result[0, 0], around, rtol=1e-6, atol=1e-40)


def test_nan_stays_nan_and_a_nan_nodata_changes_nothing():
    radiometry = Radiometry("float32", (0.0,), (2.0,))
    raw = np.array([np.nan, 1.0], np.float32).reshape(1, 1, 2)
    np.testing.assert_array_equal(
        radiometry.from_unit(radiometry.to_unit(raw), nodata=[np.nan]), raw
    )


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (7.0, 3.0), (0.0, np.inf), (np.nan, 1.0)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(UsageError, match="holds no values"):
        Radiometry("uint16", (low,), (high,))


def test_complex_pixels_are_refused():
    with pytest.raises(UsageError, match="complex64 cannot be enlarged"):
        Radiometry.of_type("complex64", 1)
