"""Consistency: the result downsamples to its input, and changes as little as possible."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repmamba.inference.consistency import make_consistent
from repmamba.pixels.resize import imresize_torch


@settings(max_examples=30)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.sampled_from([2, 3, 4]),
    seed=st.integers(0, 999),
)
def test_the_result_downsamples_to_its_input(height, width, scale, seed):
    torch.manual_seed(seed)
    lr, sr = torch.rand(2, height, width), torch.rand(2, scale * height, scale * width)
    changed = make_consistent(sr, lr, torch.ones_like(lr, dtype=torch.bool), scale)
    assert (imresize_torch(changed[None], 1 / scale)[0] - lr).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_result_never_moves_away_from_the_truth(scale):
    torch.manual_seed(scale)
    truth = torch.rand(3, 24 * scale, 20 * scale)
    lr = imresize_torch(truth[None], 1 / scale)[0]
    for noise in (0.01, 0.1, 1.0):
        sr = truth + noise * torch.randn_like(truth)
        changed = make_consistent(sr, lr, torch.ones_like(lr, dtype=torch.bool), scale)
        assert (changed - truth).norm() <= (sr - truth).norm()


def test_a_consistent_result_does_not_change():
    truth = torch.rand(1, 32, 32)
    lr = imresize_torch(truth[None], 0.25)[0]
    torch.testing.assert_close(
        make_consistent(truth, lr, torch.ones_like(lr, dtype=torch.bool), 4), truth
    )


def test_the_value_of_a_missing_pixel_has_no_influence():
    torch.manual_seed(0)
    sr, lr = torch.rand(1, 40, 40), torch.rand(1, 20, 20)
    known = torch.ones(1, 20, 20, dtype=torch.bool)
    known[0, 5:9, 5:9] = False
    spoilt = lr.masked_fill(~known, np.nan)
    changed = make_consistent(sr, lr, known, 2)
    assert torch.equal(make_consistent(sr, spoilt, known, 2), changed)
    assert (imresize_torch(changed[None], 0.5)[0] - lr)[known].abs().max() < 1e-4
