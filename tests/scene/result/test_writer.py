import itertools
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from repmamba.errors import (
    JobChanged,
    ShapeMismatch,
    TargetError,
    TargetExists,
    UsageError,
    VerificationError,
)
from repmamba.scene.result.assembly import world_file
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.overviews import halved
from repmamba.scene.result.readback import squares
from repmamba.scene.result.receipt import check_cover, receipt_path
from repmamba.scene.source.admission import UNTRUSTED_SETTINGS
from repmamba.scene.source.grid import Grid
from repmamba.tiles.window import Window

from .made_scene import JOB, PLACE, SCENES, Described, MadeScene

SMALL = MadeScene(grid=Grid(150, 130, PLACE.transform, PLACE.crs), tile=64)
UNPLACED = Grid(150, 130)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(path) as file:
        return file.read(), file.dataset_mask() != 0


@pytest.mark.parametrize(
    "scene",
    [
        SMALL,
        replace(SMALL, mask=True),
        replace(SMALL, dtype="float32", count=5, nodata=-9999.0),
        replace(SMALL, dtype="uint16", count=4, colorinterp=("red", "green", "blue", "alpha")),
        replace(SMALL, dtype="int16", count=1, grid=UNPLACED),
        replace(SMALL, count=4, mask=True, colorinterp=("red", "green", "blue", "alpha")),
        replace(
            SMALL, format="COG", count=4, mask=True, colorinterp=("red", "green", "blue", "alpha")
        ),
        replace(
            SMALL, format="COG", count=2, dtype="uint16", mask=True, colorinterp=("gray", "alpha")
        ),
        replace(SMALL, format="COG", dtype="uint16", mask=True),
        replace(SMALL, format="COG", count=4, colorinterp=("red", "green", "blue", "alpha")),
        replace(SMALL, format="PNG", count=4, colorinterp=("red", "green", "blue", "alpha")),
        replace(SMALL, format="PNG", dtype="uint16", count=1),
        replace(SMALL, creation=(("COMPRESS", "ZSTD"), ("BLOCKXSIZE", "64"), ("BLOCKYSIZE", "64"))),
    ],
    ids=lambda scene: f"{scene.format}-{scene.dtype}x{scene.count}{'-mask' * scene.mask}",
)
def test_what_is_put_in_is_what_the_file_holds(tmp_path, scene: MadeScene):
    target = tmp_path / "scene.bin"
    receipt = scene.write(target)
    data, valid = read(target)
    np.testing.assert_array_equal(data, scene.data())
    if scene.mask:
        np.testing.assert_array_equal(valid, scene.valid())
    assert (receipt.bytes, receipt.lossless) == (target.stat().st_size, True)
    with rasterio.open(target) as file:
        assert file.crs == scene.grid.crs
        assert scene.grid.transform is None or file.transform.almost_equals(scene.grid.transform)
        assert file.nodata == scene.nodata


def test_a_jpeg_is_near_what_was_put_in_and_carries_its_mask_and_place(tmp_path):
    scene = replace(SMALL, format="JPEG", mask=True)
    receipt = scene.write(tmp_path / "scene.jpg")
    data, valid = read(tmp_path / "scene.jpg")
    assert np.abs(data.astype(float) - scene.data()).mean() < 6
    np.testing.assert_array_equal(valid, scene.valid())
    assert not receipt.lossless
    with rasterio.open(tmp_path / "scene.jpg") as file:
        assert file.crs == PLACE.crs
        assert file.transform.almost_equals(PLACE.transform)


@pytest.mark.parametrize("name", SCENES)
def test_neither_the_order_nor_the_threads_nor_the_stops_change_a_byte(tmp_path, name):
    file, scene = SCENES[name]
    first, second, third = (tmp_path / folder for folder in ("forward", "backward", "threads"))
    for folder in (first, second, third):
        folder.mkdir()
    scene.write(first / file)
    with pytest.raises(KeyboardInterrupt):
        scene.write(second / file, order=-1, before=interrupt_at(3))
    scene.write(second / file, order=-1)
    write_in_threads(scene, third / file)
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (first, second, third)
    ]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("name", SCENES)
def test_a_result_is_the_same_while_a_strangers_file_is_open(tmp_path, name):
    """Around that, GDAL is told to read neither side-cars nor what else lies in a folder."""
    file, scene = SCENES[name]
    for folder in ("alone", "beside"):
        (tmp_path / folder).mkdir()
    alone = scene.write(tmp_path / "alone" / file)
    with rasterio.Env(**UNTRUSTED_SETTINGS):
        assert scene.write(tmp_path / "beside" / file) == alone


def interrupt_at(number: int) -> Any:
    calls = iter(range(1000))

    def before(index: int) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt

    return before


def write_in_threads(scene: MadeScene, target: Path) -> None:
    data, valid = scene.data(), scene.valid()
    with scene.writer(target) as writer:

        def put(start: int) -> None:
            for index in range(start, len(scene.windows), 3):
                rows, cols = scene.windows[index].slices
                writer.put(index, data[:, rows, cols], valid[rows, cols] if scene.mask else None)

        threads = [threading.Thread(target=put, args=(start,)) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish()


@settings(max_examples=15)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    first=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    tile=st.integers(40, 150),
    mask=st.booleans(),
)
def test_tiles_that_do_not_end_on_blocks_make_the_same_picture(
    tmp_path_factory, height, width, first, tile, mask
):
    """As --window makes them: the first row and column of tiles is cut short."""
    rows = [0, *range(min(first[0], height), height, tile), height]
    cols = [0, *range(min(first[1], width), width, tile), width]
    tiles = tuple(
        Window(top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(cols)
        if bottom > top and right > left
    )
    scene = MadeScene(grid=Grid(width, height, PLACE.transform, PLACE.crs), tiles=tiles, mask=mask)
    target = tmp_path_factory.mktemp("unaligned") / "scene.tif"
    scene.write(target)
    data, valid = read(target)
    np.testing.assert_array_equal(data, scene.data())
    np.testing.assert_array_equal(valid, scene.valid() if mask else np.ones_like(valid))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("size", [(700, 600), (1301, 1025), (40, 30)])
def test_a_cog_is_one_to_the_strict_validator_and_its_overviews_are_means(tmp_path, size, mask):
    scene = MadeScene("COG", mask=mask, grid=Grid(*size, PLACE.transform, PLACE.crs))
    target = tmp_path / "scene.cog.tif"
    scene.write(target)
    assert cog_validate(target, strict=True) == (True, [], [])
    with rasterio.open(target) as file:
        levels = len(file.overviews(1))
    assert levels == sum(max(size) > 512 * 2**level for level in range(5))
    above, valid = read(target)
    for level in range(levels):
        with rasterio.open(target, overview_level=level) as file:
            expected, expected_valid = halved(above, valid)
            above, valid = file.read(), file.dataset_mask() != 0
        np.testing.assert_array_equal(above, expected)
        np.testing.assert_array_equal(valid, expected_valid)


def test_an_overview_leaves_missing_pixels_out_and_rounds_half_up():
    data = np.array([[[10, 21, 7], [0, 0, 9], [4, 5, 0]]], np.int16)
    half, valid = halved(data, None, nodata=[0])
    assert valid is None
    assert half.tolist() == [[[16, 8], [5, 0]]]  # (10 + 21) / 2, (7 + 9) / 2, (4 + 5) / 2, nothing
    half, valid = halved(data, data[0] != 0)
    assert half[0, :, 0].tolist() == [16, 5]
    assert valid.tolist() == [[True, True], [True, False]]
    assert halved(np.array([[[-2, 2]]], np.int16), None, nodata=[0])[0].item() == 2


def test_an_overview_of_floats_passes_over_nan():
    data = np.array([[[1.0, np.nan], [2.0, 6.0]]], np.float32)
    assert halved(data, None, nodata=[float("nan")])[0].item() == 3.0
    assert halved(data, None)[0].item() == 3.0
    assert np.isnan(halved(np.full((1, 2, 2), np.nan), None)[0].item())


def test_an_overview_leaves_what_is_transparent_out_and_halves_the_opacity():
    data = np.array([[[10, 99], [20, 99]], [[255, 0], [255, 0]]], np.uint8)
    assert halved(data, None, alpha=1)[0].ravel().tolist() == [15, 128]


def test_all_that_a_profile_says_is_in_the_file(tmp_path):
    places = ((0, 0, 10, 50), (0, 150, 11, 50), (130, 0, 10, 49))
    points = tuple(GroundControlPoint(*place) for place in places)
    profile = OutputProfile(
        "GTiff",
        UNPLACED,
        2,
        "uint16",
        nodata=7.0,
        colorinterp=("gray", "undefined"),
        descriptions=("B04", None),
        scales=(0.01, 1.0),
        offsets=(5.0, 0.0),
        units=("m", None),
        tags={"": {"AREA_OR_POINT": "Point", "SENSOR": "x"}, "OWN": {"a": "b"}},
        band_tags=({"": {"WAVELENGTH": "665"}, "IMAGERY": {"FWHM_UM": "0.1"}}, {}),
        gcps=(points, CRS.from_epsg(4326)),
    )
    for format_name, name in (("GTiff", "scene.tif"), ("COG", "scene.cog.tif")):
        scene = Described(replace(profile, format=format_name))
        scene.write(tmp_path / name)
        with rasterio.open(tmp_path / name) as file:
            assert file.nodata == 7
            assert file.descriptions == ("B04", None)
            assert (file.scales, file.offsets, file.units) == ((0.01, 1.0), (5.0, 0.0), ("m", None))
            # a COG has one namespace
            own = file.tags(ns="OWN").get("a") or file.tags().get("OWN.a")
            assert (file.tags()["SENSOR"], own, file.tags(1)["WAVELENGTH"]) == ("x", "b", "665")
            of_band = file.tags(1, ns="IMAGERY").get("FWHM_UM") or file.tags(1).get(
                "IMAGERY.FWHM_UM"
            )
            assert (of_band, file.tags(2).get("WAVELENGTH")) == ("0.1", None)
            # in spite of Point
            assert tuple((p.row, p.col, p.x, p.y) for p in file.gcps[0]) == places
            assert file.gcps[1] == CRS.from_epsg(4326)


@pytest.mark.parametrize("name", ["GTiff", "COG"])
def test_a_raster_of_points_keeps_saying_so_and_stays_where_it_is(tmp_path, name):
    profile = OutputProfile(name, PLACE, 1, "uint8", tags={"": {"AREA_OR_POINT": "Point"}})
    Described(profile).write(tmp_path / "scene.tif")
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert file.tags()["AREA_OR_POINT"] == "Point"
        assert file.transform.almost_equals(PLACE.transform)


def test_rpcs_are_in_the_file(tmp_path):
    names = ("LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF")
    rpcs = dict.fromkeys(names, "12.5") | {name.replace("OFF", "SCALE"): "100" for name in names}
    for name in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN"):
        rpcs[f"{name}_COEFF"] = " ".join(["1"] + ["0"] * 19)
    Described(OutputProfile("GTiff", UNPLACED, 1, "uint8", rpcs=rpcs)).write(tmp_path / "scene.tif")
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert (file.rpcs.line_off, file.rpcs.samp_scale) == (12.5, 100)


def test_a_big_tiff_has_64_bit_offsets(tmp_path):
    for choice, version in (("YES", 43), ("NO", 42)):
        replace(SMALL, creation=(("BIGTIFF", choice),)).write(tmp_path / f"{choice}.tif")
        assert struct.unpack("<H", (tmp_path / f"{choice}.tif").read_bytes()[2:4]) == (version,)


def test_a_place_that_a_png_cannot_hold_goes_beside_it_and_a_picture_gets_no_side_car(tmp_path):
    replace(SMALL, format="PNG").write(tmp_path / "scene.png")
    replace(SMALL, format="PNG", grid=UNPLACED).write(tmp_path / "picture.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "picture.png",
        "picture.png.receipt.json",
        "scene.pgw",
        "scene.png",
        "scene.png.aux.xml",
        "scene.png.receipt.json",
    ]
    assert (tmp_path / "scene.pgw").read_text() == world_file(PLACE.transform)


def test_a_world_file_counts_from_the_centre_of_the_first_pixel():
    lines = world_file(Affine(2, 0.5, 100, 0.25, -4, 200)).split()
    assert [float(line) for line in lines] == [2, 0.25, 0.5, -4, 101.25, 198.125]


# ---- what is there already


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path):
    target = tmp_path / "scene.tif"
    target.write_bytes(b"dear to someone")
    with pytest.raises(TargetExists, match="overwrite=True"):
        SMALL.write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]
    with pytest.raises(KeyboardInterrupt):
        SMALL.write(target, overwrite=True, before=interrupt_at(4))
    assert target.read_bytes() == b"dear to someone"
    SMALL.write(target, overwrite=True)
    np.testing.assert_array_equal(read(target)[0], SMALL.data())


def test_a_file_that_appears_while_the_result_is_computed_is_kept(tmp_path):
    target = tmp_path / "scene.tif"

    def someone_else_writes(index: int) -> None:
        target.write_bytes(b"meanwhile")

    with pytest.raises(TargetExists, match="appeared"):
        SMALL.write(target, before=someone_else_writes)
    assert target.read_bytes() == b"meanwhile"
    target.unlink()
    SMALL.write(target, before=lambda index: pytest.fail("a tile was computed twice"))


def test_a_side_car_of_another_file_does_not_become_part_of_the_result(tmp_path):
    sidecar = tmp_path / "scene.tif.aux.xml"
    sidecar.write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    with pytest.raises(TargetExists, match=r"aux\.xml"):
        SMALL.write(tmp_path / "scene.tif")
    SMALL.write(tmp_path / "scene.tif", overwrite=True)
    assert not sidecar.exists()
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert file.crs == PLACE.crs


def test_a_stopped_run_of_another_job_is_refused_with_the_differences(tmp_path, caplog):
    target = tmp_path / "scene.tif"
    with pytest.raises(KeyboardInterrupt):
        SMALL.write(target, before=interrupt_at(2))
    changed = replace(
        SMALL, job=replace(JOB, settings={"scale": 4, "tile": 128}, weights="ef" * 16)
    )
    with pytest.raises(
        JobChanged, match=r"settings.tile: 64 -> 128; weights: (cd)+ -> (ef)+.*restart=True"
    ):
        changed.write(target)
    assert not target.exists()
    changed.write(target, restart=True)
    assert target.exists()
    leftover = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(leftover) == 1
    assert str(leftover[0]) in caplog.text
    target.unlink()
    SMALL.write(target, before=(again := []).append)
    assert len(again) == len(SMALL.windows) - 2


def test_restart_computes_every_tile_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        SMALL.write(tmp_path / "scene.tif", before=interrupt_at(4))
    SMALL.write(tmp_path / "scene.tif", restart=True, before=(again := []).append)
    assert again == list(range(len(SMALL.windows)))


def test_a_stopped_run_may_change_how_the_result_is_stored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        SMALL.write(tmp_path / "scene.tif", before=interrupt_at(4))
    lzw = replace(SMALL, creation=(("COMPRESS", "LZW"),))
    lzw.write(tmp_path / "scene.tif", before=(again := []).append)
    assert len(again) == len(SMALL.windows) - 4
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert file.compression.value == "LZW"


# ---- what is refused


def test_a_tile_of_the_wrong_kind_is_refused(tmp_path):
    with SMALL.writer(tmp_path / "scene.tif") as writer:
        with pytest.raises(ShapeMismatch, match=r"uint8 \(3, 64, 64\)"):
            writer.put(0, np.zeros((3, 64, 64), np.float32))
        with pytest.raises(ShapeMismatch, match="valid mask"):
            writer.put(0, np.zeros((3, 64, 64), np.uint8), np.ones((64, 65), bool))


def test_a_result_is_not_finished_before_its_tiles(tmp_path):
    with (
        SMALL.writer(tmp_path / "scene.tif") as writer,
        pytest.raises(UsageError, match="9 tiles are not finished"),
    ):
        writer.finish()


def test_a_tile_that_comes_twice_must_come_equal(tmp_path):
    tile = np.full((3, 64, 64), 9, np.uint8)
    with SMALL.writer(tmp_path / "scene.tif") as writer:
        writer.put(0, tile)
        writer.put(0, tile.copy())
        with pytest.raises(VerificationError, match="computed twice with different results"):
            writer.put(0, tile + 1)
        assert 0 not in writer.remaining()


def test_a_folder_or_a_missing_folder_is_no_target(tmp_path):
    with pytest.raises(TargetError, match="is a folder"):
        SMALL.writer(tmp_path)
    with pytest.raises(TargetError, match="does not exist"):
        SMALL.writer(tmp_path / "missing" / "scene.tif")


@pytest.mark.parametrize(
    "tiles",
    [
        (),
        squares(100, 90, 50)[:-1],
        (*squares(100, 90, 50), Window(0, 0, 10, 10)),
        (Window(0, 0, 90, 101),),
        (Window(0, 0, 45, 100), Window(0, 0, 45, 100)),
    ],
)
def test_tiles_must_cover_every_pixel_once(tiles):
    check_cover(squares(100, 90, 50), 100, 90)
    with pytest.raises(UsageError, match="exactly once"):
        check_cover(tiles, 100, 90)


def test_a_link_to_the_target_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "scene.tif"
    link.symlink_to(tmp_path / "there" / "scene.tif")
    SMALL.write(link)
    assert link.is_symlink()
    assert receipt_path(tmp_path / "there" / "scene.tif").exists()
