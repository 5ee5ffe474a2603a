"""Missing pixels are filled smoothly, have no influence, and stay missing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repmamba.errors import UsageError
from repmamba.pixels.nodata import as_nodata, filled, missing_everywhere, repeated, usable


@st.composite
def tiles_with_holes(draw: st.DrawFn):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    known = random.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    return random.random(shape, np.float32), known


@given(tile=tiles_with_holes(), rubbish=st.sampled_from([np.nan, np.inf, -1e30, 255.0]))
def test_the_value_of_a_missing_pixel_has_no_influence(tile, rubbish):
    unit, known = tile
    spoilt = np.where(known, unit, np.float32(rubbish))
    np.testing.assert_array_equal(filled(spoilt, known), filled(unit, known))


@given(tile=tiles_with_holes())
def test_known_values_stay_and_filled_ones_lie_between_them(tile):
    unit, known = tile
    result = filled(unit, known)
    np.testing.assert_array_equal(result[known], unit[known])
    for band, band_known, band_unit in zip(result, known, unit, strict=True):
        if band_known.any():
            lowest, highest = band_unit[band_known].min(), band_unit[band_known].max()
            assert band.min() >= lowest - 1e-6
            assert band.max() <= highest + 1e-6
        else:
            assert (band == 0).all()


def test_a_hole_in_a_gradient_is_filled_close_to_the_gradient():
    gradient = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 64)).copy()
    known = np.ones((1, 64, 64), bool)
    known[:, 20:30, 20:30] = False
    assert np.abs(filled(gradient, known) - gradient).max() < 0.08


@given(tile=tiles_with_holes(), scale=st.sampled_from([2, 3, 4]))
def test_a_repeated_mask_is_the_scaled_footprint(tile, scale):
    _, mask = tile
    hr = repeated(mask, scale)
    assert hr.shape == (mask.shape[0], scale * mask.shape[1], scale * mask.shape[2])
    for row in range(scale):
        for col in range(scale):
            np.testing.assert_array_equal(hr[:, row::scale, col::scale], mask)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_unusable_only_in_its_own_band(bad):
    raw = np.ones((2, 3, 3), np.float32)
    raw[1, 0, 0] = bad
    valid = np.ones((3, 3), bool)
    valid[2, 2] = False
    known = usable(raw, valid)
    assert not known[1, 0, 0]
    assert known[0, 0, 0]
    assert not known[:, 2, 2].any()
    assert known.sum() == 15


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
@pytest.mark.parametrize(
    ("nodata", "missing"), [(-9999.0, 2), (np.nan, 0), (None, 0), (-1.7976931348623157e308, 0)]
)
def test_a_number_that_is_nodata_is_unusable_only_in_its_own_band(dtype, nodata, missing):
    raw = np.ones((2, 3, 3), dtype)
    raw[:, 0, 0] = raw[1, 0, 1] = -9999
    known = usable(raw, np.ones((3, 3), bool), (None, nodata))
    assert known[0].all()
    assert (~known[1]).sum() == missing


@pytest.mark.parametrize(
    ("dtype", "nodata", "missing"),
    [
        ("int16", (-9999, 0), [True, False, False]),
        ("float32", (-9999, np.nan), [True, False, False]),
        ("float32", (-9999, None), [False, False, False]),
        ("uint8", (7, 7), [False, True, False]),
    ],
)
def test_a_pixel_is_missing_everywhere_if_every_band_has_its_nodata(dtype, nodata, missing):
    raw = np.array([[[-9999, 7, -9999]], [[0, 7, 3]]]).astype(dtype)
    if nodata[1] is not None and np.isnan(nodata[1]):
        raw[1, 0, 0] = np.nan
    np.testing.assert_array_equal(missing_everywhere(raw, nodata), [missing])


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (-1, "uint8"),
        (256, "uint8"),
        (65536, "uint16"),
        (0.5, "int16"),
        (np.nan, "int32"),
        (np.inf, "int16"),
        (1e39, "float32"),
    ],
)
def test_an_impossible_nodata_is_refused_with_the_range_of_the_type(number, dtype):
    with pytest.raises(UsageError, match=f"is not a number of type {dtype}, which holds .* from "):
        as_nodata(number, dtype)


def test_a_nodata_is_converted_to_the_type_of_the_pixels():
    assert as_nodata(-3.4028235e38, "float32") == np.finfo(np.float32).min
    assert as_nodata(0.1, "float32") == np.float32(0.1)
    assert np.isnan(as_nodata(np.nan, "float64"))
    assert as_nodata(65535, "uint16") == 65535
    assert as_nodata(-np.inf, "float32") == -np.inf
