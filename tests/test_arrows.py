"""The four rules of docs/explanation/map.md about who may import whom. A failure names the module and the line
at fault.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repmamba
from repmamba.cli.main import VERBS

CHECKOUT = Path(__file__).resolve().parents[1]
LINT = (
    "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
)

# An import finder that ends the process at the first import that `refused` names, and prints the
# importing line. It does not raise, because an `except ImportError` on the way would hide it.
GUARD = """
import os, sys, traceback

class Refuse:
    def find_spec(self, name, path=None, target=None):
        frames = [frame for frame in traceback.extract_stack()[:-1] if "importlib" not in frame.filename]
        if refused(name.partition(".")[0], frames[-1].filename):
            ours = next((frame for frame in reversed(frames) if PACKAGE in frame.filename), frames[-1])
            print(f"{ours.filename}:{ours.lineno} imports {name}", file=sys.stderr, flush=True)
            os._exit(3)

sys.meta_path.insert(0, Refuse())
"""
NO_HEAVY = """
def refused(package, importer):
    return package in ("torch", "rasterio")
"""
TORCH_AND_NUMPY_ALONE = """
import numpy, torch

def refused(package, importer):
    allowed = package in ("repmamba", "torch", "numpy") or package in sys.stdlib_module_names
    return PACKAGE in importer and not allowed
"""

# kernels for a compiler that may be missing: the backend or layer that they belong to imports them
# when it starts
COMPILED = {
    "repmamba.scan.triton_kernels",
}


def in_a_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        cwd=environment.get("PYTHONPATH", CHECKOUT),
        check=False,
    )


def guarded(rule: str, code: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(repmamba.__file__).parent)
    return in_a_fresh_process(f"PACKAGE = {package!r}{rule}{GUARD}{code}")


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A copy of the package, for tests that break a rule on purpose."""
    shutil.copytree(
        Path(repmamba.__file__).parent,
        tmp_path / "repmamba",
        ignore=shutil.ignore_patterns("weights"),
    )
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    return tmp_path


def test_rooms_only_import_downwards_without_cycles_and_scene_no_training_data():
    lint = in_a_fresh_process(LINT)
    assert lint.returncode == 0, lint.stdout


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("tiles/upwards.py", "import repmamba.scene", "repmamba.tiles.upwards"),
        ("pixels/sideways.py", "import repmamba.tiles", "repmamba.pixels.sideways"),
        ("scene/stock.py", "from repmamba.data import images", "repmamba.scene.stock"),
        (
            "scene/source/upwards.py",
            "import repmamba.scene.result.formats",
            "repmamba.scene.source.upwards",
        ),
        ("scene/result/upwards.py", "import repmamba.scene.plan", "repmamba.scene.result.upwards"),
        ("attic/__init__.py", "", "repmamba.attic"),
    ],
)
def test_an_arrow_that_breaks_the_map_is_found_and_named(
    copied_package: Path, module: str, line: str, rule: str
):
    broken = copied_package / "repmamba" / module
    broken.parent.mkdir(exist_ok=True)
    broken.write_text(f"{line}\n")
    (copied_package / "repmamba" / "data" / "images.py").touch()
    lint = in_a_fresh_process(LINT, PYTHONPATH=str(copied_package))
    assert lint.returncode == 1
    assert rule in lint.stdout
    if line:
        assert "l.1" in lint.stdout


def test_a_cycle_inside_a_room_is_found(copied_package: Path):
    (copied_package / "repmamba" / "tiles" / "hen.py").write_text("import repmamba.tiles.egg\n")
    (copied_package / "repmamba" / "tiles" / "egg.py").write_text("import repmamba.tiles.hen\n")
    lint = in_a_fresh_process(LINT, PYTHONPATH=str(copied_package))
    assert lint.returncode == 1
    assert "repmamba.tiles" in lint.stdout


def test_the_front_door_opens_without_torch_and_rasterio():
    process = guarded(NO_HEAVY, "import repmamba")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([verb.name, "--help"] for verb in VERBS)],
    ids=" ".join,
)
def test_help_needs_neither_torch_nor_rasterio(arguments: list[str]):
    process = guarded(NO_HEAVY, f"from repmamba.cli.main import run; sys.exit(run({arguments!r}))")
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_the_guard_against_heavy_imports_names_the_line():
    process = guarded(NO_HEAVY, "import repmamba.network.repmamba")
    assert process.returncode == 3
    assert "repmamba.py:" in process.stderr
    assert "imports torch" in process.stderr


def test_scan_network_and_the_training_step_only_need_torch_and_numpy():
    package = Path(repmamba.__file__).parent
    modules = [
        f"repmamba.{room}.{file.stem}"
        for room in ("kernels", "scan", "network")
        for file in (package / room).glob("[!_]*.py")
    ]
    assert set(modules) > COMPILED
    imports = "\n".join(
        f"import {module}" for module in [*modules, "repmamba.train.step"] if module not in COMPILED
    )
    process = guarded(TORCH_AND_NUMPY_ALONE, imports)
    assert process.returncode == 0, process.stderr


def test_the_guard_for_torch_and_numpy_alone_names_the_line():
    process = guarded(TORCH_AND_NUMPY_ALONE, "import repmamba.cli.main")
    assert process.returncode == 3
    assert "main.py:" in process.stderr
    assert "imports click" in process.stderr
