import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, sampled_from
from PIL import Image
from safetensors.numpy import load_file

from repmamba.errors import ShapeMismatch, UsageError
from repmamba.pixels.resize import contributions, imresize, imresize_torch, to_uint8

SCALES = {
    "scale_1_2": 1 / 2,
    "scale_1_3": 1 / 3,
    "scale_1_4": 1 / 4,
    "scale_2": 2,
    "scale_3": 3,
    "scale_4": 4,
}


@pytest.fixture(scope="module")
def airport(reference):
    folder = reference / "data" / "test" / "aid_tiny"
    return {
        part: np.asarray(Image.open(folder / part / "airport_285.png"))
        for part in ("GT", "LR", "Bicubic")
    }


def test_the_published_lr_is_reproduced_exactly(airport):
    assert np.array_equal(to_uint8(imresize(airport["GT"] / 255.0, 1 / 4)), airport["LR"])


def test_the_published_bicubic_is_reproduced_exactly_from_the_unrounded_lr(airport):
    lr = imresize(airport["GT"] / 255.0, 1 / 4)
    assert np.array_equal(to_uint8(imresize(lr, 4)), airport["Bicubic"])


def test_rounding_the_lr_first_gives_another_bicubic(airport):
    difference = np.abs(
        to_uint8(imresize(airport["LR"] / 255.0, 4)).astype(int) - airport["Bicubic"]
    )
    assert difference.max() == 1
    # One value is exactly a half, where the last bit of the arithmetic decides.
    assert abs((difference > 0).sum() - 154_571) <= 1


@pytest.mark.parametrize(("key", "scale"), SCALES.items(), ids=str)
def test_golden_numbers_are_reproduced(golden, key, scale):
    cases = load_file(golden / "imresize.safetensors")
    # The file has the results in the memory order of the transposed array.
    expected = cases[key].swapaxes(0, 1).reshape(cases[key].shape)
    assert np.abs(imresize(cases["input"], scale) - expected).max() < 1e-12


@pytest.mark.parametrize(("key", "scale"), SCALES.items(), ids=str)
def test_the_torch_version_agrees(golden, key, scale):
    image = load_file(golden / "imresize.safetensors")["input"]
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        resized = imresize_torch(batch.to(dtype), scale)[0].permute(1, 2, 0)
        assert resized.dtype is dtype
        assert np.abs(resized.double().numpy() - imresize(image, scale)).max() < tolerance


def test_the_torch_version_is_within_1e_5_for_a_whole_picture(airport):
    unit = airport["GT"] / 255.0
    tensor = torch.from_numpy(unit).float().permute(2, 0, 1)[None]
    resized = imresize_torch(tensor, 1 / 4)[0].permute(1, 2, 0).numpy()
    assert np.abs(resized - imresize(unit, 1 / 4)).max() < 1e-5


def test_the_torch_version_has_gradients():
    image = torch.rand(1, 1, 8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize_torch(x, 1 / 2), image)
    assert torch.autograd.gradcheck(lambda x: imresize_torch(x, 3), image)


@given(length=integers(1, 400), scale=sampled_from(list(SCALES.values())) | floats(0.05, 8))
def test_weights_sum_to_one_and_indices_stay_inside_the_axis(length, scale):
    weights, sources = contributions(length, scale)
    assert np.allclose(weights.sum(0), 1)
    assert sources.min() >= 0
    assert sources.max() < length


@given(length=integers(1, 4096), scale=sampled_from([2, 3, 4]))
def test_a_length_that_is_a_multiple_of_the_scale_has_no_surplus_pixel(length, scale):
    assert contributions(scale * length, 1 / scale)[0].shape[1] == length


@settings(max_examples=30)
@given(height=integers(1, 12), width=integers(1, 12), scale=sampled_from(list(SCALES.values())))
def test_flips_and_transposition_commute_with_resizing(height, width, scale):
    image = np.random.default_rng(height * 100 + width).random((height, width))
    assert np.allclose(imresize(image.T, scale), imresize(image, scale).T, atol=1e-12)
    # A length that is rounded up is not symmetric, as in MATLAB.
    if scale > 1 or height % round(1 / scale) == 0:
        assert np.allclose(imresize(image[::-1], scale), imresize(image, scale)[::-1], atol=1e-12)


def test_a_constant_image_stays_constant():
    assert np.allclose(imresize(np.full((7, 9, 5), 0.25), 1 / 3), 0.25)


def test_invalid_images_and_scales_are_refused():
    with pytest.raises(ShapeMismatch, match=r"\(0, 4\)"):
        imresize(np.zeros((0, 4)), 2)
    with pytest.raises(ShapeMismatch, match="B, C, H, W"):
        imresize_torch(torch.zeros(3, 4, 4), 2)
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive"):
            imresize(np.zeros((4, 4)), scale)


def test_8_bit_is_clipped_and_rounded_half_up():
    assert to_uint8(np.array([-0.1, 0.5 / 255, 1.5 / 255, 1.49 / 255, 2.0])).tolist() == [
        0,
        1,
        2,
        1,
        255,
    ]
