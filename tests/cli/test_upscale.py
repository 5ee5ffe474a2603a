"""repmamba upscale: where results go, what is said while it runs, and how options are read."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from repmamba.cli import upscale as command
from repmamba.cli.main import MISUSED, run


@pytest.mark.parametrize("dry_run", [False, True])
def test_no_result_replaces_an_input_even_of_another_result(tmp_path, capsys, dry_run):
    for name in ("a.tif", "a_x4.tif"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.tif").symlink_to(tmp_path / "a_x4.tif")
    for second in ("a_x4.tif", "link.tif"):
        sources = [tmp_path / "a.tif", tmp_path / second]
        options = ["-o", tmp_path, "--overwrite", *["--dry-run"] * dry_run]
        assert run(["upscale", *map(str, [*sources, *options])]) == MISUSED
        said = capsys.readouterr().err
        assert f"a_x4.tif, the result of {sources[0]}, would replace the input {sources[1]}" in said
        assert said.count("\n") == 1
    assert (tmp_path / "a_x4.tif").read_text() == "a_x4.tif"


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("window", "1,2,3,4", (1, 2, 3, 4)),
        ("bbox", "-1.5,2,3e2,4", (-1.5, 2.0, 300.0, 4.0)),
        ("bands", "7", (7,)),
        ("bands", "B08,2", ("B08", 2)),
        ("rgb", "3,2,1", (3, 2, 1)),
        ("rgb", "B04, B03,B02", ("B04", "B03", "B02")),
        ("value_range", "0,4000", (0.0, 4000.0)),
        ("value_range", "robust", "robust"),
        ("value_range", "type", "type"),
    ],
)
def test_lists_of_numbers_are_read(option, text, value):
    assert read(option, text) == value


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("window", "1,2,3"),
        ("window", "1,2,3,x"),
        ("bands", ""),
        ("rgb", "1,2"),
        ("value_range", "low,high"),
    ],
)
def test_lists_that_are_none_are_refused(option, text):
    with pytest.raises(click.BadParameter, match=r"comma-separated numbers( or names of bands)?"):
        read(option, text)


def read(option: str, text: str) -> object:
    parameter = next(entry for entry in command.upscale.params if entry.name == option)
    return parameter.callback(click.Context(command.upscale), parameter, text)


@dataclass(frozen=True)
class Planned:
    target: Path
    kept: bool = False

    def summary(self) -> str:
        return f"would write {self.target.name}"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_dry_run_says_what_it_found_even_when_it_is_quiet(monkeypatch, capsys, tmp_path, quiet):
    monkeypatch.setattr(
        "repmamba.inference.loading.load", lambda **network: SimpleNamespace(scale=4)
    )
    monkeypatch.setattr(
        "repmamba.scene.engine.plan_file", lambda source, target, upscaler, **how: Planned(target)
    )
    assert (
        run(["upscale", "in.tif", "-o", str(tmp_path / "out.tif"), "--dry-run", *["-q"] * quiet])
        == 0
    )
    assert capsys.readouterr().out == "would write out.tif\n"


def test_an_output_name_longer_than_any_file_s_is_one_line(capsys, tmp_path):
    assert run(["upscale", "in.tif", "-o", str(tmp_path / ("a" * 300)), "--scale", "2"]) == 1
    said = capsys.readouterr().err
    assert "has 300 bytes" in said
    assert said.count("\n") == 1
