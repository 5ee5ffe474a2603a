"""The plugin of QGIS: its call of the command line, for real; and the plugin in a QGIS, where one
is installed.
"""

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds

import repmamba
from repmamba.cli.upscale import upscale

PLUGINS = Path(__file__).parents[2] / "plugins" / "qgis"
FOLDER = PLUGINS / "repmamba_qgis"
COLORADO = Path(__file__).parents[2] / "examples" / "colorado.tif"
PROGRAM = Path(sys.executable).with_name("repmamba")  # of the environment that the tests run in
QGIS = shutil.which("qgis_process.bin") or shutil.which("qgis_process")


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """command.py, which imports nothing of QGIS."""
    spec = importlib.util.spec_from_file_location("repmamba_qgis_command", FOLDER / "command.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """64 x 48 pixels, west of Greenwich, so that its coordinates begin with a minus; a space in its
    name.
    """
    path = tmp_path / "a scene.tif"
    numbers = np.random.default_rng(0).integers(40, 200, (3, 48, 64)).astype(np.uint8)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": 48,
        "width": 64,
        "dtype": "uint8",
        "photometric": "RGB",
    }
    with rasterio.open(
        path, "w", crs="EPSG:4326", transform=Affine(0.01, 0, -1, 0, -0.01, -2), **profile
    ) as file:
        file.write(numbers)
    return path


def call(command: ModuleType, request: object) -> list[str]:
    return [str(PROGRAM), *request.arguments()]


def test_a_request_becomes_a_raster_in_its_place_and_its_progress_is_told(
    command, scene, tiny_weights, tmp_path
):
    target = tmp_path / "out.tif"
    weights = str(tiny_weights(2))
    bbox = (-0.9, -2.3, -0.6, -2.1)
    request = command.Request(
        str(scene), str(target), 2, weights=weights, bbox=bbox, value_range="0,255", rgb="1,2,3"
    )
    lines: list[str] = []
    command.run(call(command, request), lines.append, lambda: False)
    with rasterio.open(target) as result:
        assert (result.width, result.height, result.count) == (60, 40, 3)
        assert tuple(result.bounds) == pytest.approx(bbox)
    assert [command.percent(line) for line in lines if command.percent(line) is not None][-1] == 100
    assert any("made consistent" in line for line in lines)


def test_every_option_of_a_request_is_one_of_the_command_line(command):
    request = command.Request("a", "b", 3, "x3", (1.0, 2.0, 3.0, 4.0), "3,2,1", "robust", True, "c")
    parsed = upscale.make_context("upscale", request.arguments()[1:]).params
    assert parsed["sources"] == ("a",)
    assert (str(parsed["target"]), parsed["scale"], parsed["weights"]) == ("b", 3, "x3")
    assert (parsed["bbox"], parsed["rgb"], parsed["value_range"]) == (
        (1, 2, 3, 4),
        (3, 2, 1),
        "robust",
    )
    assert (parsed["ensemble"], str(parsed["confidence"]), parsed["overwrite"]) == (True, "c", True)
    assert command.Request("-a", "b", 4).arguments() == [
        "upscale",
        "-o",
        "b",
        "--scale=4",
        "--overwrite",
        "--",
        "-a",
    ]


def test_a_failure_is_the_commands_own_line(command, tmp_path):
    request = command.Request(str(tmp_path / "none.tif"), str(tmp_path / "out.tif"), 4)
    lines: list[str] = []
    with pytest.raises(command.CommandError, match=r"^\S*none\.tif does not exist"):
        command.run(call(command, request), lines.append, lambda: False)
    assert lines[-1].startswith("Error: ")


def test_a_request_to_stop_ends_the_command_within_moments_and_leaves_no_half_result(
    command, scene, tmp_path
):
    target = tmp_path / "out.tif"
    request = command.Request(str(scene), str(target), 4, ensemble=True)
    begun = time.monotonic()
    command.run(call(command, request), lambda line: None, lambda: time.monotonic() > begun + 1)
    assert not target.exists()


def test_a_fault_of_who_listens_ends_the_command(command):
    def told(line: str) -> None:
        raise RuntimeError(line)

    begun = time.monotonic()
    code = "import time; print('begun', flush=True); time.sleep(600)"
    with pytest.raises(RuntimeError, match="begun"):
        command.run([sys.executable, "-c", code], told, lambda: False)
    assert time.monotonic() < begun + 60


def test_what_qgis_sets_for_its_own_libraries_does_not_reach_the_command(command, monkeypatch):
    for name in command.FOREIGN:
        monkeypatch.setenv(name, "/of/qgis")
    monkeypatch.setenv("HOME", "/home/somebody")
    lines: list[str] = []
    code = (
        "import os; print(*[name for name, value in os.environ.items() if value == "
        "'/of/qgis'], "
        "os.environ['HOME'])"
    )
    command.run([sys.executable, "-c", code], lines.append, lambda: False)
    assert lines == ["/home/somebody"]


def test_the_command_is_that_of_the_setting_or_the_one_on_the_path(command, tmp_path, monkeypatch):
    assert command.find_command(f" {PROGRAM} ") == str(PROGRAM)
    monkeypatch.setenv("PATH", str(PROGRAM.parent))
    assert command.find_command("") == str(PROGRAM)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        command.CommandError,
        match=r"not on the PATH of QGIS: install repmamba .* Providers, Rep-Mamba",
    ):
        command.find_command("")
    with pytest.raises(command.CommandError, match=r"There is no program /gone/repmamba: install"):
        command.find_command("/gone/repmamba")


def test_the_metadata_are_what_qgis_asks_for_and_of_this_version():
    read = configparser.ConfigParser()
    read.read(FOLDER / "metadata.txt", "utf-8")
    general = read["general"]
    assert {"name", "description", "about", "author", "qgisMinimumVersion"} <= general.keys()
    assert general["version"] == repmamba.__version__
    assert general["hasProcessingProvider"] == "yes"
    assert (FOLDER / general["icon"]).is_file()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A profile and an environment for QGIS: ours is for another GDAL."""
    if QGIS is None:
        pytest.skip("this system has no QGIS")
    folders = {
        name: tmp_path / name for name in ("QGIS_CUSTOM_CONFIG_PATH", "XDG_RUNTIME_DIR", "HOME")
    }
    for folder in folders.values():
        folder.mkdir(0o700)
    return {name: str(folder) for name, folder in folders.items()} | {
        "QT_QPA_PLATFORM": "offscreen",
        "QGIS_PLUGINPATH": str(PLUGINS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join([os.environ["PATH"], str(PROGRAM.parent)]),
    }


@pytest.fixture
def qgis(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """qgis_process with this plugin enabled."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([QGIS, *arguments], capture_output=True, text=True, env=environment)

    enabled = run("plugins", "enable", "repmamba_qgis")
    assert enabled.returncode == 0, enabled.stdout + enabled.stderr
    return run


def test_the_algorithm_of_qgis_enlarges_a_part_given_in_another_crs(
    qgis, scene, tiny_weights, tmp_path
):
    target, part = tmp_path / "out.tif", (-0.9, -2.3, -0.6, -2.1)
    left, bottom, right, top = transform_bounds("EPSG:4326", "EPSG:3857", *part)
    answers = {
        "INPUT": scene,
        "OUTPUT": target,
        "SCALE": 0,
        "WEIGHTS": tiny_weights(2),
        "EXTENT": f"{left},{right},{bottom},{top} [EPSG:3857]",
    }
    algorithm = ["run", "repmamba:upscale", "--"]
    done = qgis(*algorithm, *(f"{name}={answer}" for name, answer in answers.items()))
    assert done.returncode == 0, done.stdout + done.stderr
    with rasterio.open(target) as result:
        assert result.count == 3
        assert tuple(result.bounds) == pytest.approx(part, abs=0.011)  # a pixel of the input
    missing = qgis(*algorithm, f"INPUT={scene}", f"OUTPUT={target}", "WEIGHTS=nope")
    assert "There are no weights 'nope'" in missing.stdout + missing.stderr
    assert missing.returncode


@pytest.fixture
def run_in_qgis(environment: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """The algorithm as the dialog of QGIS runs it: in the background, on a layer of the project."""
    python = "/usr/bin/python3"  # the one that the packages of QGIS are for
    if subprocess.run([python, "-c", "import qgis.core"], capture_output=True).returncode:
        pytest.skip("this system has no QGIS in Python")

    def run(*, cancel: bool, command: Path = PROGRAM, **answers: object) -> dict[str, Any]:
        told = {"plugins": PLUGINS, "command": command, "answers": answers, "cancel": cancel}
        script = [python, Path(__file__).with_name("run_in_qgis.py"), json.dumps(told, default=str)]
        done = subprocess.run(script, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_the_dialog_of_qgis_enlarges_a_part_drawn_on_the_map_and_shows_progress(
    run_in_qgis, tiny_weights, tmp_path
):
    target = tmp_path / "out.tif"
    with rasterio.open(COLORADO) as scene:
        part = (scene.bounds.left + 15, scene.bounds.bottom + 6, scene.bounds.right - 15, 4311660)
        left, bottom, right, top = transform_bounds(scene.crs, "EPSG:3857", *part)
        pixel = max(scene.res)
    done = run_in_qgis(
        cancel=False,
        INPUT=COLORADO,
        OUTPUT=target,
        SCALE=0,
        WEIGHTS=tiny_weights(2),
        EXTENT=f"{left},{right},{bottom},{top} [EPSG:3857]",
    )
    assert done["ok"], done["log"]
    assert done["progress"][-1] == 100
    with rasterio.open(target) as result:
        # The box is turned a little in the other CRS, so the part is a bit larger than drawn.
        assert tuple(result.bounds) == pytest.approx(part, abs=0.5 + pixel)
        assert result.bounds.left <= part[0]
        assert result.bounds.right >= part[2]
        assert max(result.res) == pytest.approx(pixel / 2)


def test_cancel_in_qgis_leaves_no_result_and_the_next_run_resumes(
    run_in_qgis, tiny_weights, tmp_path
):
    source, target, command = (tmp_path / name for name in ("scene.tif", "out.tif", "repmamba"))
    numbers = np.random.default_rng(0).integers(40, 200, (1, 512, 512)).astype(np.uint8)
    place = {"crs": "EPSG:32613", "transform": Affine(10, 0, 500000, 0, -10, 4000000)}
    shape = {"count": 1, "height": 512, "width": 512, "dtype": "uint8"}
    with rasterio.open(source, "w", driver="GTiff", **shape, **place) as file:
        file.write(numbers)
    # many small tiles, so that on any machine most are left when the first tenth is done
    command.write_text(f'#!/bin/sh\nshift\nexec "{PROGRAM}" upscale --tile 32 --workers 1 "$@"\n')
    command.chmod(0o700)
    for _ in range(2):
        done = run_in_qgis(
            command=command,
            cancel=True,
            INPUT=source,
            OUTPUT=target,
            SCALE=0,
            WEIGHTS=tiny_weights(2),
        )
        assert not done["ok"]
        assert 0 < done["progress"][-1] < 100
        assert not target.exists()
    assert "of 256 tiles are already finished" in done["log"]
