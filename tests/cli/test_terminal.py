"""What goes to the terminal: messages of the library in the words of the command line, and nothing
that steers it.
"""

import ast
import logging
import re
import warnings
from pathlib import Path

import pytest

import repmamba
from repmamba.cli.main import cli
from repmamba.cli.terminal import KEYWORD, in_flags, printable


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("replace it with overwrite=True.", "replace it with --overwrite."),
        ("(consistent=False leaves it)", "(--no-consistent leaves it)"),
        ("(alpha=False if it is data)", "(--no-alpha if it is data)"),
        ("say so with nodata=NUMBER.", "say so with --nodata NUMBER."),
        ("nodata= has 2 numbers", "--nodata has 2 numbers"),
        ("if they are colours: rgb=(4, 3, 2)", "if they are colours: --rgb 4,3,2"),
        (
            "give value_range=(-0.5, 4000), or value_range='robust'.",
            "give --range -0.5,4000, or --range robust.",
        ),
        ("leave workers= out, or cluster=.", "leave --workers out, or --cluster."),
        (
            "with tile=256 and 2 workers; tile=224 fits.",
            "with --tile 256 and 2 workers; --tile 224 fits.",
        ),
        ("tile=3: expected an even number", "--tile 3: expected an even number"),
        ("asked for with creation=.", "asked for with --co."),
    ],
)
def test_keywords_become_flags(said, shown):
    assert in_flags(said) == shown


@pytest.mark.parametrize(
    "text",
    ["/data/scale=4/x.tif is empty", "tile=256.tif is empty", "scale=4/x.tif is", "COMPRESS=LZW"],
)
def test_names_of_files_stay_as_they_are(text):
    assert in_flags(text) == text


def messages(*rooms):
    """Each string constant of these rooms, with its module."""
    source = Path(repmamba.__file__).parent
    return [
        (path.relative_to(source), node.value)
        for room in rooms
        for path in sorted((source / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_every_keyword_that_a_message_names_has_its_flag():
    import click

    context = click.Context(cli)
    flags = {
        option
        for verb in cli.list_commands(context)
        for parameter in cli.get_command(context, verb).params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    rooms = (
        "scene",
        "inference",
        "evaluate",
        "exporting",
        "train",
        "finetuning",
        "tiles",
        "pixels",
    )
    named = {
        (found[1], in_flags(found[0]).split()[0])
        for _, text in messages(*rooms)
        for found in KEYWORD.finditer(text)
    }
    assert len(named) > 10
    only_in_python = {"layout", "fuse", "asynchronous", "framework", "mask"}
    assert {word for word, flag in named if flag not in flags} <= only_in_python


def test_errors_warnings_and_log_lines_are_shown_so(tmp_path, capsys):
    from repmamba.cli.main import run
    from repmamba.cli.terminal import _Lines, _show_warning
    from repmamba.errors import RepmambaWarning

    (tmp_path / "there.tif").write_bytes(b"something")
    (tmp_path / "in.tif").write_bytes(b"something")
    with warnings.catch_warnings():
        assert run(["upscale", str(tmp_path / "in.tif"), "-o", str(tmp_path / "there.tif")]) == 1
    assert "replace it with --overwrite." in capsys.readouterr().err
    _show_warning(RepmambaWarning("see tile=16."), RepmambaWarning, "here", 1)
    assert capsys.readouterr().err == "Warning: see --tile 16.\n"
    record = logging.LogRecord(
        "repmamba", logging.INFO, "", 1, "see %s", ("consistent=True.",), None
    )
    assert _Lines("%(message)s").format(record) == "see --consistent."


def test_a_file_s_name_does_not_steer_the_terminal():
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb c"


def test_the_library_names_no_flag_of_the_command_line():
    """Its messages name keywords, which become flags on the command line."""
    texts = [
        f"{module}: {text}"
        for module, text in messages("scene", "inference", "pixels", "tiles")
        if re.search(r"(^|[\s(])--[a-z]", text)
    ]
    # flags of other commands, and of a dry run
    allowed = (
        "dask scheduler --scheduler-file",
        "--scheduler-file writes one",
        "upscale --dry-run",
        "--size dynamic",
    )
    assert [text for text in texts if not any(one in text for one in allowed)] == []
