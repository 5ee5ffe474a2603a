"""How far a verb is: bars on a terminal, log lines elsewhere, nothing for who wants it quiet."""

import io
import logging
import sys
from pathlib import Path

import pytest

import repmamba
from repmamba.cli.progress import counting, megapixels, parts, training
from repmamba.train.progress import Progress

PACKAGE = Path(repmamba.__file__).parent


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal of stderr, and gives what it is shown; called by the test, since pytest lays
    its own over it.
    """

    def made():
        stderr = io.StringIO()
        stderr.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", stderr)
        return stderr.getvalue

    return made


def test_without_a_terminal_ten_lines_at_most_are_logged(caplog):
    with (
        caplog.at_level(logging.INFO, "repmamba"),
        megapixels("scene.tif", quiet=False) as progress,
    ):
        for done in range(1001):
            progress(done * 1000, 1_000_000)
    assert 5 <= len(caplog.messages) <= 11
    assert caplog.messages[-1] == "scene.tif: 100 % of 1.0 megapixels"


def test_quiet_is_quiet(terminal):
    shown = terminal()
    with megapixels("scene.tif", quiet=True) as pixels, parts("scene.tif", quiet=True) as checked:
        assert pixels is checked is None
    with training(quiet=True) as progress:
        assert progress is None
    with counting("Preparing", quiet=True) as progress:
        progress(1, 2)
    assert shown() == ""


def test_on_a_terminal_a_bar_shows_megapixels_a_second_and_the_time_left(terminal):
    shown = terminal()
    with megapixels("scene.tif", quiet=False) as progress:
        progress(500_000, 2_000_000)  # finished by an earlier run
        progress(1_000_000, 2_000_000)
        progress(2_000_000, 2_000_000)
    said = shown()
    assert "scene.tif" in said
    assert "MP" in said
    assert "25%" in said
    assert "/2.0 MP" in said


def test_on_a_terminal_images_and_parts_have_a_bar(terminal):
    shown = terminal()
    with counting("Preparing", quiet=False) as progress:
        progress(1, 4)
    assert "1/4 [" in shown()
    with parts("scene.tif", quiet=False) as progress:
        progress(0.5)
    assert "scene.tif:  50% |" in shown()


def test_a_run_has_a_bar_for_what_it_reads_and_one_that_stays_for_its_steps(terminal):
    shown = terminal()
    with training(quiet=False) as progress:
        progress(Progress("Reading validation images", "image", 1, 2))
        progress(Progress("Reading training images", "image", 1, 5))
        progress(Progress("x4", "step", 300, 1000))  # resumed
        progress(Progress("x4", "step", 301, 1000, {"loss": "0.01234"}, 60.0))
    lines = shown().replace("\r", "\n").split("\n")
    assert any("Reading validation images:  50%" in line for line in lines)
    assert any("Reading training images:  20%" in line for line in lines)
    assert "x4:  30%" in lines[-2]
    assert "301/1000" in lines[-2]
    assert "loss=0.01234" in lines[-2]


def test_no_other_room_draws_bars():
    drawing = [file for file in PACKAGE.rglob("*.py") if "tqdm" in file.read_text("utf-8")]
    assert {file.parent.name for file in drawing} == {"cli"}
