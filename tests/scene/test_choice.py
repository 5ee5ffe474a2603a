"""The weights that fit a scene: found by its noise and its JPEG, said everywhere, and overruled by
a name.
"""

import json
import logging
import shutil

import numpy as np
import pytest
import rasterio
from PIL import Image
from scipy.ndimage import gaussian_filter

from repmamba.cli.info import raster_facts
from repmamba.cli.main import run
from repmamba.inference import catalogue
from repmamba.inference.loading import load
from repmamba.scene import choice as choice_module
from repmamba.scene.choice import BLOCKY, NOISY, Chooser, choose, measured_windows
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result.receipt import receipt_path
from repmamba.scene.source.raster import open_raster


def ground(bands=3, edge=48, sigma=0.0):
    """Soft levels with noise of this strength: (bands, edge, edge), 0 to 255, not rounded."""
    draw = np.random.default_rng(0)
    soft = gaussian_filter(draw.normal(0, 1, (bands, edge, edge)), (0, 5, 5))
    return 120 + 40 * soft / soft.std() + draw.normal(0, 1, soft.shape) * sigma


@pytest.fixture
def scenes(write_raster, tmp_path):
    """A clean one, a noisy one and one that was compressed."""
    paths = {
        name: write_raster(
            f"{name}.tif", np.clip(ground(sigma=sigma), 0, 255).round().astype(np.uint8)
        )
        for name, sigma in (("clean", 0.5), ("noisy", 6.0))
    }
    levels = np.moveaxis(np.clip(ground(sigma=2.0), 0, 255).astype(np.uint8), 0, 2)
    paths["compressed"] = tmp_path / "compressed.jpg"
    Image.fromarray(np.ascontiguousarray(levels)).save(paths["compressed"], quality=50)
    return paths


def chosen(path, usual="x4"):
    with open_raster(path) as raster:
        return choose(raster, usual)


def test_noise_and_jpeg_ask_for_real_weights_and_a_clean_scene_does_not(scenes):
    clean, noisy, compressed = (chosen(scenes[name]) for name in ("clean", "noisy", "compressed"))
    assert (clean.weights, noisy.weights, compressed.weights) == ("x4", "x4-real", "x4-real")
    assert clean.noise == pytest.approx(0.6, abs=0.2)
    assert noisy.noise == pytest.approx(6, abs=1)
    assert noisy.blockiness < 0.1 < BLOCKY < compressed.blockiness
    assert (
        noisy.line()
        == f"{scenes['noisy']}: the scene is noisy (sigma {noisy.noise} of 255): x4-real."
    )
    assert (
        f"is compressed by JPEG (blockiness {compressed.blockiness:.2f}): x4-real."
        in compressed.line()
    )
    assert f"is clean (sigma {clean.noise} of 255, blockiness 0.0" in clean.line()


def test_the_choice_is_in_the_log_the_plan_the_tags_and_the_receipt(scenes, tmp_path, caplog):
    target = tmp_path / "out.tif"
    with caplog.at_level(logging.INFO, "repmamba"):
        expected = plan_file(scenes["noisy"], target)
        result = upscale_file(scenes["noisy"], target)
    choice = chosen(scenes["noisy"])
    assert caplog.messages.count(choice.line()) == 2
    assert expected.weights == result.weights == "x4-real"
    assert (
        expected.chosen
        == result.chosen
        == result.as_json()["chosen"]
        == f"noisy (sigma {choice.noise} of 255)"
    )
    assert f"\n  weights  x4-real: the scene is {choice.why}" in expected.summary()
    with rasterio.open(target) as file:
        assert file.tags()["SUPER_RESOLUTION_WEIGHTS"].startswith("x4-real ")
        assert file.tags()["SUPER_RESOLUTION_CHOSEN_FOR"] == choice.why
    receipt = json.loads(receipt_path(target).read_text())
    assert receipt["job"]["settings"]["chosen"] == choice.as_json()
    assert (
        raster_facts(str(scenes["noisy"]), 4)["enlarged"]["weights"]
        == f"x4-real: the scene is {choice.why}"
    )
    assert raster_facts(str(scenes["noisy"]), 2)["enlarged"]["weights"] == "x2"


def test_what_a_file_is_can_be_said_even_if_its_pixels_cannot_be_read(scenes):
    whole = scenes["noisy"].read_bytes()
    scenes["noisy"].write_bytes(whole[: len(whole) // 2])
    facts = raster_facts(str(scenes["noisy"]), 4)
    assert facts["size"] == "48 x 48 pixels"
    assert facts["enlarged"]["weights"].startswith("x4, if the pixels can be read: ")


@pytest.mark.parametrize("weights", ["x4", "an Upscaler"])
def test_named_weights_overrule_and_nothing_is_measured(scenes, tmp_path, monkeypatch, weights):
    monkeypatch.setattr(choice_module, "choose", lambda *_: pytest.fail("the scene was measured"))
    result = upscale_file(
        scenes["noisy"], tmp_path / "out.tif", load("x4") if weights != "x4" else "x4"
    )
    assert (result.weights, result.chosen) == ("x4", None)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert "SUPER_RESOLUTION_CHOSEN_FOR" not in file.tags()
    assert (
        "chosen"
        not in json.loads(receipt_path(tmp_path / "out.tif").read_text())["job"]["settings"]
    )


def test_of_several_inputs_each_has_its_own_weights_and_each_file_is_loaded_once(
    scenes, tmp_path, capsys, monkeypatch
):
    loaded = []
    monkeypatch.setattr(
        choice_module, "load", lambda name, **how: loaded.append(name) or load(name, **how)
    )
    (tmp_path / "again").mkdir()
    twice = shutil.copy(scenes["noisy"], tmp_path / "again" / "noisier.tif")
    inputs = [*map(str, scenes.values()), str(twice)]
    assert run(["upscale", *inputs, "-o", str(tmp_path / "large"), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    weights = [one["weights"] for one in told if one["event"] == "result"]
    assert weights == ["x4", "x4-real", "x4-real", "x4-real"]
    assert loaded == [None, "x4-real"]
    capsys.readouterr()
    assert (
        run(
            [
                "upscale",
                str(scenes["noisy"]),
                "-o",
                str(tmp_path / "x2.tif"),
                "--scale",
                "2",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["weights"] == "x2"


def test_without_packaged_real_weights_nothing_is_measured_or_said(scenes, monkeypatch):
    known = tuple(
        entry for entry in catalogue.packaged_weights() if not entry.name.endswith("-real")
    )
    monkeypatch.setattr(choice_module, "packaged_weights", lambda: known)
    monkeypatch.setattr(
        choice_module, "measured_windows", lambda *_: pytest.fail("the scene was measured")
    )
    assert chosen(scenes["noisy"]) is None
    assert raster_facts(str(scenes["noisy"]), 4)["enlarged"]["weights"] == "x4"


def test_where_errors_to_expect_are_wanted_the_weights_are_such_that_have_them(scenes, caplog):
    chooser = Chooser.loading(scale=4)
    with open_raster(scenes["noisy"]) as raster, caplog.at_level(logging.INFO, "repmamba"):
        upscaler, choice = chooser(raster, confidence=True)
        assert (upscaler.name, choice) == ("x4", None)
        assert (
            f"{scenes['noisy']}: x4-real has no expected errors for confidence=; using x4."
            in caplog.messages
        )
        assert chooser(raster)[0].name == "x4-real"


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_types_are_measured_in_the_range_of_their_values_and_missing_pixels_do_not_count(
    write_raster, dtype
):
    data = (ground(bands=2, edge=160, sigma=8) * (1 / 255 if dtype == "float32" else 20)).astype(
        dtype
    )
    data[:, :, :70] = -1 if dtype != "uint16" else 0
    data[:, 30, 100] = 30000
    choice = chosen(write_raster("deep.tif", data, nodata=float(data[0, 0, 0])))
    # The range holds nearly all values, 5.2 of their deviations of 41.
    assert choice.weights == "x4-real"
    assert choice.noise == pytest.approx(8 * 255 / (5.2 * 41), rel=0.2)


def test_windows_are_spread_over_the_scene_at_multiples_of_eight_with_nan_where_pixels_miss(
    write_raster,
):
    data = np.arange(3 * 300 * 210, dtype=np.uint32).reshape(3, 300, 210) % 251 + 1
    data = data.astype(np.uint8)
    data[:, :40] = 0
    with open_raster(write_raster("a.tif", data, nodata=0)) as raster:
        windows = measured_windows(raster)
    starts_of = [(row, col) for row in (0, 40, 80, 128, 168) for col in (0, 16, 40, 64, 80)]
    assert len(windows) == len(starts_of)
    for (row, col), window in zip(starts_of, windows, strict=True):
        expected = data[:, row : row + 128, col : col + 128] / np.float32(255)
        assert np.array_equal(
            window, np.where(expected == 0, np.nan, expected).astype(np.float32), equal_nan=True
        )


@pytest.mark.parametrize("what", ["tiny", "missing", "constant"])
def test_a_scene_with_too_little_to_measure_has_the_usual_weights(write_raster, what):
    data = np.zeros((1, 16, 400) if what == "tiny" else (1, 60, 60), np.uint8) + (
        what == "constant"
    )
    path = write_raster("a.tif", data, nodata=0 if what == "missing" else None)
    assert chosen(path) is None
    with open_raster(path) as raster:
        assert Chooser.loading()(raster)[0].name == "x4"


def test_red_green_and_blue_are_what_is_measured_where_a_scene_has_them(write_raster):
    data = (
        np.concatenate([ground(bands=1, sigma=20), ground(bands=3, sigma=1)])
        .clip(0, 255)
        .astype(np.uint8)
    )
    path = write_raster("a.tif", data)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [
            rasterio.enums.ColorInterp[name] for name in ("undefined", "blue", "green", "red")
        ]
    assert chosen(path).noise < NOISY
