"""Writes what `repmamba VERB --help` says into docs/cli/VERB.md, between two marks; run by `make docs`.

The rest of a page is written by hand. tests/cli/test_docs.py fails when an option is missing from its page.
"""

from importlib import import_module
from pathlib import Path

import click

from repmamba.cli.main import VERBS, cli

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- written by make docs -->", "<!-- until here -->"


def main() -> None:
    """Rewrite the marked part of every page."""
    for verb in VERBS:
        page = FOLDER / f"{verb.name}.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        command: click.Command = getattr(import_module(verb.module), verb.name)
        page.write_text(f"{before}{BEGIN}\n```text\n{help_of(command)}\n```\n{END}{after}", "utf-8")


def help_of(command: click.Command) -> str:
    """The help of a verb as a terminal of 100 columns shows it."""
    group = click.Context(cli, info_name="repmamba")
    context = click.Context(
        command,
        parent=group,
        info_name=command.name,
        max_content_width=100,
        terminal_width=100,
        help_option_names=["-h", "--help"],
    )
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    main()
