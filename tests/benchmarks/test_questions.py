"""The benchmarks start, say what they ask and take, and write what they promise; how fast anything
is, no test says.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[2]
BENCHMARKS = CHECKOUT / "benchmarks"
QUESTIONS = sorted(
    path.stem
    for path in BENCHMARKS.glob("*.py")
    if path.read_text("utf-8").split("\n\n")[0][-1] == "?"
)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run a benchmark in this process, as the command line does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name, value in importlib.import_module("measuring").ALLOCATOR.items():
        monkeypatch.setenv(name, value)  # so that it does not start once more
    monkeypatch.setenv("COLUMNS", "120")
    threads = torch.get_num_threads()

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(name).main()

    yield run
    torch.set_num_threads(threads)


def test_make_bench_asks_every_question():
    (listed,) = re.findall(
        r"^BENCHMARKS := (.*?[^\\])\n", (CHECKOUT / "Makefile").read_text("utf-8"), re.M | re.S
    )
    assert sorted(listed.replace("\\", "").split()) == QUESTIONS


@pytest.mark.parametrize("name", [*QUESTIONS, "page"])
def test_help_tells_what_is_asked_and_what_each_option_is(
    ask, name: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="0"):
        ask(name, "--help")
    text = capsys.readouterr().out
    assert "Prediction" in text or name == "page"
    assert f"python benchmarks/{name}.py" in text
    without_help = re.findall(r"^  -\S+(?: \S+)*\n(?! {20})", text, re.M)
    assert not without_help


@pytest.mark.parametrize(
    ("name", "arguments", "keys"),
    [
        ("what_durable_tiles_cost", ["--edge", 64, "--rounds", 1], {"bytes", "tiles", "rows"}),
        ("how_does_it_grow_with_threads", ["--rounds", 1], {"times", "images_of_one_thread"}),
    ],
)
def test_an_answer_names_the_machine_and_the_versions(
    ask,
    name: str,
    arguments: list[object],
    keys: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(importlib.import_module("measuring"), "available_cores", lambda: 1)
    ask(name, *arguments, "--json", tmp_path / "new" / "answer.json")
    answer = json.loads((tmp_path / "new" / "answer.json").read_text("utf-8"))
    assert answer.keys() == {"machine", "versions"} | keys
    assert answer["machine"]["processor"]
    assert answer["machine"]["threads"] == 1
    assert answer["versions"]["torch"] == torch.__version__


@pytest.mark.long
def test_the_measurements_of_a_gpu_are_rehearsed_on_a_cpu(ask, tmp_path: Path):
    with pytest.raises(SystemExit, match="0"):
        ask("how_fast_is_a_gpu", "--device", "cpu", "--json", tmp_path / "answer.json")
    rows = json.loads((tmp_path / "answer.json").read_text("utf-8"))["rows"]
    assert not [row for row in rows if "failed" in row]
    kinds = {row["what"].split(" ", 1)[0].rstrip(",") for row in rows}
    assert kinds == {"tests", "copy", "scan", "network", "training", "scene"}


@pytest.mark.parametrize(
    "name", ["which_scan_at_which_length", "where_does_the_time_go", "what_durable_tiles_cost"]
)
def test_no_rounds_at_all_are_refused_before_anything_is_measured(
    ask, name: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        ask(name, "--rounds", "0")
    assert "argument --rounds: 0 is no whole number from 1" in capsys.readouterr().err


def test_reference_data_that_is_not_there_is_one_line(
    ask, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REPMAMBA_REFERENCE", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="2"):
        ask("what_does_consistency_change")
    assert (
        f"{tmp_path / 'none'} is no folder: name that of the reference data"
        in capsys.readouterr().err
    )


def test_weights_that_are_not_there_are_one_line(ask, tmp_path: Path):
    with pytest.raises(
        SystemExit, match=r"no weights 'none'.* Name them with --weights and --real"
    ):
        ask("does_it_choose_well", "--real", "none", "--reference", tmp_path)


def test_quartiles_of_two_values_lie_between_them(ask):
    low, high = importlib.import_module("measuring").quartiles([1.0, 2.0])
    assert 1 <= low < high <= 2


def test_thresholds_are_those_that_choose_right_most_often_and_equal_results_do_not_count(ask):
    question = importlib.import_module("does_it_choose_well")

    def seen(way: str, noise: float, blocks: float, gain: float):
        return question.Seen("picture", way, noise, blocks, gain)

    rows = [
        *(seen("clean", noise, 0.01, -0.3) for noise in (0.5, 1.0, 2.0)),
        *(seen("noise", noise, 0.01, 0.5) for noise in (2.6, 4.0)),
        *(seen("jpeg", 1.0, blocks, 0.2) for blocks in (0.3, 0.5)),
        seen("faint", 1.0, 0.2, -0.4),
        seen("faint", 9.0, 0.7, -0.04),
    ]
    noisy, blocky = question.thresholds(rows)
    assert 2.0 < noisy <= 2.6
    assert 0.2 < blocky <= 0.3
    assert all(question.right(one, noisy, blocky) for one in rows)
    assert question.lost(rows[0], 0.4, blocky) == 0.3
    assert question.summary(rows, (0.4, 0.3), (noisy, blocky))["right"] == pytest.approx(5 / 9)


def test_the_pages_show_the_answers_that_are_kept(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pages = {
        name: (CHECKOUT / "docs" / "explanation" / name).read_text("utf-8")
        for name in ("speed.md", "evaluation.md")
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setattr(importlib.import_module("plots"), "draw", lambda results, folder: None)
    ask("page", "--docs", tmp_path)
    assert {name: (tmp_path / name).read_text("utf-8") for name in pages} == pages


def test_a_page_without_a_place_for_a_table_is_left_alone(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "speed.md").write_text("# Speed\n")
    monkeypatch.setattr(importlib.import_module("plots"), "draw", lambda results, folder: None)
    with pytest.raises(SystemExit, match="has no <!-- how_far_from_its_own_arithmetic -->"):
        ask("page", "--docs", tmp_path)
    assert (tmp_path / "speed.md").read_text() == "# Speed\n"
