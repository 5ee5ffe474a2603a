"""Rasters in memory: whatever holds the input and wherever the result goes, the same pixels at the
same place.
"""

import io
import os

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.shutil import delete
from rasterio.vrt import WarpedVRT

from repmamba.errors import CorruptSource, SourceError, TargetError, TargetExists, UsageError
from repmamba.scene.engine import plan_file, upscale_file


@pytest.fixture
def scene(write_raster, smooth):
    return write_raster("scene.tif", smooth(3, 60, 70))


@pytest.fixture
def by_name(scene, tmp_path, bicubic):
    """The result of the engine on files, as bytes."""
    upscale_file(scene, tmp_path / "by_name.tif", bicubic)
    return (tmp_path / "by_name.tif").read_bytes()


def pixels_of(content):
    with MemoryFile(content) as memory, memory.open() as file:
        return file.read(), file.transform, file.crs


def same(content, other):
    (found, *place), (expected, *expected_place) = pixels_of(content), pixels_of(other)
    return np.array_equal(found, expected) and place == expected_place


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_file_objects_are_inputs(scene, by_name, tmp_path, bicubic, kind):
    result = upscale_file(kind(scene.read_bytes()), tmp_path / "out.tif", bicubic)
    assert result.path == tmp_path / "out.tif"
    assert same(result.path.read_bytes(), by_name)


def test_a_file_object_is_read_from_where_it_stands(scene, by_name, bicubic):
    stream, out = io.BytesIO(b"head" + scene.read_bytes()), io.BytesIO()
    stream.seek(4)
    upscale_file(stream, out, bicubic)
    assert same(out.getvalue(), by_name)


def test_open_datasets_are_inputs(scene, by_name, bicubic):
    with (
        rasterio.open(scene) as file,
        MemoryFile(scene.read_bytes()) as memory,
        memory.open() as inside,
    ):
        for source in (file, memory, inside, memory.name):
            out = io.BytesIO()
            upscale_file(source, out, bicubic)
            assert same(out.getvalue(), by_name)
        assert not file.closed
        assert not inside.closed


def test_a_dataset_is_taken_as_it_was_opened(write_raster, smooth, bicubic):
    path = write_raster("large.tif", smooth(1, 512, 512))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([4])
        with pytest.raises(UsageError, match=r"open for writing: close it"):
            upscale_file(file, io.BytesIO(), bicubic)
    with rasterio.open(path, overview_level=0) as overview:
        assert upscale_file(overview, io.BytesIO(), bicubic).grid.width == 256
    with rasterio.open(path) as file, WarpedVRT(file, crs="EPSG:4326") as warped:
        result = upscale_file(warped, io.BytesIO(), bicubic)
        assert result.grid.crs.to_epsg() == 4326
        assert result.grid.width == 2 * warped.width
    with pytest.raises(UsageError, match="is closed"):
        upscale_file(file, io.BytesIO(), bicubic)


@pytest.mark.parametrize(
    ("format", "driver"),
    [(None, "GTiff"), ("GTiff", "GTiff"), ("COG", "GTiff"), ("PNG", "PNG"), ("JPEG", "JPEG")],
)
def test_a_file_object_takes_any_format(scene, bicubic, format, driver):
    out = io.BytesIO()
    result = upscale_file(scene, out, bicubic, format=format)
    assert result.path is result.as_json()["path"] is None
    assert "in memory" in result.summary()
    with MemoryFile(out.getvalue()) as memory, memory.open() as file:
        assert (file.driver, file.shape) == (driver, (120, 140))


def test_a_name_in_gdals_memory_is_a_target_with_its_side_cars(scene, by_name, bicubic):
    try:
        upscale_file(scene, "/vsimem/one/out.tif", bicubic)
        with rasterio.open("/vsimem/one/out.tif") as file:
            assert np.array_equal(file.read(), pixels_of(by_name)[0])
        with pytest.raises(TargetExists, match="overwrite=True"):
            upscale_file(scene, "/vsimem/one/out.tif", bicubic)
        upscale_file(scene, "/vsimem/one/out.tif", bicubic, overwrite=True)
        result = upscale_file("/vsimem/one/out.tif", "/vsimem/one/twice.png", bicubic)
        assert str(result.path) == "/vsimem/one/twice.png"
        with rasterio.open("/vsimem/one/twice.png") as file:
            assert file.crs.to_epsg() == 32633
            assert file.transform.a == pytest.approx(2.5)
    finally:
        for name in ("/vsimem/one/out.tif", "/vsimem/one/twice.png"):
            delete(name)
    with pytest.raises(UsageError, match="does not end in the suffix of a format"):
        upscale_file(scene, "/vsimem/one/out", bicubic)


def test_nothing_is_left_in_the_temporary_folder(scene, tmp_path, bicubic, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    upscale_file(scene.read_bytes(), io.BytesIO(), bicubic)
    plan = plan_file(scene.read_bytes(), out := io.BytesIO(), bicubic)
    assert plan.target is None
    assert "-> memory" in plan.summary()
    assert out.getvalue() == b""
    with pytest.raises(SourceError):
        upscale_file(b"no raster at all", io.BytesIO(), bicubic)
    assert os.listdir(place) == []


def test_what_is_no_raster_is_one_line_that_names_no_temporary_file(scene, bicubic):
    for content, error, text in (
        (b"", SourceError, "the input in memory is empty"),
        (b"no raster", SourceError, "the input in memory cannot be read"),
        (scene.read_bytes()[:9000], CorruptSource, "the input in memory is corrupt or truncated"),
        (io.StringIO("text"), UsageError, "open it in binary mode"),
        (np.zeros((8, 8, 3), np.uint8), UsageError, "Upscaler.upscale takes arrays"),
        (None, UsageError, "The input is a NoneType"),
        ("/vsimem/nowhere.tif", SourceError, "cannot be read"),
    ):
        with pytest.raises(error, match=text) as caught:
            upscale_file(content, io.BytesIO(), bicubic)
        assert "repmamba-" not in str(caught.value)


def test_what_cannot_take_a_result_is_refused(scene, bicubic):
    with pytest.raises(UsageError, match=r"The output is a int: give a path"):
        upscale_file(scene, 5, bicubic)
    with pytest.raises(TargetError, match="cannot be written to"):
        upscale_file(scene, io.StringIO(), bicubic)


def test_a_strangers_picture_in_memory_is_checked_as_a_file_is(bicubic):
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 120, 60)).save(stream, "PNG")
    assert upscale_file(stream.getvalue(), io.BytesIO(), bicubic, untrusted=True).grid.width == 80
    with pytest.raises(SourceError, match="not in a format that untrusted=True reads"):
        upscale_file(b"GIF89a" + bytes(100), io.BytesIO(), bicubic, untrusted=True)
