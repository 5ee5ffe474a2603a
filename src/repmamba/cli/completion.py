"""repmamba completion: the lines by which a shell completes repmamba's verbs and options, as click
makes them.
"""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from repmamba.cli.main import cli

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print what makes a shell complete repmamba's commands.

    \b
    Examples:
      repmamba completion bash >> ~/.bashrc
      repmamba completion zsh >> ~/.zshrc
      repmamba completion fish > ~/.config/fish/completions/repmamba.fish
    """
    click.echo(SHELLS[shell](cli, {}, "repmamba", "_REPMAMBA_COMPLETE").source())
