"""The command line as a whole: its verbs, its exit codes, and every error as one line."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import click
import pytest

import repmamba
from repmamba.cli import main as command_line
from repmamba.cli import options
from repmamba.cli.main import VERBS, Verb, cli, run
from repmamba.cli.terminal import printable
from repmamba.errors import CheckpointError, OutsideTraining, TargetExists, UsageError
from repmamba.inference.catalogue import packaged_weights


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Puts a verb `trial` on the command line that calls the function given."""

    def install(action: Callable[[], object]) -> None:
        @click.command()
        def trial() -> None:
            action()

        module = ModuleType("trial_verb")
        module.__dict__["trial"] = trial
        monkeypatch.setitem(sys.modules, "trial_verb", module)
        monkeypatch.setattr(
            command_line, "VERBS", (*VERBS, Verb("trial", "trial_verb", "A verb of the tests."))
        )

    return install


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_of_the_table_is_a_command_with_help(verb: Verb):
    command = cli.get_command(click.Context(cli), verb.name)
    assert command is not None
    assert command.name == verb.name
    assert command.help


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_of_every_verb_has_examples(verb: Verb, capsys: pytest.CaptureFixture[str]):
    assert run([verb.name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: repmamba {verb.name} " in shown
    assert f"repmamba {verb.name}" in shown.partition("Examples:")[2]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_of_every_verb_says_what_it_does(verb: Verb):
    command = cli.get_command(click.Context(cli), verb.name)
    assert command is not None
    silent = [
        option.name
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


def test_help_lists_the_whole_table(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert verb.name in shown
        assert verb.help in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"repmamba {repmamba.__version__}\n"


def test_a_verb_that_does_not_exist_is_misuse(capsys: pytest.CaptureFixture[str]):
    assert run(["enlarge"]) == 2
    assert "'enlarge'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetExists("out.tif is there already; --overwrite replaces it."), 1),
        (CheckpointError("x.pth holds no weights."), 1),
        (UsageError("The tile is 0."), 2),
    ],
)
def test_an_error_of_ours_is_one_line_and_an_exit_code(
    verb_that, capsys, error: Exception, code: int
):
    verb_that(raising(error))
    assert run(["trial"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"Error: {error}\n"


def test_an_unforeseen_error_is_one_line_that_says_how_to_report_it(verb_that, capsys):
    verb_that(raising(ZeroDivisionError("division\nby zero")))
    assert run(["trial"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ZeroDivisionError: division by zero.")
    assert "REPMAMBA_DEBUG=1" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("asked", ["option", "variable"])
def test_debug_shows_the_traceback(verb_that, capsys, monkeypatch: pytest.MonkeyPatch, asked: str):
    verb_that(raising(UsageError("The tile is 0.")))
    if asked == "variable":
        monkeypatch.setenv("REPMAMBA_DEBUG", "1")
    assert run(["trial"] if asked == "variable" else ["--debug", "trial"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("Error: The tile is 0.\n")


def test_an_interruption_is_exit_code_130_without_a_traceback(verb_that, capsys):
    verb_that(raising(KeyboardInterrupt()))
    assert run(["trial"]) == 130
    shown = capsys.readouterr().err
    assert shown.strip() == "Error: interrupted"


@pytest.mark.parametrize("verb", ["upscale", "train", "finetune", "prepare"])
def test_an_interruption_says_that_the_same_command_goes_on(monkeypatch, capsys, verb):
    command = cli.get_command(click.Context(cli), verb)
    monkeypatch.setattr(command, "invoke", lambda ctx: raising(KeyboardInterrupt())())
    arguments = {"train": ["x4"], "prepare": ["aid", "a", "b", "--scale", "2"]}.get(
        verb, ["a.tif", "-o", "b.tif"]
    )
    assert run([verb, *arguments]) == 130
    said = capsys.readouterr().err.strip()
    assert said == "Error: interrupted; finished work is kept, and the same command continues."


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("upscal", "upscale"), ("enlarge", "upscale"), ("eval", "evaluate"), ("trian", "train")],
)
def test_a_misspelt_verb_gets_a_suggestion(capsys, typed, meant):
    assert run([typed, "a.tif"]) == 2
    said = capsys.readouterr().err
    assert f"Did you mean {meant}" in said or f"Did you mean '{meant}'" in said
    assert run(["xyzzy"]) == 2
    assert "There are upscale, verify" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "parameter", "typed", "offered"),
    [
        ("train", "recipe", "x4", {"x4", "x4-real"}),
        ("evaluate", "rules", "ban", {"bands", "bands.psnr"}),
        ("info", "file", "x", {"x4", "x2"}),
    ],
)
def test_a_shell_gets_the_names_of_recipes_and_rules(verb, parameter, typed, offered):
    command = cli.get_command(click.Context(cli), verb)
    found = next(one for one in command.params if one.name == parameter)
    assert offered <= {item.value for item in found.shell_complete(click.Context(command), typed)}


@pytest.mark.parametrize(
    "line",
    [
        "evaluate {here} --method bicubic --json s3://bucket/all.json",
        "evaluate {here} --method bicubic --save s3://bucket/results",
        "evaluate {here} --method bicubic --report gs://bucket/page.html",
        "prepare folder {here}/GT s3://bucket/pairs --scale 2",
        "train x4 --set data.train=[] -o s3://bucket/run",
        "finetune a.tif -o s3://bucket/run",
    ],
)
def test_no_verb_writes_to_an_object_store(tmp_path, monkeypatch, capsys, line):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name, edge in (("GT", 64), ("LR", 32)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (edge, edge)).save(tmp_path / name / "1.png")
    assert run(line.format(here=tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert "is not a local path, and only local files are written" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GT", "LR"]


def test_a_closed_pipe_ends_the_command_quietly():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "repmamba.cli", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (process.stderr, process.returncode) == ("", 1)


def test_a_warning_of_ours_is_one_line_and_those_of_libraries_stay_silent(verb_that, capsys):
    def warn() -> None:
        warnings.warn("The scene is radar.", OutsideTraining, stacklevel=2)
        warnings.warn("tensors will be named", UserWarning, stacklevel=2)

    verb_that(warn)
    with warnings.catch_warnings():
        assert run(["trial"]) == 0
    assert capsys.readouterr().err == "Warning: The scene is radar.\n"


def test_quiet_shows_no_warning_and_every_error(monkeypatch, capsys):
    @click.command()
    @options.quiet
    def trial(quiet: bool) -> None:
        warnings.warn("The scene is radar.", OutsideTraining, stacklevel=2)
        logging.getLogger("repmamba.trial").warning("A tile is computed anew.")
        raise UsageError("The tile is 0.")

    module = ModuleType("trial_verb")
    module.__dict__["trial"] = trial
    monkeypatch.setitem(sys.modules, "trial_verb", module)
    monkeypatch.setattr(
        command_line, "VERBS", (*VERBS, Verb("trial", "trial_verb", "A verb of the tests."))
    )
    with warnings.catch_warnings():
        assert run(["trial", "--quiet"]) == 2
        assert capsys.readouterr().err == "Error: The tile is 0.\n"
        assert run(["trial"]) == 2
    assert "Warning: The scene is radar." in capsys.readouterr().err


def test_control_characters_of_strangers_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\nc\x07") == "a\\x1b[2Jb c\\x07"
    assert printable("Río São Francisco ×4") == "Río São Francisco ×4"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_reads(shell: str, capsys: pytest.CaptureFixture[str]):
    assert run(["completion", shell]) == 0
    assert "_REPMAMBA_COMPLETE" in capsys.readouterr().out


def test_the_shell_gets_the_names_of_the_verbs():
    asked = {"_REPMAMBA_COMPLETE": "zsh_complete", "COMP_WORDS": "repmamba comp", "COMP_CWORD": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "repmamba.cli"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "completion" in process.stdout


@pytest.mark.parametrize("verb", ["upscale", "bench", "evaluate", "finetune"])
def test_the_shell_gets_the_names_of_all_packaged_weights(verb: str):
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    weights = next(option for option in command.params if option.name == "weights")
    offered = {item.value for item in weights.shell_complete(click.Context(command), "x")}
    assert {entry.name for entry in packaged_weights()} <= offered


def test_the_names_of_packaged_weights_are_known_without_torch():
    code = (
        "import sys; from repmamba.inference import catalogue; catalogue.packaged_weights(); "
        "print(*sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "torch" not in process.stdout.split()


@pytest.mark.parametrize(
    ("quota", "before", "after"), [(None, None, None), (1.5, None, "2"), (1.5, "7", "7")]
)
def test_threads_of_torch_are_as_many_as_a_container_grants(monkeypatch, quota, before, after):
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(command_line, "cpu_quota", lambda: quota)
    monkeypatch.setattr(command_line, "available_cores", lambda: 2)
    with pytest.raises(SystemExit):
        command_line.main(["--version"])
    assert os.environ.get("OMP_NUM_THREADS") == after


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_sleep_when_idle_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(SystemExit):
        command_line.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == after
