"""Estimates of noise and JPEG, against noise and JPEG of known strength."""

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from repmamba.data.degradations import jpeg
from repmamba.pixels.quality import _transformed, blockiness, noise_level

LEVELS = 255.0


def ground(seed=0, edge=160, bands=3):
    """Smooth shapes with edges, like fields and roofs; (bands, edge, edge), unit."""
    draw = np.random.default_rng(seed)
    shapes = gaussian_filter(draw.normal(0, 1, (edge, edge)), 6)
    fields = np.digitize(shapes, np.quantile(shapes, [0.2, 0.4, 0.6, 0.8]))
    tints = draw.uniform(0.2, 0.8, (bands, 5))
    slope = np.linspace(-0.05, 0.05, edge)
    return gaussian_filter(tints[:, fields], (0, 0.7, 0.7)) + slope


def noisy(unit, sigma, seed=1):
    return unit + np.random.default_rng(seed).normal(0, sigma / LEVELS, unit.shape)


def compressed(unit, quality):
    levels = np.clip(np.round(LEVELS * unit), 0, 255).astype(np.uint8)
    return (
        np.moveaxis(jpeg(np.ascontiguousarray(np.moveaxis(levels, 0, 2)), quality), 2, 0) / LEVELS
    )


def test_blocks_are_transformed_as_scipy_does():
    unit = np.random.default_rng(0).random((20, 23))
    theirs = dctn(unit[5:13, 9:17] * LEVELS, norm="ortho")
    assert np.abs(_transformed(unit)[5, 9].T - theirs).max() < 1e-3


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("edge", [64, 160])
def test_noise_of_known_strength_is_found(sigma, edge):
    found = [noise_level([noisy(ground(seed, edge), sigma, seed)]) for seed in range(3)]
    assert np.mean(found) == pytest.approx(sigma, rel=0.12, abs=0.1)


def test_noise_is_the_mean_over_bands_and_pools_windows():
    clean, loud = noisy(ground(bands=1), 2), noisy(ground(bands=1), 6)
    assert noise_level([np.concatenate([clean, loud])]) == pytest.approx(4, rel=0.1)
    texture = np.random.default_rng(0).random((1, 64, 64))
    assert noise_level([texture, noisy(ground(bands=1), 3)]) == pytest.approx(3, rel=0.15)


def test_8_bit_rounding_and_missing_pixels_change_little():
    unit = noisy(ground(), 4)
    rounded = np.round(unit * LEVELS) / LEVELS
    assert noise_level([rounded]) == pytest.approx(noise_level([unit]), rel=0.05)
    holes = rounded.copy()
    holes[:, 40:70, :] = np.nan
    holes[:, :, ::50] = np.nan
    assert noise_level([holes]) == pytest.approx(4, rel=0.1)
    assert blockiness([holes]) < 0.03


@pytest.mark.parametrize(
    "windows",
    [[], [np.full((3, 64, 64), 0.73)], [np.full((1, 64, 64), np.nan)]],
    ids=["none", "constant", "missing"],
)
def test_constant_or_missing_windows_have_no_noise_and_no_blocks(windows):
    assert (noise_level(windows), blockiness(windows)) == (0.0, 0.0)


@pytest.mark.parametrize("sigma", [0, 1, 8])
def test_no_blocks_are_found_without_jpeg(sigma):
    assert blockiness([noisy(ground(), sigma)]) < 0.03
    assert blockiness([noisy(ground(bands=1), sigma)]) < 0.03


def test_stronger_compression_gives_more_blockiness():
    unit = noisy(ground(), 4)
    found = [blockiness([compressed(unit, quality)]) for quality in (95, 85, 70, 50, 30)]
    assert found == sorted(found)
    assert found[0] > 0.1
    assert found[-1] > 0.5


@pytest.mark.parametrize("cut", [(0, 0), (3, 5), (7, 1)])
def test_blocks_are_found_at_any_common_offset_of_the_windows(cut):
    row, col = cut
    whole = compressed(noisy(ground(), 2), 60)[:, row:, col:]
    alone = blockiness([whole])
    parts = blockiness([whole[:, 8:88, 16:96], whole[:, 64:144, 56:136]])
    assert 0.3 < parts == pytest.approx(alone, abs=0.1)


def test_jpeg_that_was_resized_afterwards_is_not_detected():
    blocks = compressed(noisy(ground(edge=192), 2), 60)
    half = blocks.reshape(3, 64, 3, 64, 3).mean((2, 4))
    assert blockiness([half]) < 0.03
