"""Losses: values worked by hand, and requirements of every loss."""

import math

import pytest
import torch

from repmamba.train.losses import LOSSES, weighted


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    hr = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    return hr + 0.25, hr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", 0.25),
        ("l2", 0.0625),
        ("charbonnier", (0.0625 + 1e-6) ** 0.5),
        # 20 log10(4) = 12.0412 dB
        ("psnr", 1 - 20 * math.log10(4) / 60),
        # A constant difference has one number in its spectrum, 0.25 sqrt(80), among 8 x 6 complex
        # ones.
        ("fft", 0.25 * 80**0.5 / (8 * 6 * 2)),
        ("gradient", 0.0),
    ],
)
def test_a_constant_difference_has_the_expected_loss(name, expected):
    assert float(LOSSES[name](*pair())) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_loss_of_psnr_is_a_mean_over_patches_whatever_their_level():
    """Half the difference is 6.02 dB more, and so much less to pay, in an easy patch as in a hard
    one.
    """
    hr = torch.zeros(2, 3, 4, 4)
    levels = torch.tensor([0.5, 0.02]).reshape(2, 1, 1, 1)
    before = LOSSES["psnr"](hr + levels, hr)
    for easier in (torch.tensor([0.25, 0.02]), torch.tensor([0.5, 0.01])):
        after = LOSSES["psnr"](hr + easier.reshape(2, 1, 1, 1), hr)
        assert float(before - after) == pytest.approx(6.02 / 60 / 2, rel=0.02)


def test_the_gradient_loss_counts_steps_along_rows_and_columns():
    hr = torch.zeros(1, 1, 4, 4)
    sr = torch.arange(4.0).expand(1, 1, 4, 4)  # steps of 1 along a row, none along a column
    assert float(LOSSES["gradient"](sr, hr)) == pytest.approx(1.0)
    assert float(LOSSES["gradient"](sr.transpose(2, 3), hr)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_images_have_almost_no_loss_and_finite_gradients(name):
    _, hr = pair()
    sr = hr.clone().requires_grad_()
    loss = LOSSES[name](sr, hr)
    loss.backward()
    assert float(loss.detach()) <= 1.1e-3
    assert torch.isfinite(sr.grad).all()


def test_weights_add_up_and_low_precision_is_converted():
    sr, hr = pair()
    assert float(weighted({"l1": 2.0, "l2": 4.0})(sr, hr)) == pytest.approx(0.75, rel=1e-4)
    loss = weighted({"l1": 1.0, "fft": 0.1})(sr.bfloat16(), hr)
    assert loss.dtype == torch.float32
