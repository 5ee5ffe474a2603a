"""Tile plans: integer geometry that must hold for every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repmamba.errors import UsageError
from repmamba.tiles.plan import plan_tiles
from repmamba.tiles.window import Window

sizes = st.integers(1, 400)
tile_edges = st.integers(15, 256)
halos = st.integers(0, 32)
scales = st.sampled_from([2, 3, 4])


@st.composite
def scenes_with_windows(draw: st.DrawFn) -> tuple[int, int, Window]:
    height, width = draw(sizes), draw(sizes)
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return (
        height,
        width,
        Window(row, col, draw(st.integers(1, height - row)), draw(st.integers(1, width - col))),
    )


@given(height=sizes, width=sizes, tile=tile_edges, halo=halos, scale=scales)
def test_every_output_pixel_is_written_exactly_once(height, width, tile, halo, scale):
    written = np.zeros((scale * height, scale * width), np.uint8)
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo):
        written[step.write.slices] += 1
    assert (written == 1).all()


@given(scene=scenes_with_windows(), tile=tile_edges, halo=halos, scale=scales)
def test_every_pixel_of_a_window_is_written_exactly_once(scene, tile, halo, scale):
    height, width, window = scene
    written = np.zeros((scale * window.height, scale * window.width), np.uint8)
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo, window=window):
        written[step.write.slices] += 1
    assert (written == 1).all()


@given(height=sizes, width=sizes, tile=tile_edges, halo=halos, scale=scales)
def test_every_read_is_inside_the_scene_with_a_full_halo_except_at_its_edge(
    height, width, tile, halo, scale
):
    scene = Window(0, 0, height, width)
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo):
        assert scene.contains(step.read)
        above, left = step.keep.row, step.keep.col
        below = scale * step.read.height - step.keep.row - step.keep.height
        right = scale * step.read.width - step.keep.col - step.keep.width
        assert above == scale * halo or step.read.row == 0
        assert left == scale * halo or step.read.col == 0
        assert below == scale * halo or step.read.row + step.read.height == height
        assert right == scale * halo or step.read.col + step.read.width == width


@given(height=sizes, width=sizes, tile=tile_edges, halo=halos, scale=scales)
def test_the_kept_part_covers_the_written_ground(height, width, tile, halo, scale):
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo):
        hr_read = step.read.scaled(scale)
        assert (step.keep.height, step.keep.width) == (step.write.height, step.write.width)
        assert step.write.seen_from(hr_read) == step.keep


@given(scene=scenes_with_windows(), tile=tile_edges, halo=halos, scale=scales)
def test_a_window_reads_only_tiles_of_the_whole_plan(scene, tile, halo, scale):
    height, width, window = scene
    whole = {step.read for step in plan_tiles(height, width, scale, tile=tile, halo=halo)}
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo, window=window):
        assert step.read in whole


@given(scene=scenes_with_windows(), tile=tile_edges, halo=halos, scale=scales)
def test_a_window_has_the_same_pixels_as_the_whole(scene, tile, halo, scale):
    """Each tile's result has unique numbers, so a wrong cut is detected."""
    height, width, window = scene
    whole = np.empty((scale * height, scale * width), np.int64)
    part = np.empty((scale * window.height, scale * window.width), np.int64)

    def result(read: Window) -> np.ndarray:
        rows, cols = np.arange(scale * read.height)[:, None], np.arange(scale * read.width)
        return ((read.row * 1000 + read.col) * 2000 + rows) * 2000 + cols

    for step in plan_tiles(height, width, scale, tile=tile, halo=halo):
        whole[step.write.slices] = result(step.read)[step.keep.slices]
    for step in plan_tiles(height, width, scale, tile=tile, halo=halo, window=window):
        part[step.write.slices] = result(step.read)[step.keep.slices]
    assert (part == whole[window.scaled(scale).slices]).all()


@pytest.mark.parametrize(
    "window", [Window(0, 0, 11, 5), Window(-1, 0, 3, 3), Window(2, 2, 0, 4), Window(0, 9, 1, 2)]
)
def test_a_window_that_leaves_the_scene_is_refused(window):
    with pytest.raises(UsageError, match="does not lie inside"):
        plan_tiles(10, 10, 2, window=window)


@pytest.mark.parametrize("sizes", [{"tile": 0}, {"halo": -1}, {"tile": -5, "halo": 3}])
def test_a_tile_without_pixels_and_a_negative_halo_are_refused(sizes):
    with pytest.raises(UsageError, match="at least"):
        plan_tiles(10, 10, 2, **sizes)


def test_an_empty_scene_is_refused():
    with pytest.raises(UsageError, match="at least 1 x 1 is needed"):
        plan_tiles(0, 10, 2)


def test_tiles_come_row_by_row():
    corners = [(step.write.row, step.write.col) for step in plan_tiles(600, 600, 2)]
    assert corners == sorted(corners)
    assert len(corners) == 9
