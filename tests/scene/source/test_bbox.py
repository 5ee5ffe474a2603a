"""A box on the ground: over the antimeridian, on grids from 0 to 360 and beyond, and never the rest
of the world.
"""

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from repmamba.errors import UsageError
from repmamba.scene.source.bbox import window_of_bbox
from repmamba.scene.source.grid import Grid
from repmamba.tiles.window import Window

DEGREES = CRS.from_epsg(4326)


def grid(left, top, step, width, height, crs=DEGREES):
    return Grid(width, height, Affine(step, 0, left, 0, -step, top), crs)


PACIFIC = grid(178, 10, 0.1, 64, 48)  # 178 to 184.4 degrees
HALF_TURNS = grid(-180, 90, 1, 360, 180)
WHOLE_TURN = grid(0, 90, 1, 360, 180)
EAST = grid(170, 10, 1, 10, 10)  # to 180


@pytest.mark.parametrize(
    ("place", "bbox", "expected"),
    [
        (PACIFIC, (179.5, 6, -179, 9), Window(10, 15, 30, 15)),
        (PACIFIC, (179.5, 6, 181, 9), Window(10, 15, 30, 15)),
        (PACIFIC, (-179.5, 6, -178, 9), Window(10, 25, 30, 15)),
        (PACIFIC, (170, 6, -170, 9), Window(10, 0, 30, 64)),
        (WHOLE_TURN, (170, -10, -170, 10), Window(80, 170, 20, 20)),
        (WHOLE_TURN, (-120, 30, -110, 40), Window(50, 240, 10, 10)),
        (WHOLE_TURN, (240, 30, 250, 40), Window(50, 240, 10, 10)),
        (WHOLE_TURN, (0, -90, 360, 90), Window(0, 0, 180, 360)),
        (HALF_TURNS, (-180, -90, 180, 90), Window(0, 0, 180, 360)),
        (HALF_TURNS, (-181, -91, 181, 91), Window(0, 0, 180, 360)),
        (HALF_TURNS, (240, 30, 250, 40), Window(50, 60, 10, 10)),
        (HALF_TURNS, (-10, -10, 10, 10), Window(80, 170, 20, 20)),
        (EAST, (175, 2, -175, 8), Window(2, 5, 6, 5)),
        (EAST, (175, 2, 190, 8), Window(2, 5, 6, 5)),
    ],
)
def test_a_box_is_where_it_is_however_its_degrees_are_counted(place, bbox, expected):
    assert window_of_bbox("scene.tif", place, bbox) == expected


@pytest.mark.parametrize(
    ("place", "bbox", "windows"),
    [
        (HALF_TURNS, (170, -10, -170, 10), "window=(0,80,10,20) and window=(350,80,10,20)"),
        (HALF_TURNS, (170, -10, 190, 10), "window=(0,80,10,20) and window=(350,80,10,20)"),
        (WHOLE_TURN, (-10, -10, 10, 10), "window=(0,80,10,20) and window=(350,80,10,20)"),
        (WHOLE_TURN, (350, -10, 10, 10), "window=(0,80,10,20) and window=(350,80,10,20)"),
    ],
)
def test_a_box_at_both_ends_of_a_grid_is_refused_with_its_two_windows(place, bbox, windows):
    with pytest.raises(UsageError, match="at both ends") as refused:
        window_of_bbox("scene.tif", place, bbox)
    assert windows in str(refused.value)


@pytest.mark.parametrize(
    ("crs", "bbox", "says"),
    [
        (CRS.from_epsg(32632), (9, 1, 3, 5), "has left > right"),
        (None, (9, 1, 3, 5), "has left > right"),
        (CRS.from_epsg(32632), (3, 5, 9, 1), "has its bottom above its top"),
        (DEGREES, (3, 5, 9, 1), "has its bottom above its top"),
        (DEGREES, (30, 1, 40, 5), "does not intersect scene.tif"),
        (DEGREES, (40, 1, -40, 5), "does not intersect scene.tif"),
        (CRS.from_epsg(32632), (363, 1, 369, 5), "does not intersect scene.tif"),
    ],
)
def test_a_box_that_is_none_is_refused(crs, bbox, says):
    with pytest.raises(UsageError, match=says):
        window_of_bbox("scene.tif", grid(0, 10, 1, 10, 10, crs), bbox)


@given(
    left=st.integers(-180, 179),
    width=st.integers(1, 60),
    turn=st.sampled_from([0, 360]),
    first=st.sampled_from([-180, 0, 90]),
)
def test_a_box_gives_its_own_ground_and_no_other(left, width, turn, first):
    """On any global grid of whole degrees, with longitudes counted in any way."""
    place = grid(first, 1, 1, 360, 2)
    right = (left + width + 180) % 360 - 180
    expected = {(each - first) % 360 for each in range(left, left + width)}
    box = (left + turn, -1, right + turn, 1)
    if {0, 359} <= expected:
        with pytest.raises(UsageError, match="at both ends"):
            window_of_bbox("scene.tif", place, box)
    else:
        window = window_of_bbox("scene.tif", place, box)
        assert set(range(window.col, window.col + window.width)) == expected
