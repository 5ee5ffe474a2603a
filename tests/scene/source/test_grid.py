"""The place of a raster survives an enlargement, whichever way it is given."""

import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer

from repmamba.scene.engine import upscale_file
from repmamba.scene.source.grid import (
    Grid,
    lacking_rpcs,
    refined_gcps,
    refined_geolocation,
    refined_rpcs,
)
from repmamba.tiles.window import Window

scales = st.sampled_from([2, 3, 4])
transforms = st.builds(
    lambda west, north, pixel, angle, shear: (
        Affine.translation(west, north)
        @ Affine.rotation(angle)
        @ Affine.shear(shear)
        @ Affine.scale(pixel, -pixel)
    ),
    st.floats(-2e7, 2e7),
    st.floats(-2e7, 2e7),
    st.floats(1e-4, 1e5),
    st.floats(-180, 180),
    st.floats(-30, 30),
)


def in_pixels(transform: Affine, points, others) -> float:
    """The largest distance between points of the ground, in pixels of the transform."""
    return max(
        np.abs(np.subtract(~transform @ a, ~transform @ b)).max()
        for a, b in zip(points, others, strict=True)
    )


@given(transform=transforms, height=st.integers(1, 5000), width=st.integers(1, 5000), scale=scales)
def test_the_corners_stay_also_of_rotated_and_sheared_rasters(transform, height, width, scale):
    grid = Grid(width, height, transform, None)
    refined = grid.refined(scale)
    assert (refined.width, refined.height) == (scale * width, scale * height)
    # A double holds a coordinate to 2e-16 of itself; no pixel size can be kept better than that.
    allowed = (
        1e-6 + 1e-15 * max(abs(transform.c), abs(transform.f)) / abs(transform.determinant) ** 0.5
    )
    assert in_pixels(refined.transform, grid.corners(), refined.corners()) < allowed


@given(transform=transforms, row=st.integers(0, 99), col=st.integers(0, 99), scale=scales)
def test_cutting_and_refining_commute(transform, row, col, scale):
    grid, window = Grid(200, 150, transform, None), Window(row, col, 51, 101)
    one = grid.cut(window).refined(scale)
    other = grid.refined(scale).cut(window.scaled(scale))
    assert (one.width, one.height) == (other.width, other.height)
    assert one.transform.almost_equals(other.transform, 1e-6)


def test_a_picture_has_a_size_and_no_place():
    assert Grid(30, 20).refined(4) == Grid(120, 80)
    assert Grid(30, 20).cut(Window(5, 6, 7, 8)) == Grid(8, 7)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("window", [Window(0, 0, 100, 200), Window(30, 50, 20, 40)])
def test_gdal_finds_the_same_ground_by_refined_gcps(scale, window):
    gcps = [
        GroundControlPoint(
            row=row, col=col, x=500000 + 10 * col + row, y=4e6 - 10 * row, z=1.0, id=str(n)
        )
        for n, (row, col) in enumerate([(0, 0), (0, 200), (100, 0), (100, 200), (50, 100)])
    ]
    with GCPTransformer(gcps) as before, GCPTransformer(refined_gcps(gcps, scale, window)) as after:
        for row, col in [(31, 52), (49.5, 70.25)]:
            expected = before.xy(row, col, offset="ul")
            found = after.xy(scale * (row - window.row), scale * (col - window.col), offset="ul")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("window", [Window(0, 0, 274, 232), Window(30, 50, 100, 90)])
def test_gdal_finds_the_same_ground_by_refined_rpcs(geotiffs, scale, window):
    """GDAL's transformer counts from corners and adds the half pixel to RPCs itself, so corners
    must meet corners.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(geotiffs / "test_rpcs.tif") as raster:
            tags = raster.tags(ns="RPC")
    refined = refined_rpcs(tags, scale, window)
    assert set(refined) == set(tags)
    # GDAL's default is 0.1 pixel
    exactly = {"RPC_PIXEL_ERROR_THRESHOLD": "1e-7", "RPC_MAX_ITERATIONS": "100"}
    with (
        RPCTransformer(RPC.from_gdal(tags), **exactly) as before,
        RPCTransformer(RPC.from_gdal(refined), **exactly) as after,
    ):
        for row, col in [(40, 60), (77, 133)]:
            found = after.xy(
                scale * (row - window.row), scale * (col - window.col), offset="ul", zs=100.0
            )
            expected = before.xy(row, col, offset="ul", zs=100.0)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


RPCS = {
    f"{axis}_{what}": "12.5"
    for axis in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")
    for what in ("OFF", "SCALE")
}
RPCS |= {
    f"{axis}_{part}_COEFF": " ".join(["1"] + ["0"] * 19)
    for axis in ("LINE", "SAMP")
    for part in ("NUM", "DEN")
}


def test_units_behind_the_numbers_of_rpcs_are_left_out():
    with_units = RPCS | {
        "LINE_OFF": "+001024.50 pixels",
        "SAMP_SCALE": "+000512.00 pixels",
        "LAT_OFF": "+39.5 degrees",
    }
    assert lacking_rpcs(with_units) == ()
    refined = refined_rpcs(with_units, 2, Window(0, 0, 9, 9))
    assert (refined["LINE_OFF"], refined["SAMP_SCALE"]) == ("2049.5", "1024.0")
    assert RPC.from_gdal(refined).lat_off == 39.5


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"LINE_OFF": None}, ("LINE_OFF",)),
        ({"SAMP_SCALE": "wide", "HEIGHT_OFF": ""}, ("HEIGHT_OFF", "SAMP_SCALE")),
        ({"LINE_NUM_COEFF": "1 2 3"}, ("LINE_NUM_COEFF",)),
        ({"LAT_OFF": "nan"}, ("LAT_OFF",)),
    ],
)
def test_rpcs_that_tell_no_place_are_left_out_with_a_warning(
    write_raster, smooth, tmp_path, bicubic, caplog, change, lacking
):
    rpcs = {name: text for name, text in (RPCS | change).items() if text is not None}
    assert set(lacking_rpcs(rpcs)) == set(lacking)
    path = write_raster("in.tif", smooth(1, 20, 20))
    items = "".join(f'<MDI key="{name}">{text}</MDI>' for name, text in rpcs.items())
    path.with_name("in.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="RPC">{items}</Metadata></PAMDataset>'
    )
    upscale_file(path, tmp_path / "out.tif", bicubic)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.rpcs is None
    assert f"RPCs without {', '.join(lacking)}" in caplog.text


@given(scale=scales, row=st.integers(0, 99), col=st.integers(0, 99), entry=st.integers(0, 50))
def test_an_entry_of_arrays_of_positions_is_that_of_the_same_ground(scale, row, col, entry):
    tags = {
        "X_DATASET": "lon.tif",
        "LINE_OFFSET": "2",
        "LINE_STEP": "4",
        "PIXEL_OFFSET": "0.5",
        "PIXEL_STEP": "8.0",
    }
    refined = refined_geolocation(tags, scale, Window(row, col, 10, 10))
    assert refined["X_DATASET"] == "lon.tif"
    for axis, first, before in (("LINE", row, 2 + 4 * entry), ("PIXEL", col, 0.5 + 8 * entry)):
        after = float(refined[f"{axis}_OFFSET"]) + float(refined[f"{axis}_STEP"]) * entry
        assert after == scale * (before - first)


def test_tags_of_positions_that_hold_no_numbers_stay(write_raster, smooth, tmp_path, bicubic):
    path = write_raster("in.tif", smooth(1, 40, 40), crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.update_tags(
            ns="GEOLOCATION", LINE_OFFSET="1", LINE_STEP="2", PIXEL_STEP="two", SRS="EPSG:4326"
        )
    upscale_file(path, tmp_path / "out.tif", bicubic, window=Window(10, 0, 20, 40))
    with rasterio.open(tmp_path / "out.tif") as file:
        expected = {
            "LINE_OFFSET": "-18.0",
            "LINE_STEP": "4.0",
            "PIXEL_STEP": "two",
            "SRS": "EPSG:4326",
        }
        assert file.tags(ns="GEOLOCATION") == expected
