"""The expected error: measures of doubt, and the table from them to an error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from repmamba import load
from repmamba.errors import CheckpointError, UsageError
from repmamba.inference.catalogue import packaged_weights
from repmamba.inference.confidence import Calibration, calibration_path, doubt, read_calibration
from repmamba.inference.ensemble import mean_and_variance, mean_of_eight

TABLE = Calibration("ab" * 16, "two pictures", (0.01, 0.02, 0.04), (0.1, 0.2, 0.2))


def leaning(unit: torch.Tensor) -> torch.Tensor:
    """Upscales by nearest neighbour, plus a little more on the left, on which the eight disagree."""
    return (unit + 0.01 * unit.roll(1, -1)).repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_the_variance_is_that_of_the_eight_and_the_mean_is_that_of_an_ensemble_in_every_bit():
    unit = 0.9 + 0.1 * torch.rand(2, 3, 6, 9)  # large compared with the differences of the eight
    mean, variance = mean_and_variance(leaning, unit)
    assert torch.equal(mean, mean_of_eight(leaning, unit))
    eight = []
    for turns in range(4):
        for axes in ((), (-1,)):
            seen = torch.rot90(unit.flip(axes), turns, (-2, -1))
            eight.append(torch.rot90(leaning(seen), -turns, (-2, -1)).flip(axes))
    torch.testing.assert_close(
        variance, torch.stack(eight).double().var(0, correction=0).float(), rtol=1e-3, atol=0
    )


def test_doubt_is_the_geometric_mean_of_spread_and_contrast():
    sr = torch.zeros(1, 7, 7)
    sr[0, 3, 3] = 0.9
    found = doubt(sr, torch.full((3, 7, 7), 0.04))
    contrast = np.sqrt(0.9**2 / 9 - (0.9 / 9) ** 2)  # one of nine pixels is 0.9
    assert found[3, 3] == pytest.approx(np.sqrt(0.2 * contrast), rel=1e-6)
    # the square around it holds the same nine pixels
    assert found[2, 4] == pytest.approx(found[3, 3])
    assert found[0, 0] == 0


def test_no_doubt_where_the_eight_agree_or_the_image_is_flat():
    picture = torch.rand(3, 8, 8)
    assert (doubt(picture, torch.zeros(3, 8, 8)) == 0).all()
    assert (doubt(torch.full((3, 8, 8), 0.7), torch.rand(3, 8, 8)) < 1e-3).all()


def test_doubt_of_a_rotated_image_is_the_rotated_doubt():
    picture, variance = torch.rand(3, 6, 9), torch.rand(3, 6, 9)
    turned = doubt(picture.mT.flip(-1), variance.mT.flip(-1))
    torch.testing.assert_close(turned, doubt(picture, variance).mT.flip(-1))


@settings(max_examples=50)
@given(pixels=integers(1, 3000), levels=integers(1, 400), seed=integers(0, 2**32 - 1))
def test_a_fitted_table_never_falls_and_keeps_the_mean_error(pixels, levels, seed):
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, levels, pixels) / levels  # with many equal numbers
    error = rng.random(pixels)
    table = Calibration.fitted(seen, error, network="", measured_on="")
    assert (np.diff(table.doubt) > 0).all()
    assert (np.diff(table.error) >= 0).all()
    assert error.min() <= table.error[0] <= error.mean() + 1e-12
    assert error.mean() - 1e-12 <= table.error[-1] <= error.max()


def test_a_fitted_table_gives_the_error_it_was_fitted_to():
    seen = np.random.default_rng(1).random(200_000)
    table = Calibration.fitted(seen, 0.02 + seen**2, network="", measured_on="")
    assert np.abs(table.expected_error(seen) - (0.02 + seen**2)).max() < 0.02
    assert table.expected_error(seen).mean() == pytest.approx((0.02 + seen**2).mean(), rel=0.01)


def test_the_table_is_linear_between_entries_and_constant_beyond_them():
    found = TABLE.expected_error(np.array([0, 0.01, 0.015, 0.02, 0.03, 1.0]))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.15, 0.2, 0.2, 0.2], rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("doubts", "errors"),
    [((), ()), ((0.1, 0.2), (0.1,)), ((0.2, 0.1), (0.1, 0.2)), ((0.1, 0.2), (0.2, 0.1))],
)
def test_an_invalid_table_is_refused(doubts, errors):
    with pytest.raises(UsageError, match="calibration needs"):
        Calibration("", "", doubts, errors)


def test_a_calibration_is_read_beside_the_weights_and_only_for_its_network(
    tmp_path,
):
    for weights in (tmp_path / "mine.safetensors", tmp_path):
        calibration_path(weights).write_text(TABLE.as_text())
        assert read_calibration(weights, TABLE.network) == TABLE
        assert read_calibration(weights, "cd" * 16) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confidence.json",
        "mine.confidence.json",
    ]
    assert read_calibration(tmp_path / "other.safetensors", TABLE.network) is None


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "{}", '{"network": 1, "measured_on": "", "doubt": [2, 1], "error": [1, 1]}'],
)
def test_a_damaged_calibration_is_one_line(tmp_path, damage):
    (tmp_path / "confidence.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"confidence\.json is no calibration") as caught:
        read_calibration(tmp_path, TABLE.network)
    assert "\n" not in str(caught.value)


def test_load_reads_the_calibration(small_weights, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(small_weights.read_bytes())
    upscaler = load(path)
    assert upscaler.calibration is None
    table = replace(TABLE, network=upscaler.digest)
    calibration_path(path).write_text(table.as_text())
    assert load(path).calibration == table


def test_packaged_calibrations_belong_to_the_packaged_weights():
    """New weights under an old name need a new table, or the old one would never be read."""
    with_one = [entry.name for entry in packaged_weights() if calibration_path(entry.path).exists()]
    assert with_one == ["x4"]
    assert all(load(name).calibration is not None for name in with_one)


def test_the_variance_of_a_grey_band_is_that_of_the_whole_network(small_weights):
    band = np.random.default_rng(3).random((1, 12, 14), np.float32)
    upscaler = load(small_weights, ensemble=True)
    sr, variance = upscaler.enlarge_with_variance(band)
    assert torch.equal(sr, upscaler.enlarge(band, ((0,),)))
    assert (sr.shape, variance.shape) == ((1, 24, 28), (3, 24, 28))
    assert (variance > 0).any()
