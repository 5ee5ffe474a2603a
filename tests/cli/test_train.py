"""What the verb train does beside calling fit."""

import logging
import re

import click
import pytest

from repmamba.cli.train import one_voice, train
from repmamba.train.recipe_file import packaged

ROOM = "repmamba.train.loop"


@pytest.fixture(autouse=True)
def _a_terminal():
    """repmamba's logger as a verb leaves it on a terminal, where bars take the place of lines."""
    logging.getLogger("repmamba").setLevel(logging.WARNING)


def test_the_help_names_every_packaged_recipe():
    text = " ".join(train.get_help(click.Context(train)).split())
    assert re.search(r"a packaged recipe: ([^.]*)\.", text)[1].split(", ") == packaged()


def test_a_new_recipe_in_the_package_is_named_too(monkeypatch):
    monkeypatch.setattr("repmamba.train.recipe_file.packaged", lambda: ["x4", "x4-new"])
    command = type(train)("train", help=train.callback.__doc__)
    assert "a packaged recipe: x4, x4-new." in " ".join(
        command.get_help(click.Context(command)).split()
    )


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_one_speaks_and_the_others_warn(
    monkeypatch, capsys, rank, speaks
):
    logging.getLogger("repmamba").setLevel(logging.INFO)  # as without a terminal
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": rank,
        "MASTER_ADDR": "here",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with one_voice(quiet=False) as say:
        assert logging.getLogger(ROOM).isEnabledFor(logging.INFO) == speaks
        assert logging.getLogger(ROOM).isEnabledFor(logging.WARNING)
        say("the result")
    assert capsys.readouterr().out == "the result\n" * speaks


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_speaks_on_a_terminal_too_unless_it_is_to_be_quiet(quiet, capsys):
    with one_voice(quiet=quiet) as say:
        assert logging.getLogger(ROOM).isEnabledFor(logging.INFO) != quiet
        say("the result")
    assert capsys.readouterr().out == "the result\n"
    assert not logging.getLogger(ROOM).isEnabledFor(logging.INFO)
