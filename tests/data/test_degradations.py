import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from repmamba.data.degradations import DEGRADATIONS, Chain, Stage, generator_for
from repmamba.data.pairs import pair_from_hr
from repmamba.errors import ShapeMismatch, UsageError

HR = np.random.default_rng(3).integers(0, 256, (24, 36, 3), np.uint8)
RANGES = {"blur": (0.5, 2.0), "noise": (1, 20), "jpeg": (20, 90)}


def degraded(*stages, hr=HR, scale=2, seed=0):
    return Chain(scale, stages)(hr, generator_for(seed, "x"))


def test_a_chain_without_stages_is_plain_bicubic():
    for scale in (2, 3, 4):
        assert np.array_equal(degraded(scale=scale), pair_from_hr("x", HR, scale).lr)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_degradation_keeps_shape_and_type_and_is_reproducible(name):
    stage = Stage(name, *RANGES[name])
    lr = degraded(stage)
    assert (lr.shape, lr.dtype) == ((12, 18, 3), np.uint8)
    assert np.array_equal(lr, degraded(stage))
    assert not np.array_equal(lr, degraded(stage, seed=1))
    assert not np.array_equal(lr, degraded())


@settings(max_examples=20)
@given(
    seed=integers(0, 2**32),
    order=sampled_from([("blur", "noise", "jpeg"), ("jpeg", "noise"), ("noise", "blur")]),
)
def test_chains_are_reproducible_from_their_seed(seed, order):
    stages = [Stage(name, *RANGES[name]) for name in order]
    assert np.array_equal(degraded(*stages, seed=seed), degraded(*stages, seed=seed))


def test_a_stage_added_at_the_end_changes_no_strength_before_it():
    blur = Stage("blur", 0.5, 2)
    assert np.array_equal(degraded(blur, Stage("noise", 0, 0)), degraded(blur))


def test_strengths_stay_in_their_range():
    flat = np.full((256, 256, 3), 128, np.uint8)
    spreads = [
        float(degraded(Stage("noise", 4, 6), hr=flat, seed=seed).std()) for seed in range(20)
    ]
    assert 3.9 < min(spreads) < max(spreads) < 6.1
    assert max(spreads) - min(spreads) > 0.5


def test_blur_is_a_gaussian_with_mirrored_edges():
    unit = HR / 255.0
    ours = DEGRADATIONS["blur"].apply(unit, 1.5, np.random.default_rng())
    theirs = gaussian_filter1d(gaussian_filter1d(unit, 1.5, 0, radius=6), 1.5, 1, radius=6)
    assert np.abs(ours - theirs).max() < 1e-12
    assert DEGRADATIONS["blur"].apply(unit, 0.0, np.random.default_rng()) is unit


def test_jpeg_equals_pillows_of_the_same_quality():
    packed = io.BytesIO()
    Image.fromarray(degraded()).save(packed, "JPEG", quality=40)
    assert np.array_equal(degraded(Stage("jpeg", 40, 40)), np.asarray(Image.open(packed)))


def test_a_single_band_is_degraded_and_jpeg_refuses_four_bands():
    assert degraded(Stage("jpeg", 40, 40), hr=HR[..., :1]).shape == (12, 18, 1)
    with pytest.raises(ShapeMismatch, match="one or three bands"):
        degraded(Stage("jpeg", 40, 40), hr=HR[..., [0, 1, 2, 0]])


def test_invalid_ranges_are_refused():
    for name, low, high in (
        ("blur", 2, 1),
        ("blur", -1, 1),
        ("jpeg", 0, 50),
        ("noise", 0, float("nan")),
    ):
        with pytest.raises(UsageError, match=f"range of {name}"):
            Stage(name, low, high)
    with pytest.raises(UsageError, match="no degradation fog; choose among blur, noise, jpeg"):
        Stage("fog", 0, 1)


def test_an_image_that_is_not_a_multiple_of_the_scale_is_refused():
    with pytest.raises(ShapeMismatch, match="multiples of 5"):
        Chain(5)(HR, generator_for(0, "x"))
