"""The oldest and the newest allowed dependencies, installed in a fresh environment, enlarge a
scene.

torch is that of this environment, so that no set brings gigabytes of CUDA; its lower bound was run
by hand. Other versions of Python take part where they are installed and pip finds this torch for
them.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import rasterio
from packaging.requirements import Requirement

from repmamba.scene.engine import upscale_file

CHECKOUT = Path(__file__).resolve().parents[1]
SCENE = CHECKOUT / "examples" / "colorado.tif"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
WINDOW = (64, 64, 96, 64)  # of the scene: col, row, width, height
RUN = """
import numpy as np, repmamba
print(repmamba.load("x2").upscale(np.zeros((16, 16, 3), np.uint8)).shape)
repmamba.evaluate_folders("pairs", weights="x2", methods="bicubic", scale=2)
"""


def pinned(kind: str, python: str) -> list[str]:
    """What pip is asked to install: each dependency at its lower bound, or any that is allowed."""
    found = []
    for text in PROJECT["dependencies"]:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"python_version": python}):
            continue
        if one.name == "torch":
            found.append(f"torch=={version('torch')}")
        elif kind == "newest":
            found.append(f"{one.name}{one.specifier}")
        else:
            (lowest,) = (bound.version for bound in one.specifier if bound.operator == ">=")
            found.append(f"{one.name}=={lowest}" + ".*" * (lowest.count(".") < 2))
    return found


def test_every_dependency_has_a_lower_bound():
    for python in PYTHONS:
        for requirement in pinned("oldest", python):
            assert "==" in requirement


@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", ["oldest", "newest"])
def test_a_scene_is_upscaled_with_the_allowed_dependencies(tmp_path, kind, python):
    interpreter = (
        sys.executable if sys.version.startswith(f"{python}.") else shutil.which(f"python{python}")
    )
    # What pyenv puts in the way runs nothing where that version is not chosen.
    if (
        interpreter is None
        or subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"this system has no python{python} that runs")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "fresh"], check=True)
    fresh = tmp_path / "fresh" / "bin"
    install = [fresh / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    looked = subprocess.run(
        [*install, "--dry-run", "--no-deps", f"torch=={version('torch')}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if looked.returncode:
        pytest.skip(f"this system has no torch {version('torch')} for python{python}")
    asked = [*pinned(kind, python), "--editable", str(CHECKOUT)]
    installed = subprocess.run([*install, *asked], capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "pairs").mkdir()
    with rasterio.open(SCENE) as file:
        from PIL import Image

        Image.fromarray(np.moveaxis(file.read()[:, 60:124, 60:124], 0, 2)).save(
            tmp_path / "pairs" / "one.png"
        )
    command = [
        fresh / "repmamba",
        "upscale",
        SCENE,
        "-o",
        "out.tif",
        "--scale",
        "2",
        "--json",
        "-q",
    ]
    ran = subprocess.run(
        [*command, "--window", ",".join(map(str, WINDOW))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert json.loads(ran.stdout)["event"] == "result"
    called = subprocess.run(
        [fresh / "python", "-W", "error::DeprecationWarning:repmamba", "-c", RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (called.returncode, called.stderr) == (0, "")
    assert called.stdout == "(32, 32, 3)\n"
    upscale_file(SCENE, tmp_path / "here.tif", scale=2, window=WINDOW)
    with rasterio.open(tmp_path / "out.tif") as there, rasterio.open(tmp_path / "here.tif") as here:
        assert np.abs(there.read().astype(int) - here.read()).max() <= 1
        assert there.bounds == here.bounds
