"""Raster: what is read, what is missing, and one line for everything that can be wrong with a
file.
"""

import errno
import io
import os
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image

from repmamba.errors import CorruptSource, NoSpace, SourceError, UsageError
from repmamba.scene.engine import upscale_file
from repmamba.scene.source.admission import Limits, ReadOptions
from repmamba.scene.source.raster import open_raster
from repmamba.tiles.plan import plan_tiles
from repmamba.tiles.window import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

READABLE = (
    "201404_13SED190110_201404_0x1500m_CL_1_mask.tif",
    "RGBA.uint16.tif",
    "all-nodata.tif",
    "au-3577-rotated.tif",
    "cog.tif",
    "cog_gcps.tif",
    "cog_hirise_mars.tif",
    "cog_nodata_nan.tif",
    "cog_scale.tif",
    "goes.tif",
    "image_nodata.tif",
    "mosaic_cog1.tif",
    "pix4d_alpha_nodata.tif",
    "rgb_lzw.tif",
    "test_rpcs.tif",
)


@pytest.mark.parametrize("name", READABLE)
def test_windows_hold_what_rasterio_reads_and_gdals_mask(geotiffs, name):
    with rasterio.open(geotiffs / name) as file, open_raster(geotiffs / name) as raster:
        expected, mask = file.read(), file.dataset_mask() != 0
        assert (raster.facts.count, raster.grid.height, raster.grid.width) == expected.shape
        for tile in plan_tiles(*file.shape, 2, tile=200, halo=20):
            raw, valid = raster.read(tile.read)
            np.testing.assert_array_equal(raw, expected[:, *tile.read.slices])
            np.testing.assert_array_equal(valid, mask[tile.read.slices])


@pytest.mark.parametrize("name", ["strips.tif", "picture.png", "picture.jpg"])
def test_what_is_stored_by_rows_is_decoded_once(write_raster, smooth, name, monkeypatch):
    data = smooth(3, 700, 150)
    if name.endswith(".tif"):
        path = write_raster(name, data, blockysize=7)
    else:
        path = write_raster(
            name, data, driver="PNG" if "png" in name else "JPEG", crs=None, transform=None
        )
    with open_raster(path) as raster:
        rows_decoded = 0
        decode = raster._pixels._from_file

        def counted(window: Window):
            nonlocal rows_decoded
            assert window.width == 150
            rows_decoded += window.height
            return decode(window)

        monkeypatch.setattr(type(raster._pixels), "_from_file", lambda _, window: counted(window))
        for tile in plan_tiles(700, 150, 2, tile=64, halo=16):
            raster.read(tile.read)
        assert rows_decoded == 700


def test_rows_may_also_be_read_out_of_order(write_raster, smooth):
    data = smooth(2, 300, 40)
    path = write_raster("strips.tif", data, blockysize=11)
    random = np.random.default_rng(5)
    with open_raster(path) as raster:
        for _ in range(40):
            row, height = int(random.integers(0, 290)), int(random.integers(1, 10))
            raw, _ = raster.read(Window(row, 3, height, 20))
            np.testing.assert_array_equal(raw, data[:, row : row + height, 3:23])


@pytest.mark.parametrize(
    ("profile", "missing"),
    [
        ({}, ""),
        ({"nodata": 7}, "nodata"),
        ({"nodata": -9999.0, "dtype": "float32"}, "nodata"),
        ({"mask": True}, "mask"),
        ({"alpha": True}, "alpha"),
    ],
)
def test_a_raster_says_how_it_tells_of_missing_pixels(write_raster, smooth, profile, missing):
    profile = dict(profile)
    has_alpha = profile.pop("alpha", False)
    data = smooth(4 if has_alpha else 2, 20, 30).astype(profile.pop("dtype", "uint8"))
    mask = np.ones((20, 30), bool) if profile.pop("mask", False) else None
    photometric = {"photometric": "RGB", "alpha": "YES"} if has_alpha else {}
    with open_raster(write_raster("file.tif", data, mask=mask, **photometric, **profile)) as raster:
        assert raster.facts.missing == missing
        assert raster.facts.nodata == profile.get("nodata")


def test_one_band_that_equals_nodata_is_data(write_raster):
    data = np.full((3, 4, 4), 9, np.uint8)
    data[0, 1, 1] = 0
    data[:, 2, 2] = 0
    with open_raster(write_raster("file.tif", data, nodata=0)) as raster:
        _, valid = raster.read(raster.whole)
    assert valid[1, 1]
    assert not valid[2, 2]
    assert valid.sum() == 15


def test_a_nodata_that_no_pixel_can_have_says_nothing(tmp_path, write_raster, smooth):
    vrt = tmp_path / "odd.vrt"
    source = write_raster("file.tif", smooth(1, 8, 8))
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        f"<NoDataValue>-9999</NoDataValue><SimpleSource><SourceFilename>{source}</SourceFilename>"
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with open_raster(vrt) as raster:
        assert (raster.facts.missing, raster.facts.nodata) == ("", None)


def virtual(
    path: Path,
    sources: list[Path],
    inside: str = "",
    of_bands: tuple[str, ...] = (),
    size: int = 20,
) -> Path:
    """A virtual raster with a band of each source; XML goes inside it, and inside its bands."""
    bands = [
        '<VRTRasterBand dataType="Byte" '
        f'band="{number}">{says}<SimpleSource><SourceFilename>{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (source, says) in enumerate(
            zip(sources, of_bands or ("",) * len(sources), strict=True), start=1
        )
    ]
    path.write_text(
        f'<VRTDataset rasterXSize="{size}" '
        f'rasterYSize="{size}">{inside}{"".join(bands)}</VRTDataset>'
    )
    return path


def a_cube(folder: Path, write_raster) -> Path:
    data = np.full((1, 20, 20), 9, np.uint8)
    data[0, :5] = 0
    rasterio.shutil.copy(write_raster("in.tif", data, nodata=0), folder / "in.cub", driver="ISIS3")
    return folder / "in.cub"


def a_mask_for_each_band(folder: Path, write_raster) -> Path:
    sources, masks = [], []
    for number, rows in enumerate((5, 8)):
        mask = np.full((1, 20, 20), 255, np.uint8)
        mask[0, :rows] = 0
        inside = write_raster(f"mask{number}.tif", mask)
        masks.append(
            "<MaskBand><VRTRasterBand "
            f'dataType="Byte"><SimpleSource><SourceFilename>{inside}</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
        )
        sources.append(write_raster(f"in{number}.tif", np.full((1, 20, 20), 9, np.uint8)))
    return virtual(folder / "in.vrt", sources, of_bands=tuple(masks))


def a_nodata_that_gdal_rounds(folder: Path, write_raster) -> Path:
    data = np.full((1, 20, 20), 9, np.uint8)
    data[0, :5] = 0
    return virtual(
        folder / "in.vrt",
        [write_raster("in.tif", data)],
        of_bands=("<NoDataValue>0.5</NoDataValue>",),
    )


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (a_cube, "tif"),
        (a_cube, "png"),
        (a_mask_for_each_band, "tif"),
        (a_nodata_that_gdal_rounds, "tif"),
    ],
)
def test_whatever_makes_gdals_mask_tells_of_missing_pixels(
    tmp_path, write_raster, bicubic, make, suffix
):
    path, target = make(tmp_path, write_raster), tmp_path / f"out.{suffix}"
    with open_raster(path) as raster:
        assert (raster.facts.missing, raster.facts.nodata) == ("mask", None)
    upscale_file(path, target, bicubic)
    with rasterio.open(target) as file:
        expected = np.ones((40, 40), bool)
        expected[:10] = False
        np.testing.assert_array_equal(file.dataset_mask() != 0, expected)


def test_nodata_none_leaves_the_masks_of_bands(tmp_path, write_raster):
    path = a_mask_for_each_band(tmp_path, write_raster)
    with open_raster(path) as usual, open_raster(path, ReadOptions(nodata="none")) as given:
        assert given.facts.missing == usual.facts.missing == "mask"
        valid = given.read(given.whole)[1]
        np.testing.assert_array_equal(valid, usual.read(usual.whole)[1])
    assert np.count_nonzero(~valid) == 5 * 20


@pytest.mark.parametrize("nodata", [("", "0"), ("0", ""), ("-9999", "0")])
def test_where_one_band_has_no_missing_pixels_none_is_missing(tmp_path, write_raster, nodata):
    sources = [
        write_raster(f"in{number}.tif", np.zeros((1, 20, 20), np.uint8)) for number in range(2)
    ]
    declared = tuple(f"<NoDataValue>{number}</NoDataValue>" if number else "" for number in nodata)
    with open_raster(virtual(tmp_path / "in.vrt", sources, of_bands=declared)) as raster:
        assert raster.facts.missing == ""
        assert raster.read(raster.whole)[1].all()


@pytest.mark.parametrize(
    ("inside", "transform"),
    [
        ("", None),
        ("<SRS>EPSG:32633</SRS><GeoTransform>0, 1, 0, 0, 0, 1</GeoTransform>", Affine.identity()),
        (
            "<GeoTransform>0.000004, 1.000004, 0, 0, 0, 1.000002</GeoTransform>",
            Affine(1.000004, 0, 4e-6, 0, 1.000002, 0),
        ),
    ],
)
def test_a_transform_counts_also_where_it_is_nearly_none(
    tmp_path, write_raster, smooth, bicubic, inside, transform
):
    source = write_raster("in.tif", smooth(1, 20, 20), crs=None, transform=None)
    path, target = virtual(tmp_path / "in.vrt", [source], inside), tmp_path / "out.tif"
    with open_raster(path) as raster:
        assert raster.grid.transform == transform
        assert raster.facts.has_place == (transform is not None)
    upscale_file(path, target, bicubic)
    with rasterio.open(target) as file:
        assert file.transform == (transform @ Affine.scale(0.5) if transform else Affine.identity())


def test_a_crs_beside_rpcs_or_control_points_makes_no_transform(
    tmp_path, geotiffs, write_raster, smooth
):
    shutil.copy(geotiffs / "test_rpcs.tif", tmp_path / "rpcs.tif")
    with rasterio.open(tmp_path / "rpcs.tif", "r+") as file:
        file.crs = "EPSG:4326"
    source = write_raster("in.tif", smooth(1, 20, 20), crs=None, transform=None)
    corners = ((0, 0), (20, 0), (0, 20))
    points = "".join(
        f'<GCP Id="{x} {y}" Pixel="{x}" Line="{y}" X="{10 + x}" Y="{50 - y}"/>' for x, y in corners
    )
    inside = f'<SRS>EPSG:4326</SRS><GCPList Projection="EPSG:4326">{points}</GCPList>'
    for path in (tmp_path / "rpcs.tif", virtual(tmp_path / "in.vrt", [source], inside)):
        with open_raster(path) as raster:
            assert raster.grid.transform is None
            assert raster.facts.gcps or raster.facts.rpcs


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_as_it_asks(tmp_path, turn, suffix):
    from PIL import ImageOps

    random = np.random.default_rng(turn)
    image = Image.fromarray(
        np.kron(random.integers(0, 256, (70, 9, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    )
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"picture.{suffix}"
    if suffix == "tif":
        image.save(path, tiffinfo={0x0112: turn})
    else:
        image.save(
            path,
            exif=exif,
            **{"webp": {"lossless": True}, "jpg": {"subsampling": 0}}.get(suffix, {}),
        )
    with Image.open(path) as shown:
        expected = np.asarray(ImageOps.exif_transpose(shown).convert("RGB"))
    with open_raster(path) as raster:
        raw, _ = raster.read(raster.whole)
        part, _ = raster.read(Window(5, 3, 20, 31))
    np.testing.assert_allclose(np.moveaxis(raw, 0, 2).astype(int), expected, atol=3)
    np.testing.assert_array_equal(part, raw[:, 5:25, 3:34])


def turned_picture(path: Path, pixels: np.ndarray) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_turned_picture_is_not_held_in_memory(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2000, 1500, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 50)
    with open_raster(turned_picture(tmp_path / "picture.png", pixels)) as raster:
        assert raster.memory_of(64) < pixels.nbytes / 4
        tracemalloc.start()
        raw, valid = raster.read(Window(700, 900, 40, 50))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < raster.memory_of(64) + 1e6
    upright = np.rot90(pixels, -1)[700:740, 900:950]
    np.testing.assert_array_equal(np.moveaxis(raw, 0, 2), upright)
    np.testing.assert_array_equal(valid, upright[..., 3] > 0)


def test_a_block_larger_than_the_cache_counts_as_memory(tmp_path):
    shape = {"width": 20000, "height": 20000, "count": 1, "dtype": "uint8", "sparse_ok": "TRUE"}
    for edge in (512, 16384):
        with rasterio.open(
            tmp_path / f"{edge}.tif",
            "w",
            driver="GTiff",
            tiled=True,
            blockxsize=edge,
            blockysize=edge,
            **shape,
        ):
            pass
    with open_raster(tmp_path / "512.tif") as small, open_raster(tmp_path / "16384.tif") as large:
        assert small.memory_of(272) == 0
        assert large.memory_of(272) == 2 * 16384**2


def test_a_picture_that_there_is_no_room_to_turn_is_one_line(tmp_path, monkeypatch):
    path = turned_picture(tmp_path / "picture.png", np.zeros((20, 30, 3), np.uint8))

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with open_raster(path) as raster, pytest.raises(NoSpace, match="TMPDIR"):
        raster.read(raster.whole)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif"])
def test_the_palette_of_a_picture_becomes_its_colours(tmp_path, suffix):
    random = np.random.default_rng(1)
    colours = Image.fromarray(random.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    image = colours.quantize(16)
    image.save(tmp_path / f"palette.{suffix}")
    with open_raster(tmp_path / f"palette.{suffix}") as raster:
        raw, _ = raster.read(raster.whole)
        assert raster.facts.colorinterp == ("red", "green", "blue")
    np.testing.assert_array_equal(np.moveaxis(raw, 0, 2), np.asarray(image.convert("RGB")))


def test_a_colour_that_means_nothing_here_becomes_alpha(tmp_path):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    image.save(tmp_path / "palette.png", transparency=5)
    with open_raster(tmp_path / "palette.png") as raster:
        raw, valid = raster.read(raster.whole)
        assert raster.facts.colorinterp[-1] == "alpha"
    expected = np.ones((4, 4), bool)
    expected[1, 1] = False
    np.testing.assert_array_equal(raw[-1] > 0, expected)
    np.testing.assert_array_equal(valid, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_black_to_white_in_a_picture(tmp_path, write_raster, bits):
    white = 2**bits - 1
    numbers = (np.arange(12 * 15) % (white + 1)).astype(np.uint8).reshape(1, 12, 15)
    picture = write_raster("grey.png", numbers, driver="PNG", nbits=bits, crs=None, transform=None)
    with open_raster(picture) as raster:
        raw, valid = raster.read(raster.whole)
        assert (raster.facts.colorinterp, raster.facts.dtype) == (("gray",), "uint8")
    np.testing.assert_array_equal(raw, numbers * (255 // white))
    assert valid.all()


def test_numbers_of_few_bits_stay_what_they_are_where_there_is_a_place(write_raster):
    numbers = (np.arange(12 * 15) % 16).astype(np.uint8).reshape(1, 12, 15)
    with open_raster(write_raster("placed.tif", numbers, nbits=4)) as raster:
        np.testing.assert_array_equal(raster.read(raster.whole)[0], numbers)


def test_a_palette_of_classes_is_refused_unless_its_colours_are_meant(geotiffs):
    path = geotiffs / "image_colormap.tif"
    with pytest.raises(UsageError, match=r"probably classes.*expand_palette=True"):
        open_raster(path)
    with open_raster(path, ReadOptions(expand_palette=True)) as raster, rasterio.open(path) as file:
        raw, _ = raster.read(Window(100, 200, 50, 60))
        palette = file.colormap(1)
        classes = file.read(1)[100:150, 200:260]
    np.testing.assert_array_equal(raw[:, 7, 9], palette[int(classes[7, 9])][: raw.shape[0]])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_read_as_colours(tmp_path, suffix):
    random = np.random.default_rng(2)
    image = Image.fromarray(
        np.kron(random.integers(0, 256, (4, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    )
    image.convert("CMYK").save(tmp_path / f"ink.{suffix}")
    with open_raster(tmp_path / f"ink.{suffix}") as raster:
        raw, _ = raster.read(raster.whole)
        assert raster.facts.colorinterp[:3] == ("red", "green", "blue")
    difference = np.abs(np.moveaxis(raw[:3], 0, 2).astype(int) - np.asarray(image))
    assert np.percentile(difference, 90) <= 12


def test_sixteen_bits_of_a_png_are_kept(tmp_path):
    data = np.random.default_rng(3).integers(0, 65536, (9, 8)).astype(np.uint16)
    Image.fromarray(data).save(tmp_path / "deep.png")
    with open_raster(tmp_path / "deep.png") as raster:
        np.testing.assert_array_equal(raster.read(raster.whole)[0][0], data)


def test_alpha_that_is_not_the_last_band_is_given_out_where_it_is(write_raster, smooth):
    data = smooth(4, 10, 10)
    path = write_raster("first.tif", data)
    with rasterio.open(path, "r+") as file:
        colours = rasterio.enums.ColorInterp
        file.colorinterp = [colours.alpha, colours.red, colours.green, colours.blue]
    with open_raster(path) as raster:
        raw, _ = raster.read(raster.whole)
        assert (raster.facts.alpha, raster.facts.colours) == (0, (1, 2, 3))
    np.testing.assert_array_equal(raw, data)


def test_statistics_and_what_a_camera_notes_of_its_owner_are_not_among_the_tags(
    write_raster, smooth
):
    path = write_raster("file.tif", smooth(1, 8, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(ACQUIRED="2021-05-01", EXIF_GPSLatitude="47 N", STATISTICS_MEAN="3")
        file.update_tags(TIFFTAG_MINSAMPLEVALUE="1", TIFFTAG_MAXSAMPLEVALUE="9")
        file.update_tags(1, STATISTICS_MAXIMUM="200", wavelength="665")
        file.update_tags(ns="mission", name="one")
    with open_raster(path) as raster:
        assert raster.facts.tags[""]["ACQUIRED"] == "2021-05-01"
        assert raster.facts.tags["mission"] == {"name": "one"}
        assert not [
            name
            for name in raster.facts.tags[""]
            if name.startswith(("EXIF", "STATISTICS", "TIFFTAG_M"))
        ]
        assert raster.facts.band_tags == ({"": {"wavelength": "665"}},)


def test_of_a_source_s_own_header_what_tells_of_its_grid_and_its_bytes_is_not_among_the_tags(
    tmp_path, smooth
):
    path = tmp_path / "in.img"
    with rasterio.open(
        path, "w", driver="ENVI", width=30, height=20, count=3, dtype="uint8", crs="EPSG:32633"
    ) as file:
        file.write(smooth(3, 20, 30))
    header = path.with_suffix(".hdr")
    more = (
        "sensor type = AVIRIS\nx start = 5\npixel size = {10, 10}\nwavelength = {0.4, 0.5, "
        "0.6}\nfwhm = {1, 2, 3}\n"
    )
    header.write_text(f"{header.read_text().rstrip()}\nwavelength units = Micrometers\n{more}")
    with open_raster(path) as raster:
        assert raster.facts.tags["ENVI"].keys() == {
            "description",
            "sensor_type",
            "wavelength_units",
        }
        assert raster.facts.band_tags[1]["IMAGERY"]["CENTRAL_WAVELENGTH_UM"] == "0.500"
    rasterio.shutil.copy(path, tmp_path / "in.cub", driver="ISIS3")
    with open_raster(tmp_path / "in.cub") as raster:
        assert [space for space in raster.facts.tags if space] == []


def test_several_rasters_in_one_file_are_listed(geotiffs):
    path = geotiffs / "PLANET_SCOPE_3D.nc"
    with pytest.raises(UsageError, match=r"name one of netcdf:.*:blue, netcdf:.*:green"):
        open_raster(path)
    with open_raster(f"netcdf:{path}:blue") as raster:
        assert (raster.grid.width, raster.facts.dtype) == (10, "float64")


def damaged_copy(geotiffs, tmp_path, name: str = "rgb_lzw.tif") -> str:
    path = tmp_path / f"damaged-{name}"
    content = (geotiffs / name).read_bytes()
    path.write_bytes(content[: len(content) // 3])
    return os.fspath(path)


BROKEN = {
    "missing": (lambda folder, tiffs: folder / "nowhere.tif", r"does not exist"),
    "folder": (lambda folder, tiffs: folder, r"is a folder"),
    "empty": (lambda folder, tiffs: made(folder / "empty.tif", b""), r"is empty"),
    "text": (
        lambda folder, tiffs: made(folder / "text.tif", b"hello, world\n" * 9),
        r"cannot be read",
    ),
    "header only": (
        lambda folder, tiffs: made(folder / "cut.png", b"\x89PNG\r\n\x1a\n"),
        r"cannot be read",
    ),
    "complex": (
        lambda folder, tiffs: tiffs / "cint16.tif",
        r"complex_int16: convert them",
    ),
    "fifo": (lambda folder, tiffs: fifo(folder / "pipe.tif"), r"not a regular file"),
}


def made(path, content: bytes):
    path.write_bytes(content)
    return path


def fifo(path):
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, geotiffs, kind):
    make, words = BROKEN[kind]
    with pytest.raises(SourceError, match=words) as caught:
        open_raster(make(tmp_path, geotiffs))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_names_the_window(geotiffs, tmp_path):
    words = r"columns 512 to 790, rows 512 to 717 cannot be read .*on_corrupt='fill'"
    with (
        open_raster(damaged_copy(geotiffs, tmp_path)) as raster,
        pytest.raises(CorruptSource, match=words),
    ):
        raster.read(Window(512, 512, 206, 279))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_picture_is_noticed(tmp_path, smooth, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_raster(path) as raster, pytest.raises(CorruptSource):
        list(map(raster.read, raster.strips()))


def test_corrupt_blocks_can_be_taken_as_missing_and_are_counted(geotiffs, tmp_path):
    with (
        rasterio.open(geotiffs / "rgb_lzw.tif") as whole,
        open_raster(damaged_copy(geotiffs, tmp_path), ReadOptions(on_corrupt="fill")) as raster,
    ):
        raw, valid = raster.read(raster.whole)
        good = whole.dataset_mask() != 0
        expected = whole.read()
        once = raster.corrupt_blocks
        assert 0 < sum(block.height * block.width for block in once) < 718 * 791
        raster.read(Window(400, 400, 300, 300))
        assert raster.corrupt_blocks == once  # blocks that are met again are not counted again
    assert valid.any()
    assert (valid <= good).all()
    np.testing.assert_array_equal(raw[:, valid], expected[:, valid])


def test_a_file_that_changes_while_it_is_read_is_an_error(write_raster, smooth):
    path = write_raster("file.tif", smooth(1, 64, 64))
    with open_raster(path) as raster:
        raster.read(Window(0, 0, 8, 8))
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceError, match="changed while it was read"):
            raster.read(Window(8, 8, 8, 8))


def test_bands_of_several_types_are_refused(tmp_path, write_raster, smooth):
    write_raster("one.tif", smooth(1, 8, 8))
    write_raster("two.tif", smooth(1, 8, 8, "uint16"))
    vrt = tmp_path / "both.vrt"
    bands = [
        f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{name}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (kind, name) in enumerate((("Byte", "one.tif"), ("UInt16", "two.tif")), start=1)
    ]
    vrt.write_text(f'<VRTDataset rasterXSize="8" rasterYSize="8">{"".join(bands)}</VRTDataset>')
    with pytest.raises(SourceError, match=r"bands of different types \(uint16, uint8\)"):
        open_raster(vrt)


def sparse(path, edge):
    """A grey raster of edge x edge pixels that takes no space."""
    shape = {"width": edge, "height": edge, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, sparse_ok=True, **shape):
        return path


class TestStrangersFiles:
    """What --untrusted closes. Each is tried on the user's own files too, where it is allowed."""

    stranger = ReadOptions(untrusted=True)

    def test_a_virtual_raster_is_refused_under_any_name(self, tmp_path, write_raster, smooth):
        source = write_raster("inner.tif", smooth(1, 8, 8))
        vrt = tmp_path / "upload.tif"
        vrt.write_text(
            '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" '
            'band="1"><SimpleSource>'
            f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
            "</VRTDataset>"
        )
        with open_raster(vrt) as raster:
            assert raster.facts.driver == "VRT"
        with pytest.raises(SourceError, match="not in a format that untrusted=True reads"):
            open_raster(vrt, self.stranger)

    @pytest.mark.parametrize(
        "name", ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "<VRTDataset/>"]
    )
    def test_an_address_is_no_file(self, name):
        with pytest.raises(SourceError, match="does not exist"):
            open_raster(name, self.stranger)

    def test_a_side_car_has_no_influence(self, tmp_path, write_raster, smooth):
        path = write_raster("file.tif", smooth(1, 8, 8))
        shutil.copy(path, tmp_path / "copy.tif")
        (tmp_path / "copy.tif.aux.xml").write_text(
            "<PAMDataset><PAMRasterBand "
            'band="1"><NoDataValue>77</NoDataValue></PAMRasterBand></PAMDataset>'
        )
        with open_raster(tmp_path / "copy.tif") as raster:
            assert raster.facts.nodata == 77
        with open_raster(tmp_path / "copy.tif", self.stranger) as raster:
            assert raster.facts.nodata is None

    def test_what_declares_more_pixels_than_allowed_is_refused_before_it_is_decoded(self, tmp_path):
        path = sparse(tmp_path / "sparse.tif", 40000)
        with open_raster(path) as raster:
            assert raster.grid.width == 40000
        with pytest.raises(SourceError, match=r"40000 x 40000 pixels.*max_pixels="):
            open_raster(path, self.stranger)
        with open_raster(path, ReadOptions(untrusted=True, max_pixels=2 * 10**9)) as raster:
            assert raster.grid.width == 40000

    def test_more_pixels_than_bytes_can_hold_are_refused(self, tmp_path):
        path = sparse(tmp_path / "few.tif", 9000)
        with pytest.raises(SourceError, match=r"bytes\. Raise max_pixels="):
            open_raster(path, self.stranger)

    def test_a_block_too_large_to_decode_is_refused(self, write_raster):
        path = write_raster("block.tif", np.zeros((1, 4, 4), np.uint8))
        edge = {"width": 9600, "height": 9600, "blockxsize": 9600, "blockysize": 9600}
        with rasterio.open(
            path, "w", driver="GTiff", count=1, dtype="uint8", tiled=True, sparse_ok=True, **edge
        ):
            pass
        assert Limits.for_untrusted().block_bytes < 9600 * 9600
        told = (
            r"9600 x 9600 pixels and 92\.2 MB; at most 67\.1 MB may be decoded at once\..*"
            r"TILED=YES, or"
        )
        with pytest.raises(SourceError, match=told):
            open_raster(path, self.stranger)

    def test_a_block_of_all_bands_together_counts_with_all_of_them(self, write_raster):
        path = write_raster("block.tif", np.zeros((1, 4, 4), np.uint8))
        edge = {"width": 4096, "height": 4096, "blockxsize": 4096, "blockysize": 4096}
        for interleave, refused in (("band", False), ("pixel", True)):
            layout = {"count": 5, "dtype": "uint8", "tiled": True, "interleave": interleave}
            with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, **edge, **layout) as file:
                file.write(np.random.default_rng(0).integers(0, 256, (4096, 4096), np.uint8), 1)
            if refused:
                with pytest.raises(
                    SourceError,
                    match=r"4096 x 4096 pixels and 83\.9 MB; at most .* may be decoded at once",
                ):
                    open_raster(path, self.stranger)
            else:
                with open_raster(path, self.stranger) as raster:
                    assert raster.facts.count == 5

    def test_more_bands_than_are_allowed_are_refused_with_what_to_do(self, write_raster):
        path = write_raster(
            "bands.tif", np.zeros((Limits.for_untrusted().bands + 1, 4, 4), np.uint8)
        )
        with open_raster(path) as raster:
            assert raster.facts.count == 201
        told = (
            "201 bands; at most 200 are allowed. Write those to upscale to another file, or leave "
            "untrusted=True out"
        )
        with pytest.raises(SourceError, match=told):
            open_raster(path, self.stranger)


def test_pictures_without_a_place_raise_no_warning(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "plain.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_raster(tmp_path / "plain.png") as raster:
            raster.read(raster.whole)
            assert not raster.facts.has_place
