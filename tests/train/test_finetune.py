"""Finetuning: what is learnt from, what is judged on, and when the old weights stay."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.transform import from_origin

from repmamba.cli.main import Invocation, cli
from repmamba.errors import UsageError
from repmamba.inference.upscaler import load
from repmamba.network.checkpoint import read_checkpoint
from repmamba.train import learner
from repmamba.train.finetune import FEWEST, blocks_of, finetune, split


def written(path: Path, bands: np.ndarray, **profile) -> Path:
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=bands.dtype,
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_000_000, 1, 1),
        **profile,
    ) as raster:
        raster.write(bands)
    return path


def ground(height: int, width: int, bands: int, top: float, dtype: str) -> np.ndarray:
    """Stripes sharper than bilinear enlargement can give back, 0 to top."""
    rows, cols = np.mgrid[:height, :width]
    stripes = [np.sin((cols + band) / 1.6) + np.sin((rows - cols) / 2.3) for band in range(bands)]
    return ((np.stack(stripes) + 2) / 4 * top).astype(dtype)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    """The trial of bf16 takes a second, and its outcome is another test's matter."""
    monkeypatch.setattr(learner, "bf16_is_faster", lambda *_: False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    return written(folder / "stripes.tif", ground(48 * 5, 48 * 6, 3, 255, "uint8"), photometric="RGB")


def test_a_gain_that_the_held_back_blocks_support_gives_new_weights(scene, whole_run, tmp_path):
    old = str(whole_run / "last.safetensors")
    result = finetune([scene], tmp_path, old, steps=30, rate=2e-3)
    assert result.improved
    assert result.gain.low <= result.gain.difference <= result.gain.high
    assert result.weights == str(tmp_path / "finetuned.safetensors")
    assert "a gain; the new weights are" in result.summary()
    kept = read_checkpoint(result.weights)
    assert kept.training["begun_from"] == {"weights": old, "training": read_checkpoint(old).training}
    assert "stripes.tif" in kept.origin
    assert load(result.weights).scale == 2


def test_without_such_a_gain_the_old_weights_stay_and_it_says_so(scene, whole_run, tmp_path):
    old = str(whole_run / "last.safetensors")
    result = finetune([scene], tmp_path, old, steps=20, rate=0.2)
    assert not result.improved
    assert result.weights == old
    assert "no gain that this supports; the old weights stay" in result.summary()
    assert not (tmp_path / "finetuned.safetensors").exists()


def test_what_is_judged_on_is_never_learnt_from(scene, whole_run):
    blocks = blocks_of(scene, load(str(whole_run / "last.safetensors")))
    learnt, judged = ({pair.name for pair in part} for part in split(blocks, 3))
    assert len(learnt) + len(judged) == len(blocks) == 30
    assert not learnt & judged
    assert len(judged) == 8
    assert {pair.name for pair in split(blocks, 3)[1]} == judged


def test_blocks_with_missing_pixels_are_left_out_and_other_bands_go_alone(whole_run, tmp_path):
    bands = ground(48 * 5, 48 * 6, 4, 9000, "uint16") + 1
    bands[:, 60:70, 60:200] = 0
    path = written(tmp_path / "four.tif", bands, nodata=0)
    blocks = blocks_of(path, load(str(whole_run / "last.safetensors")))
    # The gap touches four of the thirty blocks.
    assert {pair.hr.shape for pair in blocks} == {(48, 48, 3)}
    assert len(blocks) % 26 == 0
    for pair in blocks:
        assert pair.hr.dtype == np.float32
        assert -0.5 <= pair.hr.min() <= pair.hr.max() <= 1.5
        assert pair.lr.shape == (24, 24, 3)


def test_a_scene_that_is_too_small_is_refused(whole_run, tmp_path):
    path = written(tmp_path / "small.tif", ground(100, 100, 3, 255, "uint8"))
    with pytest.raises(UsageError, match=f"give 4 blocks of 48 x 48 pixels.*at least {FEWEST} are needed"):
        finetune([path], tmp_path / "run", str(whole_run / "last.safetensors"))


def test_a_stopped_run_says_that_it_goes_on(scene, whole_run, tmp_path):
    result = finetune([scene], tmp_path, str(whole_run / "last.safetensors"), steps=20, minutes=0)
    assert result.gain is None
    assert not result.improved
    assert "to be gone on with" in result.summary()


def test_the_command_prints_what_came_of_it(scene, whole_run, tmp_path):
    arguments = ["finetune", str(scene), "--weights", str(whole_run / "last.safetensors"), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, [*arguments, "--steps", "20", "--rate", "0.001"], obj=Invocation())
    assert result.exit_code == 0, result.output
    assert "held-back blocks, 95 % interval" in result.output
