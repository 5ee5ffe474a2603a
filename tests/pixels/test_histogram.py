"""ValueHistogram: percentiles in one pass, and fills do not widen the range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repmamba.errors import UndeclaredNodata
from repmamba.pixels.histogram import FEW, ValueHistogram, describe_fills, warn_of_fills
from repmamba.pixels.radiometry import DTYPES, Radiometry, type_range


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("percent", [(0.5, 99.5), (2.0, 98.0), (0.0, 100.0)])
def test_percentiles_of_a_stream_equal_those_of_the_whole(dtype, percent):
    random = np.random.default_rng(3)
    values = random.normal(3000, 900, 200_000)
    values = np.abs(values) if np.dtype(dtype).kind == "u" else values - 3000
    values = np.clip(values / (1 if dtype != "uint8" else 20), *type_range(dtype)).astype(dtype)
    histogram = ValueHistogram()
    for piece in np.array_split(values, 17):
        histogram.add(piece)
    low, high = histogram.range(percent)
    expected = np.percentile(values.astype(float), percent, method="inverted_cdf")
    np.testing.assert_allclose([low, high], expected, rtol=1 / 1000, atol=1)


@given(
    values=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32)),
    cut=st.integers(0, 60),
)
def test_a_histogram_does_not_depend_on_order_or_cuts(values, cut):
    one, other = ValueHistogram(), ValueHistogram()
    one.add(values)
    other.add(values[cut:][::-1])
    other.add(values[:cut])
    assert (one.counts == other.counts).all()
    assert one.counts.sum() == np.isfinite(values).sum()


@pytest.mark.parametrize(
    ("dtype", "low", "width"),
    [
        ("float64", 1e9, 10),
        ("float64", -1e9 - 10, 10),
        ("float64", 2.0**30 - 5, 10),  # in two bins
        ("float64", 1e300, 1e300),  # beyond float32
        ("float64", -1e300, 2e300),
        ("float64", 3e38, 1e38),
        ("int32", 1_700_000_000, 200),
        ("int32", -1_700_000_000, 200),
        ("uint32", 4_294_967_000, 200),
    ],
)
@pytest.mark.parametrize("merged", [False, True])
def test_the_range_of_numbers_that_float32_cannot_tell_apart(dtype, low, width, merged):
    random = np.random.default_rng(0)
    values = (low + width * random.beta(3, 3, 20_000)).astype(dtype)
    values[:FEW] = 0
    histogram = ValueHistogram()
    for piece in np.array_split(values, 7):
        part = ValueHistogram() if merged else histogram
        part.add(piece)
        if merged:
            histogram.merge(part)
    found = histogram.range()
    assert low - 0.01 * width <= found[0] < low + 0.15 * width
    assert low + 0.85 * width < found[1] <= low + 1.01 * width
    assert histogram.outliers(*found) == (FEW if abs(low) > 100 * width else 0)


@pytest.mark.parametrize("value", [0, 1, -5, 1e-20, 3e9, -3e38])
def test_a_scene_of_one_value_still_has_a_range(value):
    histogram = ValueHistogram()
    histogram.add(np.full(100, value, np.float64))
    low, high = histogram.range()
    Radiometry("float64", (low,), (high,))
    assert abs(low - value) <= abs(value) / 1000


def range_of(values):
    histogram = ValueHistogram()
    histogram.add(values)
    low, high = histogram.range()
    return low, high, histogram.outliers(low, high)


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1, 400])
@pytest.mark.parametrize("usual", [0, 1, -0.5])
@pytest.mark.parametrize("count", [FEW + 1, 40])
def test_if_nearly_all_values_are_equal_the_range_is_that_of_the_others(size, usual, count):
    values = np.full(10_000, usual * size)
    values[:count] = size * np.linspace(2, 5, count)
    low, high, outliers = range_of(values)
    assert low == pytest.approx(usual * size, rel=1e-3)
    assert 2 * size * 0.999 <= high <= 5 * size
    assert outliers == 0


@pytest.mark.parametrize("outlier", [-3.4028235e38, 1e20, -9999.0])
@pytest.mark.parametrize("count", [1, FEW, 40])
@pytest.mark.parametrize("others", [0, 20])
def test_single_outliers_and_undeclared_nodata_do_not_affect_the_range(outlier, count, others):
    values = np.full(10_000, 0.25)
    values[1000 : 1000 + others] = np.linspace(0.5, 1, others)
    values[:count] = outlier
    low, high, outliers = range_of(values)
    assert (low, outliers) == (0.25, count)
    assert high <= 1.25


def test_small_differences_in_a_constant_scene_are_not_outliers():
    for usual, other in ((0, 1e-8), (5, 6), (0.25, 0.5)):
        assert range_of(np.array([usual] * 1000 + [other]))[2] == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tail_of_values_is_not_an_outlier_while_the_others_keep_their_contrast(sign):
    random = np.random.default_rng(0)
    values = random.normal(0.2, 0.02, 9216)
    assert range_of(sign * values)[1] == pytest.approx(0.25 if sign == 1 else -0.15, abs=0.02)
    values[:25] = random.uniform(20, 80, 25)
    low, high, outliers = range_of(sign * values)
    assert outliers == 0
    assert high - low < 2.5  # eighty, by forty
    values[:FEW] = 1e4
    assert range_of(sign * values)[2] == FEW
    values[:25] = random.uniform(1e4, 1e5, 25)
    assert range_of(sign * values)[2] == 25


def test_a_single_far_number_in_many_pixels_does_not_widen_the_range():
    values = np.random.default_rng(0).normal(100, 3, 10_000)
    values[:40] = -9999
    low, high, outliers = range_of(values)
    assert 90 < low < high < 110
    assert outliers == 40


def test_without_values_there_is_no_range():
    histogram = ValueHistogram()
    histogram.add(np.full(10, np.nan))
    assert histogram.range() is None


def histogram_of(values):
    histogram = ValueHistogram()
    histogram.add(np.asarray(values))
    return histogram


@settings(max_examples=20)
@given(
    share=st.floats(0.005, 0.99),
    number=st.sampled_from([-9999.0, -3.4028235e38, 32767, 1e20, -32768, 65535]),
    low=st.sampled_from([0.0, -1.0, 0.02, 250.0]),
    width=st.sampled_from([1.0, 60.0]),
)
def test_no_share_of_a_fill_widens_the_range(share, number, low, width):
    values = low + width * np.random.default_rng(0).random(4000)
    expected = histogram_of(values).range()
    count = round(share / (1 - share) * len(values))
    found = histogram_of(np.concatenate([np.full(count, number), values]))
    assert found.range() == expected
    (fill,) = found.fills()
    assert fill.number == number
    assert fill.share == pytest.approx(share, abs=1e-3)
    assert fill.distance == pytest.approx(max(low - number, number - low - width), rel=0.02)


@pytest.mark.parametrize(
    "numbers", [(-9999, 32767), (-9999, -32768), (-9999, -9998), (-9999, -9000, -32768)]
)
def test_several_fills_do_not_hide_each_other(numbers):
    values = np.random.default_rng(0).uniform(300, 4000, 4000)
    expected = histogram_of(values).range()
    found = histogram_of(np.concatenate([*(np.full(200, number) for number in numbers), values]))
    assert found.range() == expected
    assert {fill.number for fill in found.fills()} <= set(numbers)
    assert len(found.fills()) >= len({round(number, -2) for number in numbers})


def test_pixels_resampled_at_the_edge_of_a_fill_do_not_hide_it():
    values = np.random.default_rng(0).uniform(0.1, 0.5, 40_000)
    values[:800] = -9999
    values[800:900] = np.linspace(-9900, -1, 100)
    low, high = histogram_of(values).range()
    assert 0 < low < high < 0.51
    assert [fill.number for fill in histogram_of(values).fills()] == [-9999]


@pytest.mark.parametrize("number", [0, 255])
def test_zeros_of_a_collar_are_a_fill_but_white_is_not(number):
    values = np.random.default_rng(0).integers(10, 246, 9000)
    values[:500] = number
    assert [fill.number for fill in histogram_of(values).fills(zero=True)] == (
        [0] if number == 0 else []
    )
    assert not histogram_of(values).fills()


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(100, 20, 9000).clip(60, 255).round(),  # deep shadows
        np.random.default_rng(0).integers(0, 256, 9000),
        np.random.default_rng(0).integers(0, 16, 9000),  # 4 bits
        np.repeat(np.arange(1005, 1150, 12), 40),  # a few values, each in many pixels
        np.repeat([0, 100, 101, 102, 103], 1000),  # classes
        # night lights
        np.concatenate([np.zeros(9000), np.random.default_rng(0).random(1000)]),
        np.random.default_rng(0).lognormal(0, 2, 9000),
        np.random.default_rng(0).integers(0, 12000, 9000) ** 2 % 65536,
        np.full(100, 7),
        [],
    ],
    ids=[
        "shadows",
        "all",
        "four bits",
        "levels",
        "classes",
        "lamps",
        "tail",
        "noise",
        "constant",
        "none",
    ],
)
def test_numbers_among_others_are_not_fills(values):
    assert not histogram_of(np.asarray(values, float)).fills(zero=True)


def test_a_warning_lists_each_fill_once_in_its_type():
    values = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float32)
    values[:10] = -3.4028235e38
    other = values.copy()
    other[:30] = -3.4028235e38
    with pytest.warns(
        UndeclaredNodata, match=r"^A scene may .*: -3.4028235e\+38 in 3 % of it, 3.403e\+38 below"
    ) as told:
        warn_of_fills(
            "A scene",
            describe_fills([histogram_of(values), histogram_of(other)], "float32"),
        )
    assert str(told[0].message).count("of it") == 1
    assert told[0].filename == __file__
