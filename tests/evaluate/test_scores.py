"""Means, differences and their intervals."""

import math

import numpy as np
import pytest

from repmamba.evaluate.metrics import METRICS
from repmamba.evaluate.scores import paired_difference, summarise

PSNR, BY_CLASS = METRICS["esr-rgb.psnr"], METRICS["published.psnr"]


def test_an_infinite_psnr_is_counted_and_not_averaged():
    summary = summarise({"1": 30.0, "2": math.inf, "3": 32.0}, PSNR)
    assert (summary.mean, summary.count, summary.infinite) == (31.0, 3, 1)
    assert math.isnan(summarise({"1": math.inf}, PSNR).mean)


def test_a_paired_difference_leaves_out_images_without_one():
    ours = {"1": 31.0, "2": math.inf, "3": math.inf, "4": 30.0}
    theirs = {"1": 30.0, "2": 40.0, "3": math.inf, "4": 30.5}
    paired = paired_difference(ours, theirs, PSNR)
    assert paired.difference == pytest.approx((1.0 + 0.0 - 0.5) / 3)
    assert (paired.better, paired.count, paired.left_out) == (1, 3, 1)


def test_lower_is_better_if_the_metric_says_so():
    paired = paired_difference({"1": 1.0, "2": 3.0}, {"1": 2.0, "2": 2.0}, METRICS["bands.sam"])
    assert paired.better == 1


def test_the_interval_covers_the_true_mean_about_as_often_as_stated():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(100):
        values = {str(index): float(value) for index, value in enumerate(rng.normal(0.3, 1.0, 40))}
        paired = paired_difference(values, dict.fromkeys(values, 0.0), PSNR)
        covered += paired.low <= 0.3 <= paired.high
    assert 88 <= covered <= 99


def test_the_interval_agrees_with_scipys_bootstrap():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(12)
    values = rng.normal(0.2, 0.5, 60)
    paired = paired_difference(
        {str(i): float(v) for i, v in enumerate(values)}, {str(i): 0.0 for i in range(60)}, PSNR
    )
    theirs = bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    assert (paired.low, paired.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_images_are_resampled_within_classes_if_class_means_are_averaged():
    values = {f"a/{n}": 1.0 for n in range(5)} | {f"b/{n}": 3.0 for n in range(50)}
    paired = paired_difference(values, dict.fromkeys(values, 0.0), BY_CLASS)
    assert (paired.difference, paired.low, paired.high) == pytest.approx((2.0, 2.0, 2.0))
