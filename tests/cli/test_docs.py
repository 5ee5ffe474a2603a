"""The pages of docs/reference/cli hold what the commands say of themselves; `make docs` writes that part of
them.
"""

import ast
import re
import tomllib
from pathlib import Path

import click
import pytest

import repmamba
from repmamba.cli.main import VERBS, Verb, cli
from repmamba.cli.upscale import upscale
from repmamba.scene.source.admission import Limits

DOCS = Path(__file__).resolve().parents[2] / "docs"


def flat(text: str) -> str:
    """Text without its line breaks, so that where a line is broken does not matter."""
    return " ".join(text.split())


def test_the_index_of_commands_links_a_page_for_every_verb():
    index = (DOCS / "reference" / "cli" / "index.md").read_text("utf-8")
    for verb in VERBS:
        assert f"[`repmamba {verb.name}`]({verb.name}.md)" in index
        assert (DOCS / "reference" / "cli" / f"{verb.name}.md").is_file()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_page_of_a_verb_has_every_option_and_what_it_does(verb: Verb):
    command = cli.get_command(click.Context(cli), verb.name)
    assert command is not None
    page = flat((DOCS / "reference" / "cli" / f"{verb.name}.md").read_text("utf-8"))
    for option in command.params:
        if isinstance(option, click.Option):
            missing = [
                name
                for name in (*option.opts, *option.secondary_opts)
                if not re.search(rf"{name}\b", page)
            ]
            assert missing == [], "`make docs` writes the options into the pages"
            assert flat(option.help or "") in page, "`make docs` writes the options into the pages"


def test_the_help_of_upscale_states_the_limits_that_hold():
    usual, untrusted = Limits(), Limits.for_untrusted()
    options = {
        option.name: option.help or ""
        for option in upscale.params
        if isinstance(option, click.Option)
    }
    assert (
        f"[default: {usual.pixels:,}; with --untrusted {untrusted.pixels:,}]"
        in options["max_pixels"]
    )
    of_untrusted = (
        f"at most {untrusted.pixels:,} pixels, {untrusted.bands} bands, blocks of "
        f"{untrusted.block_bytes >> 20} MiB "
        f"and {untrusted.pixels_per_byte:,} pixels per byte"
    )
    assert of_untrusted in options["untrusted"]


def test_no_page_describes_a_verb_that_does_not_exist():
    pages = {page.stem for page in (DOCS / "reference" / "cli").glob("*.md")} - {"index"}
    assert pages == {verb.name for verb in VERBS}


def test_the_map_has_every_module_with_its_first_line_and_no_other():
    package = Path(repmamba.__file__).parent
    shown = (DOCS / "explanation" / "map.md").read_text("utf-8")
    modules = [file for file in package.rglob("*.py") if not file.name.startswith("__")]
    names = re.findall(r"^ +([a-z]\w*\.py) ", shown, re.MULTILINE)
    assert sorted(names) == sorted(file.name for file in modules), (
        "`make docs` writes the modules into the map"
    )
    for file in modules:
        first_line = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[
            0
        ]
        assert f"{file.name} {first_line}" in flat(shown), (
            "`make docs` writes the first lines into the map"
        )


@pytest.mark.parametrize(
    "page",
    sorted([*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]),
    ids=lambda page: str(page.relative_to(DOCS.parent)),
)
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def parts_of_messages() -> list[str]:
    """The texts of the package's sources, with {} in the place of what is filled in."""
    texts = []
    for file in Path(repmamba.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ]
                texts.append("".join(map(str, parts)))
    return texts


def test_the_messages_of_the_page_on_troubleshooting_are_those_of_the_code():
    page = (DOCS / "how-to" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^\| `([^`]+)`[^|]*\|", page, re.MULTILINE)
    texts = parts_of_messages()
    assert len(quoted) > 20
    assert [words for words in quoted if not any(words in text for text in texts)] == []


def test_every_page_is_in_the_navigation_of_the_site():
    site = tomllib.loads((DOCS.parent / "zensical.toml").read_text("utf-8"))["project"]
    listed = re.findall(r"'([^']+\.md)'", str(site["nav"]))
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(pages)
