"""repmamba upscale: where results go, what is said while it runs, and how options are read."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from repmamba.cli import upscale as command
from repmamba.cli.main import MISUSED, run
from repmamba.errors import RepmambaError, SourceError, TargetError, UsageError


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("scene.tif", "scene_x4.tif"),
        ("folder/PHOTO.JPG", "PHOTO_x4.JPG"),
        ("scene.cog.tif", "scene_x4.cog.tif"),
        ("a.b.jp2", "a.b_x4.tif"),
        ("noending", "noending_x4.tif"),
    ],
)
def test_a_result_in_a_folder_keeps_the_name_of_its_input(source, name):
    assert command.named_larger(source, 4) == name


def test_one_input_goes_to_the_file_and_several_into_the_folder(tmp_path):
    assert command.outputs(["a.tif"], tmp_path / "b.tif", 2, dry_run=False) == [tmp_path / "b.tif"]
    assert command.outputs(["a.tif"], tmp_path, 2, dry_run=False) == [tmp_path / "a_x2.tif"]
    new = tmp_path / "new" / "folder"
    assert command.outputs(["a.tif", "c.png"], new, 3, dry_run=True) == [new / "a_x3.tif", new / "c_x3.png"]
    assert not new.exists()
    command.outputs(["a.tif", "c.png"], new, 3, dry_run=False)
    assert new.is_dir()


def test_inputs_of_one_name_and_a_file_for_several_are_refused(tmp_path):
    with pytest.raises(UsageError, match="would be written to"):
        command.outputs(["one/a.tif", "two/a.tif"], tmp_path / "out", 4, dry_run=False)
    (tmp_path / "file.tif").write_text("")
    with pytest.raises(UsageError, match="give a folder"):
        command.outputs(["a.tif", "b.tif"], tmp_path / "file.tif", 4, dry_run=False)


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
        assert f"a_x4.tif, the result of {sources[0]}, would be the input {sources[1]}" in said
        assert said.count("\n") == 1
    assert (tmp_path / "a_x4.tif").read_text() == "a_x4.tif"
    assert command.outputs([str(tmp_path / "a.tif"), "gone.tif"], tmp_path, 2, dry_run=True)[0].name == "a_x2.tif"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"file/out cannot be made: Not a directory\. Choose"):
        command.outputs(["a.tif", "b.tif"], tmp_path / "file" / "out", 4, dry_run=False)


def test_of_several_inputs_one_that_fails_is_named_and_the_others_go_on(capsys):
    enlarged = []

    def enlarge(source, target):
        if source.startswith("bad"):
            raise SourceError("it is empty")
        enlarged.append(target.name)

    sources = ["a.tif", "bad1.tif", "b.tif", "bad2.tif"]
    with pytest.raises(RepmambaError, match=r"2 of 4 inputs were not enlarged: bad1\.tif, bad2\.tif"):
        command.one_by_one(enlarge, sources, [Path(f"out/{name}") for name in sources])
    assert enlarged == ["a.tif", "b.tif"]
    assert capsys.readouterr().err.splitlines() == ["Error: bad1.tif: it is empty", "Error: bad2.tif: it is empty"]
    with pytest.raises(SourceError, match=r"^it is empty$"):
        command.one_by_one(enlarge, sources[1:2], [Path("out.tif")])


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("window", "1,2,3,4", (1, 2, 3, 4)),
        ("bbox", "-1.5,2,3e2,4", (-1.5, 2.0, 300.0, 4.0)),
        ("bands", "7", (7,)),
        ("value_range", "0,4000", (0.0, 4000.0)),
        ("value_range", "robust", "robust"),
        ("value_range", "type", "type"),
    ],
)
def test_lists_of_numbers_are_read(option, text, value):
    assert read(option, text) == value


@pytest.mark.parametrize(
    ("option", "text"), [("window", "1,2,3"), ("window", "1,2,3,x"), ("bands", ""), ("value_range", "low,high")]
)
def test_lists_that_are_none_are_refused(option, text):
    with pytest.raises(click.BadParameter, match="numbers with commas between"):
        read(option, text)


def read(option: str, text: str) -> object:
    parameter = next(entry for entry in command.upscale.params if entry.name == option)
    return parameter.callback(click.Context(command.upscale), parameter, text)


@dataclass(frozen=True)
class Planned:
    target: Path

    def summary(self) -> str:
        return f"would write {self.target.name}"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_dry_run_says_what_it_found_even_when_it_is_quiet(monkeypatch, capsys, tmp_path, quiet):
    monkeypatch.setattr("repmamba.inference.upscaler.load", lambda **network: SimpleNamespace(scale=4))
    monkeypatch.setattr("repmamba.scene.engine.plan_file", lambda source, target, upscaler, **how: Planned(target))
    assert run(["upscale", "in.tif", "-o", str(tmp_path / "out.tif"), "--dry-run", *["-q"] * quiet]) == 0
    assert capsys.readouterr().out == "would write out.tif\n"


def test_an_output_name_longer_than_any_file_s_is_one_line(capsys, tmp_path):
    assert run(["upscale", "in.tif", "-o", str(tmp_path / ("a" * 300)), "--scale", "2"]) == 1
    said = capsys.readouterr().err
    assert "has 300 bytes" in said
    assert said.count("\n") == 1
