"""repmamba bench: what it reports, not how fast anything is."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repmamba.cli.main import run
from repmamba.evaluate.timing import processor


@pytest.fixture(scope="module")
def weights(tiny_weights: Callable[..., Path]) -> str:
    return str(tiny_weights(scale=3))


def test_the_rates_are_pixels_of_output_over_time(weights: str, capsys: pytest.CaptureFixture[str]):
    assert (
        run(
            [
                "bench",
                "--weights",
                weights,
                "--size",
                "16",
                "--batch",
                "2",
                "--passes",
                "3",
                "--json",
            ]
        )
        == 0
    )
    timing = json.loads(capsys.readouterr().out)
    pixels = 2 * (3 * 16) ** 2 / 1e6
    assert 0 < timing["fastest"] <= timing["median"]
    assert timing["megapixels_per_second"] == pytest.approx(pixels / timing["fastest"])
    assert timing["megapixels_per_second_median"] == pytest.approx(pixels / timing["median"])


def test_it_says_what_ran(weights: str, capsys: pytest.CaptureFixture[str]):
    command = [
        "bench",
        "--weights",
        weights,
        "--size",
        "8",
        "--passes",
        "1",
        "--device",
        "cpu",
        "--backend",
        "chunked",
    ]
    assert run([*command, "--json"]) == 0
    timing = json.loads(capsys.readouterr().out)
    assert (timing["weights"], timing["scale"], timing["precision"]) == ("small", 3, "float32")
    assert (timing["device"], timing["backend"]) == ("cpu", "chunked")
    assert timing["threads"] == torch.get_num_threads()
    assert timing["processor"] == processor(torch.device("cpu"))
    assert timing["versions"]["torch"] == torch.__version__
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert "chunked" in shown
    assert timing["processor"] in shown
    assert "8 x 8 pixels, 1 pass\n" in shown


def test_a_slow_network_has_a_speed_other_than_zero(
    weights: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["bench", "--weights", weights, "--size", "1", "--passes", "1"]) == 0
    speed = re.search(r"^speed +(\S+) megapixels", capsys.readouterr().out, re.M)
    assert speed
    assert float(speed[1]) > 0


def test_unknown_weights_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run(["bench", "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
