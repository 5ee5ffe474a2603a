"""The command line: a table of verbs, each in a module that is loaded when it is called.

So `repmamba --help` only loads click. `main` is also where exceptions become one line of output.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click

from repmamba import __version__
from repmamba.cli.terminal import log_to_stderr, say_error, show_warnings_as_lines, speak_json
from repmamba.container import cpu_quota
from repmamba.cores import available_cores
from repmamba.errors import RepmambaError, UsageError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. The module `repmamba.cli.<module>` has a click command of the same name."""

    name: str
    module: str
    help: str
    resumes: bool = False  # whether the same command continues a stopped run


VERBS = (
    Verb(
        "upscale",
        "repmamba.cli.upscale",
        "Upscale rasters, at the same place on the map.",
        resumes=True,
    ),
    Verb("verify", "repmamba.cli.verify", "Check a result against its receipt."),
    Verb("info", "repmamba.cli.info", "Show what is installed and what runs, or what a file is."),
    Verb("bench", "repmamba.cli.bench", "Measure the speed of a network on this machine."),
    Verb(
        "prepare",
        "repmamba.cli.prepare",
        "Make the pairs of a benchmark from its originals.",
        resumes=True,
    ),
    Verb("train", "repmamba.cli.train", "Train a network by a recipe.", resumes=True),
    Verb(
        "finetune",
        "repmamba.cli.finetune",
        "Train a network further on your own scenes.",
        resumes=True,
    ),
    Verb(
        "evaluate", "repmamba.cli.evaluate", "Score networks and other methods against the truth."
    ),
    Verb("export", "repmamba.cli.export", "Write weights as a file that other programs run."),
    Verb(
        "serve",
        "repmamba.cli.serve",
        "Offer upscale to other programs and to browsers, over HTTP.",
        resumes=True,
    ),
    Verb(
        "completion",
        "repmamba.cli.completion",
        "Print shell code that completes repmamba's commands.",
    ),
)


SYNONYMS = {
    "enlarge": "upscale",
    "superres": "upscale",
    "eval": "evaluate",
    "check": "verify",
    "benchmark": "bench",
}


class VerbGroup(click.Group):
    """The table VERBS as a click group that imports a module when its verb is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click, with suggestions for an unknown verb."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as misuse:
            near = get_close_matches(
                args[0], SYNONYMS | {verb.name: verb.name for verb in VERBS}, n=2
            )
            meant = list(dict.fromkeys(SYNONYMS.get(name, name) for name in near))
            if "Did you mean" in misuse.message:  # newer versions of click
                raise
            known = f"There are {', '.join(verb.name for verb in VERBS)}."
            hint = f"Did you mean {' or '.join(meant)}?" if meant else known
            raise click.UsageError(f"{misuse.message} {hint}", ctx) from misuse

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now; None for an unknown name."""
        for verb in VERBS:
            if verb.name == cmd_name:
                command: click.Command = getattr(import_module(verb.module), verb.name)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their help from the table, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name, verb.help) for verb in VERBS])


@dataclass(slots=True)
class Invocation:
    """What `main` needs to know about a command line that failed."""

    debug: bool = False
    verb: str | None = None


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB ...",
    epilog="'repmamba VERB --help' explains a verb, with examples.",
)
@click.version_option(__version__, prog_name="repmamba", message="%(prog)s %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    envvar="REPMAMBA_DEBUG",
    help="Show tracebacks and log every step (REPMAMBA_DEBUG=1).",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Super-resolution of satellite and aerial scenes: any raster in, the same raster out, larger.

    \b
    Examples:
      repmamba upscale scene.tif -o scene_x4.tif
      repmamba info scene.tif
      repmamba bench
    """
    invocation: Invocation = ctx.obj
    invocation.debug, invocation.verb = debug, ctx.invoked_subcommand
    show_warnings_as_lines(debug=debug)
    log_to_stderr(logging.DEBUG if debug else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code. arguments: by default those of the process."""
    set_thread_variables()
    sys.exit(run(arguments))


def set_thread_variables() -> None:
    """Set the environment variables about threads that torch reads when it is loaded."""
    # Idle threads would otherwise spin on the cores that our threads use: one pass of a network
    # took 1.5 times as long on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch counts the cores of the machine, even if a container grants fewer.
    if cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. An error is one line, with --debug a traceback too."""
    invocation = Invocation()
    speak_json(False)
    try:
        code = cli.main(args=arguments, prog_name="repmamba", standalone_mode=False, obj=invocation)
        return code if isinstance(code, int) else DONE
    except click.ClickException as misuse:  # click adds the verb and a pointer to its help
        if _asks_for_json(misuse, sys.argv[1:] if arguments is None else arguments):
            speak_json(True)
            say_error(UsageError(misuse.format_message()))
        else:
            misuse.show()
        return misuse.exit_code
    except (click.Abort, KeyboardInterrupt):
        resumes = any(verb.name == invocation.verb and verb.resumes for verb in VERBS)
        say_error(
            "interrupted" + "; finished work is kept, and the same command continues." * resumes
        )
        return INTERRUPTED
    except RepmambaError as error:
        _trace(invocation)
        say_error(error)
        return MISUSED if isinstance(error, UsageError) else FAILED
    except Exception as error:
        _trace(invocation)
        say_error(f"{type(error).__name__}: {error}. {_how_to_report(invocation)}")
        return FAILED


def _asks_for_json(misuse: click.ClickException, arguments: Sequence[str]) -> bool:
    """Whether a command line that click rejected has the flag --json (not a file's name)."""
    ctx = getattr(misuse, "ctx", None)
    flags = [] if ctx is None else ctx.command.params
    return "--json" in arguments and any(option.name == "as_json" for option in flags)


def _trace(invocation: Invocation) -> None:
    if invocation.debug:
        traceback.print_exc()


def _how_to_report(invocation: Invocation) -> str:
    if invocation.debug:
        return "This is a bug: report it with the lines above and the output of `repmamba info`."
    return "This is a bug: report it with the output of the same command with REPMAMBA_DEBUG=1."
