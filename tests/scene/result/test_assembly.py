"""What a file says of itself, where GDAL or a format holds it in another form than it was told."""

import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from repmamba.scene.engine import upscale_file
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.source.grid import Grid

from .made_scene import PLACE, Described

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SMALL = Grid(140, 130, PLACE.transform, PLACE.crs)
FILES = {"GTiff": "scene.tif", "COG": "scene.cog.tif", "PNG": "scene.png", "JPEG": "scene.jpg"}


@pytest.mark.parametrize("name", ["GTiff", "COG"])
def test_a_nodata_that_the_type_rounds_is_declared_rounded(tmp_path, name):
    # as ENVI headers have it
    scene = Described(OutputProfile(name, SMALL, 1, "float32", nodata=-3.40282e38))
    scene.write(tmp_path / FILES[name])
    with rasterio.open(tmp_path / FILES[name]) as file:
        assert file.nodata == pytest.approx(-3.40282e38, rel=1e-7)


@pytest.mark.parametrize("name", FILES)
def test_control_points_between_pixels_are_kept_as_exactly_as_the_format_can(tmp_path, name):
    points = (
        GroundControlPoint(1.23456, 2.34567, 10000123.1234567, 50),
        GroundControlPoint(30.111119, 2.1, 10000923.7654321, 50.123456789),
        GroundControlPoint(2, 39.3333333, 10000123.1234567, 51),
    )
    crs = CRS.from_epsg(32733)
    profile = OutputProfile(name, Grid(140, 130), 1, "uint8", gcps=(points, crs))
    Described(profile).write(tmp_path / FILES[name])
    with rasterio.open(tmp_path / FILES[name]) as file:
        for before, after in zip(points, file.gcps[0], strict=True):
            assert (after.row, after.col) == pytest.approx((before.row, before.col), abs=1e-4)
            assert (after.x, after.y) == pytest.approx((before.x, before.y), rel=1e-12)


@pytest.mark.parametrize("name", ["GTiff", "COG"])
def test_tags_that_cannot_be_written_are_left_out_with_a_warning_and_the_others_stay(
    tmp_path, caplog, name
):
    tags = {"ns": "one", "bidx": "2", "SENSOR": "x"}
    profile = OutputProfile(
        name, SMALL, 1, "uint8", tags={"": tags}, band_tags=({"": tags | {"SENSOR": "of a band"}},)
    )
    Described(profile).write(tmp_path / FILES[name])
    with rasterio.open(tmp_path / FILES[name]) as file:
        assert (file.tags()["SENSOR"], file.tags(1)["SENSOR"]) == ("x", "of a band")
        assert not {"ns", "bidx"} & (file.tags().keys() | file.tags(1).keys())
        assert "one" not in file.tag_namespaces()
    assert "named bidx and ns cannot be written" in caplog.text


GCP_LIST = """<GCPList Projection="EPSG:4326"><GCP Id="1" Pixel="0" Line="0" X="10" Y="50"/>
  <GCP Id="2" Pixel="40" Line="0" X="11" Y="50"/><GCP Id="3" Pixel="0" Line="40" X="10" Y="49"/></GCPList>"""
BAND = """<VRTRasterBand dataType="Byte" band="1"><SimpleSource>
  <SourceFilename relativeToVRT="1">in.tif</SourceFilename></SimpleSource></VRTRasterBand>"""
TRANSFORM = "<GeoTransform>500000,10,0,4100000,0,-10</GeoTransform>"


@pytest.mark.parametrize(
    "place", ["<SRS>EPSG:32633</SRS>" + TRANSFORM, TRANSFORM, "<SRS>EPSG:32633</SRS>", ""]
)
@pytest.mark.parametrize("name", ["out.tif", "out.cog.tif", "out.png"])
def test_of_a_transform_and_control_points_the_transform_is_kept_with_a_warning(
    write_raster, smooth, tmp_path, bicubic, caplog, name, place
):
    write_raster("in.tif", smooth(1, 40, 40), crs=None, transform=None)
    vrt = tmp_path / "in.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="40" rasterYSize="40">{place}{GCP_LIST}{BAND}</VRTDataset>'
    )
    upscale_file(vrt, tmp_path / name, bicubic)
    with rasterio.open(tmp_path / name) as file:
        if TRANSFORM in place:
            assert file.transform.almost_equals(Affine(5, 0, 500000, 0, -5, 4100000))
            assert not file.gcps[0]
        else:
            assert [(point.row, point.col) for point in file.gcps[0]] == [(0, 0), (0, 80), (80, 0)]
    assert ("ground control points and a transform" in caplog.text) == (TRANSFORM in place)
