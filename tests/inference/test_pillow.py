"""PIL images: the result of the same array, as an image of the same mode."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from repmamba import load
from repmamba.errors import ShapeMismatch, UsageError


@pytest.fixture(scope="session")
def upscaler(small_weights):
    return load(small_weights)


def numbers(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize(
    ("mode", "array"),
    [
        ("L", numbers(9, 14)),
        ("RGB", numbers(9, 14, 3)),
        ("I;16", 200 * numbers(9, 14, dtype=np.uint16)),
        ("F", numbers(9, 14, dtype=np.float32) / 255),
    ],
)
def test_a_picture_gives_the_result_of_its_array(upscaler, mode, array):
    picture = Image.fromarray(array)
    assert picture.mode == mode
    result = upscaler.upscale(picture)
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == (mode, (28, 18))
    np.testing.assert_array_equal(np.asarray(result), upscaler.upscale(array))


def test_an_upscaler_can_be_called(upscaler):
    array = numbers(8, 8, 3)
    np.testing.assert_array_equal(upscaler(array, tile=16), upscaler.upscale(array, tile=16))


def test_transparent_pixels_affect_no_others_and_alpha_is_nearest_neighbour(upscaler):
    array = numbers(12, 12, 4)
    array[..., 3] = 255
    array[:4, :5, 3] = 0
    array[6, 6, 3] = 130
    other = array.copy()
    other[:4, :5, :3] = 255 - other[:4, :5, :3]
    one, two = (np.asarray(upscaler.upscale(Image.fromarray(each))) for each in (array, other))
    np.testing.assert_array_equal(one[..., 3], array[..., 3].repeat(2, axis=0).repeat(2, axis=1))
    opaque = one[..., 3] != 0
    np.testing.assert_array_equal(one[opaque], two[opaque])
    opaque_everywhere = array.copy()
    opaque_everywhere[..., 3] = 255
    colours = np.asarray(upscaler.upscale(Image.fromarray(opaque_everywhere)))[..., :3]
    np.testing.assert_array_equal(colours, upscaler.upscale(array[..., :3]))


@pytest.mark.parametrize(("mode", "shown"), [("P", "RGB"), ("1", "L"), ("LA", "LA")])
def test_palettes_and_bits_are_upscaled_as_the_colours_they_show(upscaler, mode, shown):
    picture = (
        Image.fromarray(numbers(9, 14, 3)).convert("L" if mode == "LA" else "RGB").convert(mode)
    )
    result = upscaler.upscale(picture)
    assert result.mode == shown
    np.testing.assert_array_equal(
        np.asarray(result), np.asarray(upscaler.upscale(picture.convert(shown)))
    )


def test_a_transparent_colour_of_a_palette_becomes_alpha(upscaler):
    picture = Image.fromarray(numbers(9, 14, 3)).quantize(8)
    picture.info["transparency"] = 0
    result = upscaler.upscale(picture)
    assert result.mode in ("RGB", "RGBA")
    as_rgb = Image.fromarray(numbers(9, 14, 3))
    as_rgb.info["transparency"] = tuple(int(value) for value in np.asarray(as_rgb)[0, 0])
    result = upscaler.upscale(as_rgb)
    assert result.mode == "RGBA"
    assert (np.asarray(result)[:2, :2, 3] == 0).all()


def test_colour_profiles_are_kept(upscaler, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(numbers(8, 8, 3)).save(tmp_path / "in.png", icc_profile=profile)
    with Image.open(tmp_path / "in.png") as picture:
        result = upscaler.upscale(picture)
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.info["icc_profile"] == profile


def test_pictures_that_cannot_be_upscaled_are_refused_in_one_line(upscaler):
    with pytest.raises(
        UsageError, match=r"mode CMYK cannot be upscaled; supported modes: L, .*image\.convert"
    ):
        upscaler.upscale(Image.new("CMYK", (8, 8)))
    with pytest.raises(ShapeMismatch, match="0 x 8 pixels"):
        upscaler.upscale(Image.new("RGB", (0, 8)))
    with pytest.raises(UsageError, match=r"A str cannot be upscaled.*upscale_file"):
        upscaler.upscale("photo.png")
