"""What the verb prepare says and how it ends."""

import numpy as np
import pytest

from repmamba.cli.main import run
from repmamba.data.images import write_png
from repmamba.data.prepare import NAMED


def test_a_run_that_made_nothing_has_failed(tmp_path, capsys):
    for number in range(NAMED + 3):
        path = tmp_path / "images" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    command = [
        "prepare",
        "folder",
        str(tmp_path / "images"),
        str(tmp_path / "pairs"),
        "--scale",
        "4",
        "--jobs",
        "1",
    ]
    assert run(command) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("0 images made, 23 left out; see manifest.json.")
    assert len(said) == NAMED + 2
    assert said[-1] == "  and 3 more; see manifest.json."


def test_a_seed_beside_a_manifest_that_has_one_is_refused(tmp_path, capsys):
    command = [
        "prepare",
        "folder",
        "images",
        "pairs",
        "--scale",
        "4",
        "--seed",
        "0",
        "--manifest",
        "manifest.json",
    ]
    assert run(command) == 2
    assert "leave --seed or --manifest out" in capsys.readouterr().err


def test_without_a_terminal_lines_say_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repmamba.cli.progress.LINES_EVERY", 0.0)
    write_png(tmp_path / "images" / "good.png", np.zeros((8, 8, 3), np.uint8))
    assert (
        run(
            ["prepare", "folder", str(tmp_path / "images"), str(tmp_path / "pairs"), "--scale", "4"]
        )
        == 0
    )
    assert "Preparing: 1 of 1." in capsys.readouterr().err


@pytest.mark.parametrize("again", [False, True], ids=["made", "kept from before"])
def test_one_good_image_is_a_result(tmp_path, again):
    write_png(tmp_path / "images" / "good.png", np.zeros((8, 8, 3), np.uint8))
    command = [
        "prepare",
        "folder",
        str(tmp_path / "images"),
        str(tmp_path / "pairs"),
        "--scale",
        "4",
    ]
    assert [run(command) for _ in range(1 + again)] == [0] * (1 + again)
