"""The ground that all tests stand on: whatever the caller's shell says, and whatever was not
tested.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import os, pytest, torch
from hypothesis import settings

def test_it_is_alone():
    assert not torch.cuda.is_available()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"REPMAMBA_SCAN", "REPMAMBA_DEBUG", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & set(os.environ)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "127.0.0.1"
    assert settings().deadline is None

@pytest.mark.gpu
def test_it_sees_the_gpu():
    assert torch.cuda.is_available()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"

def test_it_is_skipped():
    pytest.skip(os.environ["REASON"])
"""
GPU = "import torch; torch.cuda.is_available = lambda: True"
HOSTILE = {
    "REPMAMBA_SCAN": "chunked",
    "REPMAMBA_DEBUG": "1",
    "WORLD_SIZE": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "http_proxy": "http://127.0.0.1:9",
    "CUDA_VISIBLE_DEVICES": "0",
}


@pytest.fixture
def session(tmp_path: Path):
    """Runs the probe in a folder with our conftest.py, on a machine that says that it has a GPU."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_probe.py").write_text(PROBE)
    (tmp_path / "gpu.py").write_text(GPU)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "gpu",
            "-p",
            "no:cacheprovider",
            str(tmp_path),
        ]
        own = {"PYTHONPATH": str(tmp_path), "REASON": "no CUDA device"}
        return subprocess.run(
            command, env=os.environ | own | environment, capture_output=True, text=True, check=False
        )

    return run


def test_environment_variables_and_a_gpu_change_no_test(session):
    done = session(**HOSTILE)
    assert done.returncode == 0, done.stdout
    assert "2 passed, 1 skipped" in done.stdout


def test_a_skip_for_another_reason_fails_the_run(session):
    done = session(**HOSTILE, REASON="could not import 'torch'")
    assert done.returncode == 1
    assert "   1  could not import 'torch'  NO GOOD REASON" in done.stdout


def test_a_folder_without_reference_data_is_an_error_and_not_a_skip(session, tmp_path):
    done = session(REPMAMBA_REFERENCE=str(tmp_path / "typo"))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "typo; there is no golden/README.md in it." in done.stderr
