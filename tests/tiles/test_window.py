"""Properties of Window's operations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repmamba.tiles.window import Window

windows = st.builds(
    Window, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 60), st.integers(1, 60)
)


@given(a=windows, b=windows)
def test_the_intersection_is_symmetric_and_lies_in_both(a, b):
    shared = a.clipped(b)
    assert shared == b.clipped(a)
    if not shared.is_empty:
        assert a.contains(shared)
        assert b.contains(shared)


@given(window=windows, margin=st.integers(0, 30))
def test_a_grown_window_contains_the_window(window, margin):
    assert window.grown(margin).contains(window)
    assert window.grown(margin).grown(-margin) == window


@given(window=windows, other=windows, scale=st.sampled_from([2, 3, 4]))
def test_scaling_and_seen_from_commute(window, other, scale):
    assert window.seen_from(other).scaled(scale) == window.scaled(scale).seen_from(
        other.scaled(scale)
    )


def test_slices_cut_the_window_from_an_array():
    array = np.arange(30).reshape(5, 6)
    assert array[Window(1, 2, 3, 2).slices].tolist() == [[8, 9], [14, 15], [20, 21]]


def test_disjoint_windows_have_an_empty_intersection():
    assert Window(0, 0, 2, 2).clipped(Window(5, 5, 2, 2)).is_empty
