"""What pages, benchmarks and examples name is there: verbs and options of the command line, and
names of modules.
"""

import ast
import re
import shlex
import symtable
from functools import cache
from pathlib import Path

import click
import pytest

from repmamba.cli.main import VERBS, cli

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(
        page for folder in ("docs", "examples", "src") for page in (CHECKOUT / folder).rglob("*.md")
    ),
]
SCRIPTS = sorted(
    script
    for folder in ("benchmarks", "examples", "docs")
    for script in (CHECKOUT / folder).glob("*.py")
)


def commands_in(text: str) -> list[str]:
    """The command lines of a page: lines that begin with the program, and what is marked as code in
    a sentence.
    """
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ )?(repmamba [a-z-].*)$", text, re.MULTILINE)
    return lines + re.findall(r"`(repmamba [a-z-][^`]*)`", text)


def faults_of(line: str) -> list[str]:
    """What a command line names and the program does not have."""
    verb, *words = shlex.split(line, comments=True)[1:]
    if verb not in {verb.name for verb in VERBS}:
        return [] if verb.startswith("-") else [verb]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    known = {
        name for option in command.params for name in (*option.opts, *option.secondary_opts)
    } | {"-h", "--help"}
    asked = [word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)]
    return [word for word in asked if word not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_the_commands_of_a_page_have_verbs_and_options_that_there_are(page):
    wrong = {
        line: faults for line in commands_in(page.read_text("utf-8")) if (faults := faults_of(line))
    }
    assert wrong == {}


def test_commands_are_found_and_their_faults_too():
    page = (
        "`repmamba info`\n\n    repmamba upscale a.tif \\\n      -o b.tif --tiles 8  # "
        "--tile\n\n`repmamba enlarge`"
    )
    assert [faults_of(line) for line in commands_in(page)] == [["--tiles"], [], ["enlarge"]]
    assert sum(len(commands_in(page.read_text("utf-8"))) for page in PAGES) > 50


@cache
def names_in(file: Path) -> set[str]:
    """What a module defines, assigns or imports at its top."""
    symbols = symtable.symtable(file.read_text("utf-8"), file.name, "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def file_of(module: str, script: Path) -> Path | None:
    """Where a module of ours is, from a script beside which there may be others; None for a
    library's.
    """
    parts = module.split(".")
    if parts[0] != "repmamba":
        beside = script.with_name(f"{module}.py")
        return beside if beside.is_file() else None
    path = CHECKOUT.joinpath("src", *parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(CHECKOUT)))
def test_what_a_script_imports_of_ours_is_there(script):
    missing = []
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and (file := file_of(node.module, script)) is not None
        ):
            found = names_in(file) if file.is_file() else set()
            modules = (
                {inner.stem for inner in file.parent.glob("*")}
                if file.name == "__init__.py"
                else set()
            )
            missing += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in found | modules
            ]
    assert missing == []
