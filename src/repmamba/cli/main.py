"""The command line: a table of verbs, each in a module of its own that is loaded only when the verb is called.

So `repmamba --help` costs no more than click, and what a verb needs is paid for by that verb. `main` is also the one
place where an exception becomes a line for the user. Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from repmamba import __version__
from repmamba.cli.terminal import log_to_stderr, say_error, show_warnings_as_lines
from repmamba.errors import RepmambaError, UsageError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: the module `repmamba.cli.<module>` holds a click command of the verb's name."""

    name: str
    module: str
    help: str


VERBS = (
    Verb("upscale", "repmamba.cli.upscale", "Enlarge rasters, in place on the map."),
    Verb("verify", "repmamba.cli.verify", "Check a result against its receipt."),
    Verb("info", "repmamba.cli.info", "Say what is installed and what runs, or what a file is."),
    Verb("bench", "repmamba.cli.bench", "Time a network on this machine."),
    Verb("prepare", "repmamba.cli.prepare", "Make the pairs of a benchmark from its originals."),
    Verb("train", "repmamba.cli.train", "Train a network by a recipe."),
    Verb("finetune", "repmamba.cli.finetune", "Train a network further on scenes of one's own."),
    Verb("evaluate", "repmamba.cli.evaluate", "Score networks and other methods against the truth."),
    Verb("export", "repmamba.cli.export", "Write weights as a file that other programs run."),
    Verb("completion", "repmamba.cli.completion", "Print what makes a shell complete repmamba's commands."),
)


class VerbGroup(click.Group):
    """The table VERBS as a click group: help comes from the table, a module is imported when its verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now; None for a name that the table does not have."""
        for verb in VERBS:
            if verb.name == cmd_name:
                command: click.Command = getattr(import_module(verb.module), verb.name)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their lines of the table, without importing any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name, verb.help) for verb in VERBS])


@dataclass(slots=True)
class Invocation:
    """What `main` has to know of a command line after it failed."""

    debug: bool = False


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB ...",
    epilog="'repmamba VERB --help' explains a verb, with examples.",
)
@click.version_option(__version__, prog_name="repmamba", message="%(prog)s %(version)s")
@click.option(
    "--debug", is_flag=True, envvar="REPMAMBA_DEBUG", help="Show tracebacks and log all steps (REPMAMBA_DEBUG=1)."
)
@click.pass_obj
def cli(invocation: Invocation, debug: bool) -> None:
    """Super-resolution of satellite and aerial scenes: any raster in, the same raster out at 2, 3 or 4 times the
    resolution.

    \b
    Examples:
      repmamba upscale scene.tif -o scene_x4.tif
      repmamba info scene.tif
      repmamba bench
    """
    invocation.debug = debug
    show_warnings_as_lines(debug=debug)
    log_to_stderr(logging.DEBUG if debug else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and leave with its exit code; `arguments` are those of the process unless given."""
    # Read when torch is loaded. Its threads would otherwise spin between operations, on the cores that ours compute on:
    # one pass of a network took 1.5 times as long on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. Whatever goes wrong is one line on stderr, and a traceback with --debug."""
    invocation = Invocation()
    try:
        code = cli.main(args=arguments, prog_name="repmamba", standalone_mode=False, obj=invocation)
        return code if isinstance(code, int) else DONE
    except click.ClickException as misuse:  # click knows the verb at fault and where its help is
        misuse.show()
        return misuse.exit_code
    except (click.Abort, KeyboardInterrupt):
        say_error("interrupted")
        return INTERRUPTED
    except RepmambaError as error:
        _trace(invocation)
        say_error(error)
        return MISUSED if isinstance(error, UsageError) else FAILED
    except Exception as error:
        _trace(invocation)
        say_error(f"{type(error).__name__}: {error}. {_how_to_report(invocation)}")
        return FAILED


def _trace(invocation: Invocation) -> None:
    if invocation.debug:
        traceback.print_exc()


def _how_to_report(invocation: Invocation) -> str:
    if invocation.debug:
        return "Nobody foresaw this: please report it with the lines above and the output of `repmamba info`."
    return "Nobody foresaw this: please report it with the output of the same command under REPMAMBA_DEBUG=1."
