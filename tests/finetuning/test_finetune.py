"""Finetuning: training blocks, test blocks, and when the old weights are kept."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from rasterio.transform import from_origin

from repmamba.cli.main import Invocation, cli
from repmamba.errors import UsageError
from repmamba.evaluate.scores import Paired
from repmamba.finetuning.blocks import FEWEST, blocks_of, share_ground, split
from repmamba.finetuning.finetune import FinetuneResult, finetune, scored
from repmamba.inference.loading import load
from repmamba.network.checkpoint import read_checkpoint
from repmamba.scene.source.admission import ReadOptions
from repmamba.train import learner
from repmamba.train.run import FitResult

PLACE = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 1, 1)}


def written(path: Path, bands: np.ndarray, **profile) -> Path:
    count, height, width = bands.shape
    facts = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": bands.dtype,
    }
    with rasterio.open(path, "w", **facts, **(PLACE | profile)) as raster:
        raster.write(bands)
    return path


def ground(height: int, width: int, bands: int, top: float, dtype: str) -> np.ndarray:
    """Stripes sharper than bilinear enlargement can give back, 0 to top."""
    rows, cols = np.mgrid[:height, :width]
    stripes = [np.sin((cols + band) / 1.6) + np.sin((rows - cols) / 2.3) for band in range(bands)]
    return ((np.stack(stripes) + 2) / 4 * top).astype(dtype)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    """The trial of bf16 takes a second and is tested elsewhere."""
    monkeypatch.setattr(learner, "bf16_is_faster", lambda *_: False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    return written(
        folder / "stripes.tif", ground(48 * 5, 48 * 6, 3, 255, "uint8"), photometric="RGB"
    )


def test_a_gain_on_held_out_blocks_gives_new_weights(scene, weights, tmp_path):
    old = weights
    result = finetune([scene], tmp_path, old, steps=30, rate=2e-3)
    assert result.improved
    assert result.gain.low <= result.gain.difference <= result.gain.high
    assert result.weights == str(tmp_path / "finetuned.safetensors")
    assert "a gain; use the new weights" in result.summary()
    kept = read_checkpoint(result.weights)
    assert "peak 1, border of s pixels cut" in kept.training["gain_rule"]
    assert kept.training["gain_rule"] in result.summary()
    assert kept.training["begun_from"] == {
        "weights": old,
        "training": read_checkpoint(old).training,
    }
    assert "stripes.tif" in kept.origin
    assert load(result.weights).scale == 2


def test_without_a_gain_the_old_weights_are_kept(scene, weights, tmp_path):
    old = weights
    result = finetune([scene], tmp_path, old, steps=20, rate=0.2)
    assert not result.improved
    assert result.weights == old
    assert "not clearly a gain; keep the old weights" in result.summary()
    assert not (tmp_path / "finetuned.safetensors").exists()


@pytest.mark.parametrize(("low", "improved"), [(0.02, True), (0.0, False), (-0.1, False)])
def test_a_gain_needs_its_whole_interval_above_zero(tmp_path, low, improved):
    run = FitResult(tmp_path / "best.safetensors", 20, True, None, 0, "esr-rgb")
    result = FinetuneResult(
        run, "old", Paired(difference=0.1, low=low, high=0.3, better=5, count=8, left_out=0)
    )
    assert result.improved == improved
    assert ("; use the new weights old" in result.summary()) == improved
    assert ("not clearly a gain; keep the old weights old" in result.summary()) != improved


@pytest.fixture(scope="module")
def upscaler(weights):
    return load(weights)


def test_test_blocks_are_never_trained_on(scene, upscaler):
    blocks = blocks_of(scene, upscaler)
    learnt, judged = ({block.name for block in part} for part in split(blocks, 3))
    assert len(learnt) + len(judged) == len(blocks) == 30
    assert not learnt & judged
    assert len(judged) == 8
    assert {block.name for block in split(blocks, 3)[1]} == judged


def test_all_bands_of_a_block_are_on_one_side_and_count_once(upscaler, tmp_path):
    bands = ground(48 * 4, 48 * 6, 5, 9000, "uint16")
    blocks = blocks_of(written(tmp_path / "five.tif", bands), upscaler)
    assert {len(block.pairs) for block in blocks} == {5}
    learnt, judged = split(blocks, 3)
    assert (len(learnt), len(judged)) == (16, 8)
    places = [{block.corners for block in part} for part in (learnt, judged)]
    assert not places[0] & places[1]
    scores = scored(upscaler.module, judged)
    assert len(scores) == 8
    (first, *_) = judged
    alone = [
        scored(upscaler.module, [replace(first, pairs=(pair,))])[first.name] for pair in first.pairs
    ]
    assert scores[first.name] == pytest.approx(np.mean(alone))
    with pytest.raises(UsageError, match="have 20 blocks"):
        split(blocks[:20], 3)


@pytest.mark.parametrize("shift", [0, 17], ids=["on one grid", "on shifted grids"])
@pytest.mark.parametrize("turned", [0, 30], ids=["north up", "turned"])
def test_ground_tested_in_one_scene_is_not_trained_on_in_another(upscaler, tmp_path, shift, turned):
    june_bands, july_bands = (ground(48 * 8, 48 * 9, 3, top, "uint8") for top in (255, 130))
    june = PLACE["transform"] @ Affine.rotation(turned)
    july = june @ Affine.translation(shift, shift)
    scenes = [
        written(tmp_path / "june.tif", june_bands, photometric="RGB", transform=june),
        written(tmp_path / "july.tif", july_bands, photometric="RGB", transform=july),
    ]
    learnt, judged = split([block for scene in scenes for block in blocks_of(scene, upscaler)], 5)

    def pixels(block) -> tuple[range, range]:
        """Rows and columns on the grid of June."""
        (left, top), (right, bottom) = (~june * block.corners[corner] for corner in (0, 2))
        return range(round(top), round(bottom)), range(round(left), round(right))

    held = np.zeros((48 * 9, 48 * 10), int)
    for block in judged:
        rows, cols = pixels(block)
        held[rows.start : rows.stop, cols.start : cols.stop] += 1
    assert held.max() == 1, "what is judged on counts once"
    for block in learnt:
        rows, cols = pixels(block)
        assert not held[rows.start : rows.stop, cols.start : cols.stop].any()
    assert len({block.name.partition(",")[0] for block in learnt}) == 2
    if not shift:
        assert (len(learnt), len(judged)) == (108, 18)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ({}, {}, True),
        ({}, {"crs": "EPSG:32633"}, False),
        ({"crs": None}, {"crs": None}, True),
        ({"crs": None, "transform": None}, {"crs": None, "transform": None}, False),
    ],
    ids=["one map", "two maps", "a map without a name", "no place"],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_positions_are_only_compared_on_the_same_map(upscaler, tmp_path, one, other, shared):
    bands = ground(48 * 5, 48 * 6, 3, 255, "uint8")
    paths = [
        written(tmp_path / name, bands, **place)
        for name, place in (("a.tif", one), ("b.tif", other))
    ]
    (first, *_), (second, *_) = (blocks_of(path, upscaler) for path in paths)
    assert share_ground(first, second) == shared
    assert share_ground(first, blocks_of(paths[0], upscaler)[0]), (
        "a scene given twice is one ground"
    )


def test_blocks_of_a_scene_log_nothing_about_consistency(scene, upscaler, caplog):
    with caplog.at_level("INFO", logger="repmamba"):
        blocks_of(scene, upscaler)
    assert ": made consistent with its input" not in caplog.text


def test_blocks_with_missing_pixels_are_left_out_and_other_bands_go_alone(upscaler, tmp_path):
    bands = ground(48 * 5, 48 * 6, 4, 9000, "uint16") + 1
    bands[:, 60:70, 60:200] = 0
    path = written(tmp_path / "four.tif", bands, nodata=0)
    blocks = blocks_of(path, upscaler)
    assert len(blocks) == 26  # the gap touches four of the thirty
    for pair in (pair for block in blocks for pair in block.pairs):
        assert pair.hr.shape == (48, 48, 3)
        assert pair.hr.dtype == np.float32
        assert -0.5 <= pair.hr.min() <= pair.hr.max() <= 1.5
        assert pair.lr.shape == (24, 24, 3)


def test_blocks_missing_in_a_float_band_are_left_out(upscaler, tmp_path):
    bands = ground(48 * 5, 48 * 6, 4, 9000, "uint16").astype(np.float32) + 1
    bands[3, 60:70, 60:200] = -9999
    assert len(blocks_of(written(tmp_path / "holes.tif", bands, nodata=-9999), upscaler)) == 26


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -9999), ("float32", np.nan), ("uint8", 0)])
def test_blocks_with_a_given_nodata_are_left_out(upscaler, tmp_path, dtype, fill):
    bands = ground(48 * 5, 48 * 6, 1, 200, dtype) + np.asarray(1, dtype)
    bands[:, 60:70, 60:200] = fill
    declared = blocks_of(written(tmp_path / "holes.tif", bands, nodata=fill), upscaler)
    path = written(tmp_path / "undeclared.tif", bands)
    given = blocks_of(path, upscaler, ReadOptions(nodata=(fill,)))
    assert len(given) == len(declared) == 26
    for one, other in zip(given, declared, strict=True):
        np.testing.assert_array_equal(one.pairs[0].hr, other.pairs[0].hr)


def test_the_given_nodata_reaches_every_scene(weights, tmp_path):
    path = written(tmp_path / "small.tif", np.full((1, 240, 288), 7, np.uint8))
    with pytest.raises(UsageError, match="have 0 blocks"):
        finetune([path], tmp_path / "run", weights, nodata=7)
    with pytest.raises(UsageError, match="nodata='no': give a number"):
        finetune([path], tmp_path / "run", weights, nodata="no")
    arguments = ["finetune", str(path), "--weights", weights, "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, [*arguments, "--nodata", "7"], obj=Invocation())
    assert isinstance(result.exception, UsageError)
    assert "have 0 blocks" in str(result.exception)


def test_a_scene_that_is_too_small_is_refused(weights, tmp_path):
    path = written(tmp_path / "small.tif", ground(100, 100, 3, 255, "uint8"))
    with pytest.raises(
        UsageError, match=f"have 4 blocks of at least 48 x 48 pixels.* {FEWEST} in all"
    ):
        finetune([path], tmp_path / "run", weights)


def test_a_stopped_run_says_how_to_go_on(scene, weights, tmp_path):
    result = finetune([scene], tmp_path, weights, steps=20, minutes=0)
    assert result.gain is None
    assert not result.improved
    assert "Interrupted after" in result.summary()


def test_the_command_prints_the_outcome(scene, weights, tmp_path):
    arguments = [
        "finetune",
        str(scene),
        "--weights",
        weights,
        "-o",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(
        cli, [*arguments, "--steps", "20", "--rate", "0.001"], obj=Invocation()
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"held-out blocks \(PSNR of unit values, .*\), 95 % interval", result.output)
