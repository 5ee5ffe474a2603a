"""The same kills as in test_faults.py, to the real command with a real (untrained) network."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.scene.result.readback import verify_result
from repmamba.scene.result.receipt import read_receipt, receipt_path

from .killing import DEADLINE, LONGEST_DELAY, killed_at, tiles_of, wait_until

TILES = 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture of 16 tiles and x2 weights."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    write_checkpoint(
        folder / "tiny.safetensors", Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,))))
    )
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(folder / "scene.png")
    return folder / "scene.png", folder / "tiny.safetensors"


def command(inputs: tuple[Path, Path], target: Path) -> list[str]:
    source, weights = inputs
    options = [
        "--weights",
        weights,
        "--tile",
        "24",
        "--halo",
        "4",
        "--backend",
        "chunked",
        "--workers",
        "2",
        "--quiet",
    ]
    return [
        str(part)
        for part in (
            sys.executable,
            "-m",
            "repmamba.cli",
            "upscale",
            source,
            "-o",
            target,
            *options,
        )
    ]


def start(inputs: tuple[Path, Path], target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(inputs, target), env={**os.environ, "OMP_NUM_THREADS": "1"})


def whole(target: Path) -> bool:
    if not target.exists():
        return False
    receipts = [receipt_path(target), *target.parent.glob(f".{target.name}.*/receipt.json")]
    verify_result(target, read_receipt(next(path for path in receipts if path.exists())))
    return True


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.long)])
def test_the_command_killed_at_any_moment_leaves_nothing_half_and_goes_on(tmp_path, inputs, kills):
    first = tmp_path / "uninterrupted" / "scene.cog.tif"
    first.parent.mkdir()
    assert start(inputs, first).wait(DEADLINE) == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    target, rng, killed = folder / first.name, random.Random(20240), 0
    for _ in range(10 * kills):
        if whole(target) and not any(folder.glob(".*")):
            assert target.read_bytes() == first.read_bytes()
            for path in folder.iterdir():
                path.unlink()
        tiles = min(tiles_of(target) + rng.randint(0, 10), TILES)
        killed += killed_at(command(inputs, target), target, tiles, rng.uniform(0, LONGEST_DELAY))
        if killed == kills:
            break
    assert killed == kills
    if not whole(target) or any(folder.glob(".*")):
        assert start(inputs, target).wait(DEADLINE) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in first.parent.iterdir()
    }


def test_ctrl_c_leaves_the_tiles_and_verify_finds_what_is_done_to_the_result_later(
    tmp_path, inputs
):
    target = tmp_path / "scene.tif"
    process = start(inputs, target)
    try:
        wait_until(lambda: tiles_of(target) > 0, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) in (0, 130)
    finally:
        process.kill()
    assert target.exists() == (process.returncode == 0)
    if process.returncode:
        assert tiles_of(target) > 0
        assert start(inputs, target).wait(DEADLINE) == 0
    assert verify(target).returncode == 0
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    said = verify(target)
    assert said.returncode == 1
    assert said.stderr.startswith("Error: ")
    assert said.stderr.count("\n") == 1


def verify(target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repmamba.cli", "verify", str(target)]
    return subprocess.run(command, check=False, capture_output=True, text=True)
