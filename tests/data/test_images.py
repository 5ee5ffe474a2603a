import numpy as np
import pytest
import rasterio
from PIL import Image

from repmamba.data.images import blank_image, find_images, is_whole_png, read_image, write_png
from repmamba.errors import CorruptSource, SourceError, UsageError


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)


def test_a_png_reads_as_it_was_written(tmp_path, picture):
    write_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_every_8_bit_mode_are_rgb(tmp_path, picture, mode):
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (9, 14, 3)
    assert image.dtype == np.uint8


def test_an_opaque_alpha_changes_no_value(tmp_path, picture):
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)


def write_tiff(path, values, mask=None, **profile):
    bands, height, width = values.shape
    # without a transform, GDAL warns
    placed = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", "GTiff", width, height, bands, **placed, dtype=values.dtype, **profile
        ) as raster,
    ):
        raster.write(values)
        if mask is not None:
            raster.write_mask(mask)


def test_a_tiff_keeps_its_bands_and_type(tmp_path):
    values = np.random.default_rng(2).integers(0, 9000, (4, 25, 71), np.uint16)
    write_tiff(tmp_path / "a.tif", values, nodata=9001)
    image = read_image(tmp_path / "a.tif")
    assert np.array_equal(image, np.moveaxis(values, 0, -1))
    assert image.dtype == np.uint16


@pytest.mark.parametrize("told_by", ["nodata", "mask"])
def test_missing_pixels_are_refused(tmp_path, told_by):
    values = np.full((2, 8, 9), 500, np.int16)
    values[:, 2:4, :3] = -9999
    if told_by == "nodata":
        write_tiff(tmp_path / "a.tif", values, nodata=-9999)
    else:
        write_tiff(tmp_path / "a.tif", values, mask=values[0] > 0)
    with pytest.raises(SourceError, match=r"a.tif has 6 missing pixels"):
        read_image(tmp_path / "a.tif")


def test_a_16_bit_picture_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SourceError, match=r"deep.png has pixels of mode I;16"):
        read_image(tmp_path / "deep.png")


def test_a_fourth_band_that_gdal_takes_for_alpha_is_a_band(tmp_path):
    values = np.full((4, 8, 9), 50, np.uint8)
    values[3, 2:4, :3] = 0
    write_tiff(tmp_path / "a.tif", values)
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(values, 0, -1))


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = np.ones((1, 5, 6), np.float32)
    values[0, 1:3, :2] = np.nan, np.inf
    write_tiff(tmp_path / "a.tif", values)
    with pytest.raises(SourceError, match="4 values that are not finite"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["grey.png", "a.jpg", "a.tif"])
def test_the_header_gives_the_same_shape_and_type_as_reading(tmp_path, picture, name):
    if name == "a.tif":
        write_tiff(tmp_path / name, np.zeros((13, 9, 14), np.int16))
    else:
        Image.fromarray(picture[..., 0] if name == "grey.png" else picture).save(tmp_path / name)
    blank, image = blank_image(tmp_path / name), read_image(tmp_path / name)
    assert (blank.shape, blank.dtype) == (image.shape, image.dtype)


def test_complex_numbers_are_refused(geotiffs):
    with pytest.raises(SourceError, match="complex"):
        read_image(geotiffs / "cint16.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_a_broken_file_is_reported(tmp_path, picture, suffix, content):
    path = tmp_path / f"broken{suffix}"
    if content == "truncated":
        Image.fromarray(np.tile(picture, (20, 20, 1))).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"" if content == "empty" else b"not an image")
    with pytest.raises(CorruptSource, match=f"broken{suffix} cannot be read"):
        read_image(path)
    if content != "truncated":
        with pytest.raises(CorruptSource, match=f"broken{suffix} cannot be read"):
            blank_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(SourceError, match="is not a file"):
            read_image(path)
    with pytest.raises(SourceError, match="is not a folder"):
        find_images(tmp_path / "none")


def test_a_png_of_another_type_is_refused(tmp_path):
    for image in (np.zeros((4, 4), np.uint16), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(UsageError, match="one or three 8-bit bands"):
            write_png(tmp_path / "a.png", image)
    assert not list(tmp_path.iterdir())


def test_images_are_found_in_order_without_hidden_ones(tmp_path, picture):
    for name in ("b/2.png", "b/10.JPG", "a.tif", ".cache/x.png", "b/.y.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        "a.tif",
        "b/10.JPG",
        "b/2.png",
    ]
    assert find_images(tmp_path, deep=False) == [tmp_path / "a.tif"]


def test_a_truncated_or_altered_png_is_not_complete(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))
    whole = path.read_bytes()
    assert is_whole_png(path)
    hole = whole[:500] + bytes(1000) + whole[1500:]
    for content in (b"", whole[:-13], whole[: len(whole) // 2], hole):
        path.write_bytes(content)
        assert not is_whole_png(path)
    path.unlink()
    assert not is_whole_png(path)
