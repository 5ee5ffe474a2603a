"""Names that no file can have, of inputs and of outputs: one line at the start, no traceback and no
late end.
"""

import os
from pathlib import Path

import pytest

from repmamba.errors import SourceError, TargetError
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.source.raster import open_raster


@pytest.mark.parametrize("name", ["a" * 300 + ".tif", "a\0b.tif", "b:" + "a" * 300])
def test_an_input_that_no_file_can_be_called_is_one_line(name):
    with pytest.raises(SourceError, match=r"does not exist|cannot be read") as caught:
        open_raster(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", [0, 300])
def test_the_text_of_a_virtual_raster_stands_for_its_name_at_any_length(
    write_raster, smooth, tmp_path, bicubic, monkeypatch, padding
):
    write_raster("in.tif", smooth(1, 20, 20))
    monkeypatch.chdir(tmp_path)
    text = (
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" '
        'band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">in.tif</SourceFilename><SourceBand>1</SourceBand>{" " * padding}'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert upscale_file(text, tmp_path / "out.tif", bicubic).grid.width == 40


@pytest.mark.parametrize("length", [228, 229, 239, 250, 255, 256, 300])
def test_the_name_of_an_output_leaves_room_for_that_of_its_working_folder(
    write_raster, smooth, tmp_path, bicubic, length
):
    path, target = (
        write_raster("in.tif", smooth(1, 20, 20)),
        tmp_path / ("ä" + "a" * (length - 6) + ".tif"),
    )
    assert len(os.fsencode(target.name)) == length
    if length <= 228:
        upscale_file(path, target, bicubic)
        return
    for attempt in (plan_file, upscale_file):
        with pytest.raises(TargetError, match=rf"has {length} bytes; at most 228 leave room"):
            attempt(path, target, bicubic)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize(
    "name", [os.fsdecode(b"\xff\xfe.tif"), "a\0b.tif", os.fsdecode(b"\xff/out.tif")]
)
def test_an_output_whose_name_gdal_cannot_be_told_is_refused_at_the_start(
    write_raster, smooth, tmp_path, bicubic, name
):
    path = write_raster("in.tif", smooth(1, 20, 20))
    for attempt in (plan_file, upscale_file):
        with pytest.raises(TargetError, match="is not valid UTF-8"):
            attempt(path, tmp_path / name, bicubic)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]


def test_a_folder_that_cannot_be_called_so_does_not_exist(write_raster, smooth, bicubic):
    path = write_raster("in.tif", smooth(1, 20, 20))
    with pytest.raises(TargetError, match="does not exist"):
        upscale_file(path, Path("a" * 300, "out.tif"), bicubic)
