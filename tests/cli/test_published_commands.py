"""The published README's own two commands, at the root of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_eval_4x_scores_gt_and_lr_by_the_published_rule(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(2):
        for folder, side in (("GT", 64), ("LR", 16)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            picture = draw.integers(0, 256, (side, side, 3)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / folder / f"{number:03d}.png")
    network = RepMamba(NetworkConfig(scale=4, depths=(1,)))
    names = [
        str(write_checkpoint(tmp_path / f"{name}.safetensors", Checkpoint.of(network)))
        for name in ("mine", "yours")
    ]
    both = [part for name in names for part in ("--weights", name)]

    scored = run(str(CHECKOUT / "eval_4x.py"), "--data_dir", str(tmp_path / "data"), *both)

    assert scored.returncode == 0, scored.stderr
    assert all(f"  {name} " in scored.stdout for name in ("mine", "yours"))
    assert "published" in scored.stdout
    assert "PSNR" in scored.stdout.upper()


def test_train_runs_the_published_recipe_with_settings_over_it(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    settings = [
        f'data.train=["{(tmp_path / "images").as_posix()}"]',
        "data.val=[]",
        "steps=1",
        "schedule.milestones=[]",
        "network.depths=[1]",
        "data.patches=[{size=8, batch=2}]",
    ]

    trained = run(
        str(CHECKOUT / "train.py"),
        "-o",
        str(tmp_path / "run"),
        *(part for one in settings for part in ("--set", one)),
    )

    assert trained.returncode == 0, trained.stderr
    assert "Finished after 1 steps" in trained.stdout
    assert (tmp_path / "run" / "last.safetensors").is_file()
