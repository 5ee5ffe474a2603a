"""Where a raster is read from, and whether it is still the same one when a stopped run goes on."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio

from repmamba.errors import JobChanged, SourceError, UsageError
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.source.origin import file_behind, identify_address, source_identity


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("{at}/a.tif", "a.tif"),
        ("/vsizip/{at}/z.zip/inner/a.tif", "z.zip"),
        ("/vsizip/{{{at}/z.zip}}/inner/a.tif", "z.zip"),
        ("/vsitar/{at}/z.tar/a.tif", "z.tar"),
        ("/vsigzip/{at}/a.tif.gz", "a.tif.gz"),
        ("/vsizip//vsitar/{at}/z.tar/z.zip/a.tif", "z.tar"),
        ("/vsisubfile/120_400,{at}/a.tif", "a.tif"),
        ("GTIFF_DIR:2:{at}/a.tif", "a.tif"),
        ("GTIFF_DIR:off:8:{at}/a.tif", "a.tif"),
        ("NETCDF:{at}/a.tif:heat", "a.tif"),
        ('HDF5:"{at}/a.tif"://group/heat', "a.tif"),
        ("SENTINEL2_L1C:/vsizip/{at}/z.zip/MTD.xml:10m:EPSG_32632", "z.zip"),
        ("vrt://{at}/a.tif?bands=1", "a.tif"),
        ("GTIFF_DIR:2:{at}/gone.tif", None),
        ("/vsimem/a.tif", None),
        ("/vsizip/{at}/gone.zip/a.tif", None),
        ("/vsicurl/http://127.0.0.1:9/a.tif", None),
        ("/vsizip//vsicurl/http://127.0.0.1:9/z.zip/a.tif", None),
        ("/vsis3/bucket/a.tif", None),
        ("{at}", None),
    ],
)
def test_the_file_behind_a_name_is_found_through_archives_and_nowhere_else(
    tmp_path, monkeypatch, name, file
):
    for made in ("a.tif", "z.zip", "z.tar", "a.tif.gz"):
        (tmp_path / made).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)  # where /vsimem/a.tif must not be taken for a.tif
    assert file_behind(name.format(at=tmp_path)) == (None if file is None else tmp_path / file)
    if file is not None:
        assert file_behind(name.format(at=".").replace("//vsitar/./", "/vsitar/")) == Path(file)


def test_members_of_one_archive_are_told_apart_and_what_nobody_knows_is_named(tmp_path):
    (tmp_path / "z.zip").write_bytes(b"x")
    one, other = (
        source_identity(name, [name])
        for name in (f"/vsizip/{tmp_path}/z.zip/{part}.tif" for part in "ab")
    )
    assert one["files"] == other["files"]
    assert one != other
    assert "unidentified" not in one
    assert source_identity("/vsimem/a.tif", [])["unidentified"] == ["/vsimem/a.tif"]


def virtual(path: Path, source: str) -> Path:
    """A virtual raster of 200 x 200 pixels over another raster."""
    path.write_text(
        '<VRTDataset rasterXSize="200" rasterYSize="200"><VRTRasterBand dataType="Byte" '
        'band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{escape(source)}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


CHAINS = {  # how a virtual raster may lead to scene.tif by way of another one
    "a virtual raster": lambda folder, inner: inner,
    "a text in the place of a name": lambda folder, inner: Path(inner).read_text(),
    "a name with bands": lambda folder, inner: f"vrt://{inner}?bands=1",
    "one of several in a file": lambda folder, inner: f"GTIFF_DIR:1:{folder}/scene.tif",
}


@pytest.fixture(params=CHAINS)
def chain(request, tmp_path, write_raster, smooth) -> Path:
    write_raster("scene.tif", smooth(1, 200, 200))
    inner = virtual(tmp_path / "inner.vrt", f"{tmp_path}/scene.tif")
    return virtual(tmp_path / "outer.vrt", CHAINS[request.param](tmp_path, str(inner)))


def test_the_innermost_input_of_virtual_rasters_is_not_overwritten(chain, tmp_path, bicubic):
    before = (tmp_path / "scene.tif").read_bytes()
    with pytest.raises(UsageError, match=r"scene\.tif is a part of the input"):
        upscale_file(chain, tmp_path / "scene.tif", bicubic, overwrite=True)
    assert (tmp_path / "scene.tif").read_bytes() == before


def test_a_run_on_virtual_rasters_goes_on_with_that_innermost_input(
    chain, tmp_path, write_raster, smooth, bicubic
):
    target = tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        upscale_file(chain, target, bicubic, progress=stop)
    kept = (tmp_path / "scene.tif").read_bytes()
    write_raster("scene.tif", 255 - smooth(1, 200, 200))
    for attempt in (upscale_file, plan_file):
        with pytest.raises(JobChanged, match=r"source\.files"):
            attempt(chain, target, bicubic)
    (tmp_path / "scene.tif").write_bytes(kept)
    assert upscale_file(chain, target, bicubic).resumed > 0


def test_an_innermost_input_that_changes_while_it_is_read_leaves_no_result(
    chain, tmp_path, bicubic
):
    def touch(done: int, total: int) -> None:
        if done:
            os.utime(tmp_path / "scene.tif", ns=(1, 1))

    with pytest.raises(SourceError, match=r"scene\.tif changed while it was read"):
        upscale_file(chain, tmp_path / "out.tif", bicubic, progress=touch)
    assert not (tmp_path / "out.tif").exists()


def test_a_virtual_raster_of_itself_is_one_line(tmp_path, bicubic):
    loop = virtual(tmp_path / "loop.vrt", f"{tmp_path}/loop.vrt")
    with pytest.raises(SourceError) as caught:
        upscale_file(loop, tmp_path / "out.tif", bicubic)
    assert "\n" not in str(caught.value)


@pytest.fixture
def archive(tmp_path, write_raster, smooth):
    """Writes an archive of one scene, which is another one each time, and gives GDAL's name for
    what is in it.
    """
    seen = iter(range(9))

    def write() -> str:
        scene = write_raster("scene.tif", smooth(1, 200, 200) + np.uint8(next(seen)))
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
            file.write(scene, "scene.tif")
        return f"/vsizip/{tmp_path}/z.zip/scene.tif"

    return write


def stop(done: int, total: int) -> None:
    if done > total / 2:
        raise KeyboardInterrupt


def test_a_run_on_an_archive_goes_on_with_that_archive_alone(archive, tmp_path, bicubic):
    name, target = archive(), tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        upscale_file(name, target, bicubic, progress=stop)
    kept = tmp_path / "kept.zip"
    shutil.copy(tmp_path / "z.zip", kept)
    archive()
    for attempt in (upscale_file, plan_file):
        with pytest.raises(JobChanged, match="source"):
            attempt(name, target, bicubic)
    shutil.copy(kept, tmp_path / "z.zip")
    assert upscale_file(name, target, bicubic).resumed > 0


def test_an_archive_that_is_replaced_while_it_is_read_leaves_no_result(archive, tmp_path, bicubic):
    name = archive()

    def replace(done: int, total: int) -> None:
        if done:
            os.utime(tmp_path / "z.zip", ns=(1, 1))

    with pytest.raises(SourceError, match=r"z\.zip changed while it was read"):
        upscale_file(name, tmp_path / "out.tif", bicubic, progress=replace)
    assert not (tmp_path / "out.tif").exists()


@pytest.fixture
def address(tmp_path, write_raster, smooth) -> Iterator[str]:
    """The address of a scene, served by a process of its own."""
    write_raster("scene.tif", smooth(1, 200, 200))
    say(tmp_path)
    command = [sys.executable, Path(__file__).with_name("address_server.py"), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/scene.tif"
        server.kill()


def say(folder: Path, **headers: str) -> None:
    """What the server is to say of its file from now on."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    (folder / "says.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}),
        (
            {"Last_Modified": "Mon, 02 Nov 2026 10:00:00 GMT"},
            {"Last_Modified": "Tue, 03 Nov 2026 10:00:00 GMT"},
        ),
    ],
)
def test_a_run_on_an_address_goes_on_while_its_server_says_the_same(
    address, tmp_path, bicubic, before, after
):
    target = tmp_path / "out.tif"
    say(tmp_path, **before)
    with pytest.raises(KeyboardInterrupt):
        upscale_file(address, target, bicubic, progress=stop)
    say(tmp_path, **after)
    for attempt in (upscale_file, plan_file):
        with pytest.raises(JobChanged, match=r"source\.addresses"):
            attempt(address, target, bicubic)
    say(tmp_path, **before)
    assert upscale_file(address, target, bicubic).resumed > 0


def test_an_address_that_says_something_else_in_the_end_leaves_no_result(
    address, tmp_path, bicubic
):
    say(tmp_path, ETag='"one"')

    def change(done: int, total: int) -> None:
        if done == total:
            say(tmp_path, ETag='"two"')

    with pytest.raises(SourceError, match="changed while it was read"):
        upscale_file(address, tmp_path / "out.tif", bicubic, progress=change)
    assert not (tmp_path / "out.tif").exists()


def test_a_run_on_what_nobody_can_tell_apart_is_not_continued(address, tmp_path, bicubic):
    target = tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        upscale_file(address, target, bicubic, progress=stop)
    for attempt in (upscale_file, plan_file):
        with pytest.raises(JobChanged, match=r"no ETag or modification time\. Start again"):
            attempt(address, target, bicubic)
    plan_file(address, target, bicubic, restart=True)
    assert upscale_file(address, target, bicubic, restart=True).resumed == 0
    with rasterio.open(target) as file:
        assert file.width == 400


def test_a_server_is_asked_for_what_it_says_and_not_for_the_file(address, tmp_path):
    say(tmp_path, ETag='"one"')
    size = str((tmp_path / "scene.tif").stat().st_size)
    assert identify_address(address) == {"etag": '"one"', "modified": None, "bytes": size}
    assert identify_address(f"/vsicurl/{address}") == identify_address(address)
    assert identify_address(f"{address}.gone") is None
    assert identify_address("ftp://127.0.0.1/scene.tif") is None


def test_what_was_at_an_address_before_is_not_read_again(
    address, tmp_path, bicubic, write_raster, smooth
):
    upscale_file(address, tmp_path / "before.tif", bicubic)
    write_raster("scene.tif", smooth(1, 210, 220))
    assert upscale_file(address, tmp_path / "after.tif", bicubic).grid.width == 440
