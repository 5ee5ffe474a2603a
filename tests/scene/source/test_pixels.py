"""What stands in a file, as a raster shows it: alpha by its name, palettes as colours, and nothing
decoded in vain.
"""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image, PngImagePlugin, TiffImagePlugin
from rasterio.enums import ColorInterp

from repmamba.errors import TargetError, UsageError
from repmamba.scene.engine import upscale_file
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.raster import open_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

ALPHA = np.tile(np.array([0, 60, 255, 255, 128], np.uint8), (40, 8))  # (40, 40)


def with_alpha(write_raster, smooth, bands: int, **profile) -> Path:
    """Colours and ALPHA, in a band that says that it is that."""
    data = np.concatenate([smooth(bands, 40, 40), ALPHA[None]])
    path = write_raster(
        "in.tif", data, **({"photometric": "RGB"} if bands == 3 else {}), alpha="YES", **profile
    )
    with rasterio.open(path) as file:
        assert file.colorinterp[-1] == ColorInterp.alpha
    return path


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("told", ["alpha", "nodata", "mask"])
def test_alpha_is_enlarged_as_it_is_whatever_else_tells_of_missing_pixels(
    write_raster, smooth, tmp_path, bicubic, bands, told
):
    valid = ALPHA != 0
    more = {}
    if told == "nodata":
        more = {"nodata": 255}
    elif told == "mask":
        valid = np.ones((40, 40), bool)
        valid[:9, 3:20] = False
        more = {"mask": valid}
    path = with_alpha(write_raster, smooth, bands, **more)
    with open_raster(path) as raster:
        assert raster.facts.missing == ("mask" if told == "mask" else "alpha")
        assert raster.facts.colours == tuple(range(bands))
        np.testing.assert_array_equal(raster.read(raster.whole)[1], valid)
    for name in ("out.tif", "out.cog.tif"):
        upscale_file(path, tmp_path / name, bicubic)
        with rasterio.open(tmp_path / name) as file:
            assert file.colorinterp[-1] == ColorInterp.alpha
            np.testing.assert_array_equal(file.read(bands + 1), ALPHA.repeat(2, 0).repeat(2, 1))
            np.testing.assert_array_equal(file.dataset_mask() != 0, valid.repeat(2, 0).repeat(2, 1))


def test_a_picture_with_alpha_and_a_mask_is_refused_to_a_format_of_one(
    write_raster, smooth, tmp_path, bicubic
):
    path = with_alpha(write_raster, smooth, 3, mask=np.ones((40, 40), bool))
    with pytest.raises(
        TargetError, match=r"PNG cannot hold a mask besides the bands. These can: GTiff, COG"
    ):
        upscale_file(path, tmp_path / "out.png", bicubic)


def palette_with_alpha(folder: Path, **options: str) -> Path:
    """A virtual raster of a palette and an alpha band."""
    numbers = np.arange(1600, dtype=np.uint8).reshape(1, 40, 40) % 4
    for name, band in (("numbers", numbers), ("alpha", ALPHA[None])):
        with rasterio.open(
            folder / f"{name}.tif",
            "w",
            driver="GTiff",
            width=40,
            height=40,
            count=1,
            dtype="uint8",
            **options,
        ) as file:
            file.write(band)
    entries = "".join(f'<Entry c1="{20 * n}" c2="{200 - n}" c3="{n}" c4="255"/>' for n in range(4))
    bands = (
        ("numbers", f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"),
        ("alpha", "<ColorInterp>Alpha</ColorInterp>"),
    )
    (folder / "palette.vrt").write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="40">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{number}">{says}<SimpleSource><SourceFilename '
            'relativeToVRT="1">'
            f"{name}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
            for number, (name, says) in enumerate(bands, start=1)
        )
        + "</VRTDataset>"
    )
    return folder / "palette.vrt"


def test_a_palette_with_alpha_becomes_its_colours_and_alpha(tmp_path):
    with open_raster(palette_with_alpha(tmp_path)) as raster:
        raw, valid = raster.read(raster.whole)
        assert raster.facts.colorinterp == ("red", "green", "blue", "alpha")
        assert (raster.facts.missing, raster.facts.alpha, len(raster.facts.band_tags)) == (
            "alpha",
            3,
            4,
        )
    numbers = np.arange(1600).reshape(40, 40) % 256 % 4
    np.testing.assert_array_equal(raw[1, ALPHA > 0], (200 - numbers)[ALPHA > 0])
    np.testing.assert_array_equal(raw[3], ALPHA)
    np.testing.assert_array_equal(valid, ALPHA > 0)


def test_a_palette_of_classes_is_refused_with_alpha_too(write_raster, smooth, tmp_path):
    path = palette_with_alpha(tmp_path)
    path.write_text(
        path.read_text().replace('40">', '40"><GeoTransform>5, 1, 0, 9, 0, -1</GeoTransform>', 1)
    )
    with pytest.raises(UsageError, match=r"probably classes.*expand_palette=True"):
        open_raster(path)
    with open_raster(path, ReadOptions(expand_palette=True)) as raster:
        assert raster.facts.count == 4


def test_a_palette_beside_other_bands_is_refused(tmp_path):
    path = palette_with_alpha(tmp_path)
    path.write_text(path.read_text().replace("Alpha", "Gray"))
    with pytest.raises(
        UsageError, match=r"palette in band 1 besides other bands.*gdal_translate -b"
    ):
        open_raster(path)


def test_what_cannot_be_read_of_a_palette_with_alpha_is_transparent(tmp_path):
    random = np.random.default_rng(4)
    image = Image.fromarray(random.integers(0, 16, (300, 300), dtype=np.uint8)).convert("P")
    image.putpalette(bytes(random.integers(0, 256, 48, dtype=np.uint8)))
    path = tmp_path / "cut.png"
    image.save(path, transparency=bytes([255, 100, 0] + [255] * 13))  # number 0 is opaque
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_raster(path, ReadOptions(on_corrupt="fill")) as raster:
        raw, valid = raster.read(raster.whole)
        assert raster.facts.missing == "alpha"
        assert raster._pixels.corrupt_blocks
    assert valid.any()
    np.testing.assert_array_equal(raw[3] != 0, valid)
    assert not valid[-1].any()


def png_with_exif(path: Path, turn: int, image: Image.Image) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(path, exif=exif)
    return path


def test_the_orientation_of_a_png_is_found_without_decoding_it(tmp_path, monkeypatch):
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    image.save(plain)
    png_with_exif(turned, 6, image)

    def decoded(self) -> None:
        pytest.fail("decoded to look for the orientation")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    with open_raster(plain) as raster:
        assert (raster.grid.height, raster.grid.width) == (20, 30)
    with open_raster(turned) as raster:
        assert (raster.grid.height, raster.grid.width) == (30, 20)


@pytest.mark.parametrize("untrusted", [False, True])
def test_of_a_tiff_of_several_pages_the_first_is_read_and_the_others_are_named(
    tmp_path, caplog, untrusted
):
    pages = [Image.fromarray(np.full((20, 30), 20 * number, np.uint8)) for number in range(1, 12)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with open_raster(path, ReadOptions(untrusted=untrusted)) as raster:
        assert raster.read(raster.whole)[0].max() == 20
    assert f"GTIFF_DIR:2:{path}, GTIFF_DIR:3:{path}" in caplog.text
    assert "and 2 more" in caplog.text
    caplog.clear()
    with open_raster(f"GTIFF_DIR:2:{path}") as raster:
        assert raster.read(raster.whole)[0].max() == 40
    assert caplog.text == ""


def test_overviews_and_masks_are_no_pages(write_raster, smooth, caplog):
    path = write_raster(
        "in.tif", smooth(3, 64, 64), mask=np.ones((64, 64), bool), photometric="RGB"
    )
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    open_raster(path).__exit__(None, None, None)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("dtype", "bits", "white"), [("uint8", 8, 255), ("uint8", 4, 255), ("uint16", 12, 4095)]
)
def test_a_picture_whose_white_is_0_is_no_negative(
    write_raster, tmp_path, bicubic, dtype, bits, white
):
    largest = 2**bits - 1
    numbers = np.linspace(0, largest, 400).round().astype(dtype).reshape(1, 20, 20)
    options = {"photometric": "MINISWHITE", "nbits": bits, "crs": None, "transform": None}
    path = write_raster("in.tif", numbers, **options)
    with open_raster(path) as raster:
        raw, _ = raster.read(raster.whole)
        assert (raster.facts.dtype, raster.facts.colorinterp) == (dtype, ("gray",))
    np.testing.assert_array_equal(raw, (largest - numbers) * (white // largest))
    for name in ("out.tif", "out.png"):
        upscale_file(path, tmp_path / name, bicubic)
        with Image.open(tmp_path / name) as image:
            shown = np.asarray(image)
        assert shown[0, 0] > shown[-1, -1]


def test_numbers_of_which_0_is_white_stay_what_they_are_where_there_is_a_place(
    write_raster, smooth
):
    data = smooth(1, 20, 20)
    with open_raster(write_raster("in.tif", data, photometric="MINISWHITE")) as raster:
        np.testing.assert_array_equal(raster.read(raster.whole)[0], data)


def test_a_page_of_a_tiff_is_turned_as_it_asks_itself(tmp_path):
    path = tmp_path / "pages.tif"
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as file:
        for turn in (6, 1, 8):
            Image.fromarray(np.zeros((20, 30), np.uint8)).save(
                file, "TIFF", tiffinfo={0x0112: turn}
            )
            file.newFrame()
    for page, size in ((1, (30, 20)), (2, (20, 30)), (3, (30, 20))):
        with open_raster(f"GTIFF_DIR:{page}:{path}") as raster:
            assert (raster.grid.height, raster.grid.width) == size
    with open_raster(f"GTIFF_DIR:off:8:{path}") as raster:
        assert raster.grid.width == 30


def painted(folder: Path, dtype: str, entries: int) -> Path:
    """A virtual raster with a palette, over the numbers from 0 to 255."""
    with rasterio.open(
        folder / "numbers.tif", "w", driver="GTiff", width=16, height=16, count=1, dtype="uint8"
    ) as file:
        file.write(np.arange(256, dtype=np.uint8).reshape(1, 16, 16))
    table = "".join(
        f'<Entry c1="{n % 256}" c2="{n // 256}" c3="7" c4="255"/>' for n in range(entries)
    )
    (folder / "painted.vrt").write_text(
        f'<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="{dtype}" '
        'band="1"><ColorInterp>Palette'
        f"</ColorInterp><ColorTable>{table}</ColorTable><SimpleSource><SourceFilename>{folder}/numbers.tif"
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return folder / "painted.vrt"


@pytest.mark.parametrize("dtype", ["Byte", "UInt16"])
def test_entries_of_a_palette_that_no_pixel_can_have_are_left_out(tmp_path, dtype):
    with open_raster(painted(tmp_path, dtype, 300)) as raster:
        raw, _ = raster.read(raster.whole)
        assert raster.facts.colorinterp == ("red", "green", "blue")
    np.testing.assert_array_equal(raw[0].ravel(), np.arange(256))
    assert (raw[1] == 0).all()


@pytest.mark.parametrize("dtype", ["Int16", "UInt32", "Int32", "Float32"])
def test_a_palette_for_other_numbers_than_palettes_have_is_refused(tmp_path, dtype):
    with pytest.raises(UsageError, match=r"palette for \w+ numbers; only uint8 and uint16"):
        open_raster(painted(tmp_path, dtype, 4))
