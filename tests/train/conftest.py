"""A few generated images and the smallest recipe with all parts of a real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repmamba.train.curves import read_curve
from repmamba.train.recipe import Recipe
from repmamba.train.recipe_file import build, recipe_text


def made_image(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with an edge: a network can learn them, and bicubic cannot reproduce them."""
    draw = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    waves = [
        127 + 90 * np.sin(cols / draw.uniform(2, 6) + rows / draw.uniform(2, 6)) for _ in range(3)
    ]
    image = np.stack(waves, axis=-1)
    image[height // 3 :, width // 2 :] = 255 - image[height // 3 :, width // 2 :]
    return image.round().astype(np.uint8)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with five large images and val/ with two, none of them square."""
    folder = tmp_path_factory.mktemp("images")
    for part, count in (("train", 5), ("val", 2)):
        (folder / part).mkdir()
        for number in range(count):
            image = made_image(40 + 2 * number, 34, seed=number + 10 * len(part))
            Image.fromarray(image).save(folder / part / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(images: Path) -> Callable[..., Recipe]:
    """A recipe of eight steps; keywords are whole tables or single keys at the top."""

    def recipe(**changes: Any) -> Recipe:
        table: dict[str, Any] = {
            "name": "tiny",
            "steps": 8,
            "network": {"scale": 2, "depths": [1]},
            "data": {
                "train": [str(images / "train")],
                "val": [str(images / "val")],
                "patches": [{"size": 8, "batch": 2}, {"start": 5, "size": 10, "batch": 3}],
            },
            "optimiser": {"lr": 1e-3},
            "step": {"ema": 0.9, "clip": 1.0},
            "schedule": {"kind": "cosine", "warmup": 2},
            "start": {"kind": "bilinear"},
            "validation": {"every": 3, "crops": 1},
            "checkpoints": {"every": 2},
        }
        for key, value in changes.items():
            table[key] = table[key] | value if isinstance(value, dict) and key in table else value
        return build(table)

    return recipe


@pytest.fixture(scope="session")
def tiny_file(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(recipe_text(tiny()))
    return file


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seen(folder: Path) -> list[tuple[Any, ...]]:
    """What a run saw, without its speed: the losses of its steps and the scores of its
    validations.
    """
    keys = ("kind", "step", "loss", "grad_norm", "lr", "psnr", "ssim")
    return [
        tuple(line.get(key) for key in keys)
        for line in read_curve(folder / "curve.jsonl")
        if line["kind"] != "note"
    ]


@pytest.fixture(name="seen", scope="session")
def seen_fixture() -> Callable[[Path], list[tuple[Any, ...]]]:
    return seen


@pytest.fixture(scope="session")
def whole_run(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, without interruptions."""
    from repmamba.train.loop import fit

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert fit(tiny(), folder, log_every=1, device="cpu").finished
    return folder
