import json
import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.image as torchmetrics
from hypothesis import given, settings
from hypothesis.strategies import integers
from safetensors.numpy import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from repmamba.data.pairs import Pair
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.evaluate.metrics import (
    METRICS,
    average,
    class_means,
    ergas,
    metrics_of,
    psnr,
    rule_names,
    score,
    spectral_angle,
    ssim,
)
from repmamba.pixels.resize import imresize, to_uint8

# those that need no network's numbers; of the others is test_perceptual.py
MEASURED = [metric for metric in METRICS.values() if metric.rule != "perceptual"]

PUBLISHED_RULES = ("published", "ttst-y", "haunet-rgb", "esr-rgb", "esr-y")


def images(seed, shape=(30, 41, 3), noise=12):
    rng = np.random.default_rng(seed)
    hr = to_uint8(imresize(rng.random((shape[0] // 4 + 1, shape[1] // 4 + 1, *shape[2:])), 4))[
        : shape[0], : shape[1]
    ]
    sr = np.clip(hr + rng.normal(0, noise, hr.shape), 0, 255).astype(np.uint8)
    return sr, hr


def pair_of(hr, scale=2):
    rows, columns = (length // scale * scale for length in hr.shape[:2])
    hr = hr[:rows, :columns]
    return Pair("x", hr[::scale, ::scale], hr)


@pytest.mark.parametrize("rule", PUBLISHED_RULES)
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_golden_numbers_are_reproduced(golden, case, rule):
    arrays = load_file(golden / "metrics.safetensors")
    expected = json.loads((golden / "metrics.json").read_text())[case]
    hr, sr, scale = arrays[f"{case}.gt"], arrays[f"{case}.sr"], expected["scale"]
    # Case b, 50x45 at x3, is not a multiple of its scale, so it cannot be a Pair; only sizes and
    # scale matter here.
    pair = _Stub(hr, scale)
    values = score(sr, pair, metrics_of([rule]))
    assert values == pytest.approx({name: expected["values"][name] for name in values}, abs=1e-6)


class _Stub:
    def __init__(self, hr, scale):
        self.hr, self.scale, self.name = hr, scale, "golden"


@pytest.mark.parametrize("shape", [(30, 41), (30, 41, 3), (64, 64, 3), (11, 11, 1), (100, 13, 13)])
def test_psnr_and_ssim_agree_with_scikit_image(shape):
    sr, hr = images(3, shape)
    assert psnr(sr, hr) == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-10)
    theirs = [
        structural_similarity(
            *planes,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1][5 : shape[0] - 5, 5 : shape[1] - 5].mean()
        for planes in zip(
            np.atleast_3d(sr).transpose(2, 0, 1), np.atleast_3d(hr).transpose(2, 0, 1), strict=True
        )
    ]
    assert ssim(sr, hr) == pytest.approx(np.mean(theirs), abs=1e-10)


@pytest.mark.parametrize("shape", [(30, 41, 3), (64, 64, 13)])
def test_all_four_measures_agree_with_torchmetrics(shape):
    sr, hr = images(5, shape)
    theirs = [torch.from_numpy(one).double().permute(2, 0, 1)[None] for one in (sr, hr)]
    # as torchmetrics' SSIM treats the border
    mirrored = [np.pad(one, ((5, 5), (5, 5), (0, 0)), "reflect") for one in (sr, hr)]
    for name, ours, expected in (
        ("psnr", psnr(sr, hr), torchmetrics.peak_signal_noise_ratio(*theirs, data_range=255.0)),
        (
            "ssim",
            ssim(*mirrored),
            torchmetrics.structural_similarity_index_measure(*theirs, data_range=255.0),
        ),
        ("sam", spectral_angle(sr, hr), torch.rad2deg(torchmetrics.spectral_angle_mapper(*theirs))),
        (
            "ergas",
            ergas(sr, hr, 4),
            torchmetrics.error_relative_global_dimensionless_synthesis(*theirs, ratio=4),
        ),
    ):
        # torchmetrics' arccos and sums are less precise
        assert ours == pytest.approx(float(expected), rel=1e-6), name


def test_zero_padded_ssim_equals_that_of_a_padded_image():
    sr, hr = images(4, (25, 30))
    assert ssim(sr, hr, edges="zero") == pytest.approx(
        ssim(np.pad(sr, 5), np.pad(hr, 5)), abs=1e-12
    )


def test_psnr_of_a_value_computed_by_hand():
    assert psnr(np.full((4, 4), 10.0), np.full((4, 4), 13.0)) == pytest.approx(
        20 * math.log10(255 / 3)
    )
    assert psnr(np.full((4, 4), 0.1), np.full((4, 4), 0.2), peak=1.0) == pytest.approx(20)


def test_the_border_is_left_out():
    sr, hr = images(5)
    spoiled = sr.copy()
    spoiled[:2], spoiled[-2:], spoiled[:, :2], spoiled[:, -2:] = 0, 0, 0, 0
    assert psnr(spoiled, hr, crop=2) == psnr(sr, hr, crop=2) != psnr(spoiled, hr, crop=1)
    assert ssim(spoiled, hr, crop=2) == ssim(sr, hr, crop=2)


@pytest.mark.parametrize(
    ("rule", "crop"), [("esr-rgb", 2), ("esr-y", 2), ("haunet-rgb", 2), ("published", 0)]
)
def test_each_rule_crops_its_published_border(rule, crop):
    sr, hr = images(5, (30, 40, 3))
    pair, (metric,) = pair_of(hr), metrics_of([f"{rule}.psnr"])
    value = score(sr, pair, [metric])[metric.name]
    for width, is_seen in ((crop, False), (crop + 1, True)):
        spoiled = 255 - sr
        spoiled[width : 30 - width, width : 40 - width] = sr[width : 30 - width, width : 40 - width]
        assert (score(spoiled, pair, [metric])[metric.name] != value) == is_seen


def test_each_metric_is_averaged_as_published():
    over_classes = [name for name, metric in METRICS.items() if metric.mean == "classes"]
    assert over_classes == ["published.psnr", "published.ssim", "ttst-y.psnr", "ttst-y.ssim"]


@pytest.mark.parametrize("metric", MEASURED, ids=repr)
def test_equal_images_have_the_best_possible_value(metric):
    hr = images(6, (48, 48, 3))[1]
    pair = Pair("x", to_uint8(imresize(hr / 255.0, 1 / 2)), hr)
    value = score(hr, pair, [metric])[metric.name]
    best = {"psnr": math.inf, "ssim": 1.0, "sam": 0.0, "ergas": 0.0}[metric.name.partition(".")[2]]
    if metric.name == "published.psnr":
        best = 100.0
    if metric.name == "consistency.psnr":  # GT differs from LR by rounding, too
        assert 50 < value < 70
    else:
        assert value == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", MEASURED, ids=repr)
def test_more_noise_is_worse(metric):
    hr = images(7, (48, 48, 3))[1]
    pair = Pair("x", to_uint8(imresize(hr / 255.0, 1 / 2)), hr)
    little, much = (
        score(images(7, (48, 48, 3), noise)[0], pair, [metric])[metric.name] for noise in (5, 25)
    )
    assert (little > much) == metric.higher_is_better


@settings(max_examples=25)
@given(seed=integers(0, 1000), scale=integers(2, 4))
def test_8_bit_results_score_the_same_as_the_same_values_in_unit(seed, scale):
    sr, hr = images(seed)
    pair = pair_of(hr, scale)
    sr = sr[: pair.hr.shape[0], : pair.hr.shape[1]]
    # truncation is not stable there
    metrics = [metric for metric in MEASURED if metric.rule != "ttst-y"]
    assert score(sr, pair, metrics) == pytest.approx(score(sr / 255.0, pair, metrics), abs=1e-9)


def test_each_rule_rounds_in_its_own_way():
    hr = np.full((16, 16, 3), 100, np.uint8)
    pair = pair_of(hr)
    sr = np.full((16, 16, 3), 100.75 / 255)
    values = score(sr, pair, MEASURED)
    assert values["published.psnr"] == pytest.approx(20 * math.log10(255 / 0.75))
    assert values["esr-rgb.psnr"] == pytest.approx(20 * math.log10(255))
    assert values["ttst-y.psnr"] == math.inf


def test_published_ssim_uses_values_outside_the_range_and_psnr_does_not():
    hr = np.full((16, 16, 3), 255, np.uint8)
    pair = pair_of(hr)
    bright = np.full((16, 16, 3), 1.2)
    values = score(bright, pair, metrics_of(["published"]))
    assert values["published.psnr"] == 100
    assert values["published.ssim"] < 0.999


def test_the_spectral_angle_matches_hand_computed_values_and_ignores_brightness():
    hr = np.ones((2, 2, 2))
    assert spectral_angle(hr * np.array([1.0, 0.0]), hr) == pytest.approx(45)
    assert spectral_angle(3.7 * hr, hr) == pytest.approx(0, abs=1e-12)
    assert spectral_angle(-hr, hr) == pytest.approx(180)
    assert spectral_angle(np.zeros((2, 2, 2)), np.zeros((2, 2, 2))) == 0
    assert spectral_angle(np.zeros((2, 2, 2)), hr) == 90


def test_ergas_matches_hand_computed_values():
    hr = np.full((3, 3, 2), 50.0)
    sr = hr + np.array([5.0, 0.0])
    assert ergas(sr, hr, 4) == pytest.approx(25 * math.sqrt(0.1**2 / 2))
    assert ergas(np.ones((2, 2, 1)), np.zeros((2, 2, 1)), 2) == math.inf
    assert ergas(np.zeros((2, 2, 1)), np.zeros((2, 2, 1)), 2) == 0


def test_thirteen_16_bit_bands_are_measured_relative_to_their_type():
    hr = np.random.default_rng(8).integers(0, 65536, (16, 16, 13), np.uint16)
    pair = pair_of(hr)
    off = np.where(hr < 32768, hr + 10, hr - 10).astype(np.uint16)
    values = score(off, pair, metrics_of(["bands"]))
    assert values["bands.psnr"] == pytest.approx(20 * math.log10(65535 / 10))
    assert values == pytest.approx(score(off / 65535.0, pair, metrics_of(["bands"])), abs=1e-6)


def test_floats_are_measured_relative_to_the_span_of_gt():
    hr = np.linspace(-3, 5, 16 * 16, dtype=np.float32).reshape(16, 16, 1)
    assert score(hr + np.float32(0.5), pair_of(hr), metrics_of(["bands"]))[
        "bands.psnr"
    ] == pytest.approx(20 * math.log10(16), abs=1e-4)


def test_a_rule_for_pictures_refuses_other_bands_and_types():
    for hr in (np.zeros((16, 16, 4), np.uint8), np.zeros((16, 16, 3), np.uint16)):
        with pytest.raises(
            UsageError, match="esr-rgb is defined for 3 of uint8; take the rule bands"
        ):
            score(hr, pair_of(hr), metrics_of(["esr-rgb"]))


def test_unknown_rules_and_different_shapes_are_refused():
    with pytest.raises(UsageError, match="no rule psnr; choose among published"):
        metrics_of(["psnr"])
    with pytest.raises(ShapeMismatch, match="must be the same"):
        psnr(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ShapeMismatch, match="11x11"):
        ssim(np.zeros((10, 12)), np.zeros((10, 12)))
    with pytest.raises(ShapeMismatch, match="Nothing is left"):
        psnr(np.zeros((4, 4)), np.zeros((4, 4)), crop=2)


def test_whole_rules_or_single_measures_can_be_chosen():
    assert [
        metric.name for metric in metrics_of(["esr-rgb", "published.psnr", "esr-rgb.psnr"])
    ] == [
        "esr-rgb.psnr",
        "esr-rgb.ssim",
        "published.psnr",
    ]
    assert (*PUBLISHED_RULES, "bands", "perceptual", "consistency") == rule_names()


def test_a_mean_of_class_means_weighs_classes_and_a_mean_over_images_does_not():
    values = {"a/1": 10.0, "a/2": 20.0, "a/3": 30.0, "b/1": 40.0}
    assert average(values, "images") == 25
    assert average(values, "classes") == 30
    assert class_means(values) == {"a": 20, "b": 40}
    assert class_means({"1": 3.0, "2": 5.0}) == {"": 4.0}
