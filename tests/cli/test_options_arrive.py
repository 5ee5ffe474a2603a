"""Every option of every verb arrives, with its value, at the function that it is for.

The functions of the API are replaced by recorders, which bind what they are called with to the real
parameters. A row of OPTIONS is the option's name in the verb, a command line that gives it, where
it has to arrive, and as what; the same command line without the option has to show something else
there.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest

from repmamba.cli.batch import Input
from repmamba.cli.main import VERBS, cli, run
from repmamba.data.degradations import Stage
from repmamba.evaluate.methods import Method


@dataclass(frozen=True)
class Answer:
    """A result that can be shown in both ways."""

    target: Path = Path("result.tif")
    made: int = 1
    kept: int = 0
    method: str = "as usual"

    def summary(self) -> str:
        return "in words"

    def as_json(self) -> dict[str, str]:
        return {"as": "JSON"}


def method_of(network: dict[str, Any]) -> Method:
    passes = 8 if network.get("ensemble") else 1
    return Method(
        "net" + "+" * (passes > 1),
        "how",
        lambda pair: pair.lr,
        2,
        SimpleNamespace(),
        passes,
        "mine",
    )


PAIRS = [SimpleNamespace(files=[SimpleNamespace(hr=Path("a.png"))])]

API: dict[str, Any] = {  # what is replaced, and what it answers, or makes of what it is called with
    "repmamba.inference.loading.load": SimpleNamespace(scale=2),
    "repmamba.scene.choice.load": SimpleNamespace(scale=2, name="x2"),  # where no weights are named
    "repmamba.cli.batch.find_inputs": lambda called: [Input(name) for name in called["named"]],
    "repmamba.scene.engine.upscale_file": Answer(),
    "repmamba.scene.engine.plan_file": Answer(),
    "repmamba.scene.result.receipt.read_receipt": SimpleNamespace(
        levels=[SimpleNamespace(pieces=[1])]
    ),
    "repmamba.scene.result.readback.verify_result": 1,
    "repmamba.data.prepare.prepare": lambda called: called["progress"](1, 2) or Answer(),
    "repmamba.train.loop.fit": Answer(),
    "repmamba.finetuning.finetune.finetune": Answer(),
    "repmamba.evaluate.methods.network": method_of,
    "repmamba.evaluate.methods.results": lambda called: Method(
        called["folder"].name, "how", lambda pair: pair.lr
    ),
    "repmamba.evaluate.run.find_sets": PAIRS,
    "repmamba.evaluate.run.evaluate": lambda called: called["progress"](1, 2) or "scores",
    "repmamba.evaluate.metrics.metrics_of": "metrics",
    "repmamba.evaluate.cost.config_of": "config",
    "repmamba.evaluate.cost.cost_of": "counted",
    "repmamba.evaluate.cost.measured": "measured",
    "repmamba.evaluate.page.read_others": [],
    "repmamba.service.server.serve": None,
    "repmamba.evaluate.page.page": "page",
    "repmamba.evaluate.report.check_target": None,
    "repmamba.evaluate.report.table": "table",
    "repmamba.evaluate.report.to_json": {},
    "repmamba.evaluate.report.to_csv": "",
    "repmamba.evaluate.report.write_text": None,
    "repmamba.evaluate.timing.time_network": SimpleNamespace(to_dict=dict),
    "repmamba.exporting.export.export": Answer(),
    "repmamba.cli.info.environment_facts": {"facts": 1},
    "repmamba.cli.info.raster_facts": {"facts": 1},
}

Heard = dict[str, Any]  # what each function was last called with, by its name, and what was said


@pytest.fixture
def heard_of(monkeypatch, capsys) -> Iterator[Callable[[str], Heard]]:
    """Runs a command line, as on a terminal, with recorders in the place of the API."""
    calls: Heard = {}

    def replace_by_recorder(place: str, answer: Any) -> None:
        name = place.rpartition(".")[2]
        signature = inspect.signature(found(place))

        def recorder(*arguments: Any, **keywords: Any) -> Any:
            called = dict(signature.bind(*arguments, **keywords).arguments)
            calls[name] = called
            return answer(calls[name]) if callable(answer) else answer

        monkeypatch.setattr(place, recorder)

    for place in API:
        found(place)  # a module imported after a name is replaced would keep the recorder for good
    for place, answer in API.items():
        replace_by_recorder(place, answer)

    def heard(line: str) -> Heard:
        calls.clear()
        # another one than while this was set up
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert run(line.split()) == 0
        said = capsys.readouterr()
        return calls | {"stdout": said.out, "stderr": said.err}

    with warnings.catch_warnings():
        yield heard


def found(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


class Row(NamedTuple):
    """One option."""

    verb: str
    option: str
    line: str  # after the verb; "..." stands for what the verb cannot do without
    place: str  # function and parameter, and further attributes of what is there
    value: Any


URL = "https://a.b"
TOKEN = Path(__file__).read_text("utf-8").strip()
NEEDED = {
    "upscale": "in.tif -o out.tif",
    "verify": "out.tif",
    "info": "",
    "bench": "",
    "prepare": "folder images pairs --scale 4",
    "train": "x4",
    "finetune": "a.tif",
    "export": "x4 -o x4.onnx",
    "evaluate": "pairs --weights mine",
    "completion": "bash",
    "serve": "",
}
OF_LOAD = {
    "device": ("--device cpu", "cpu"),
    "backend": ("--backend chunked", "chunked"),
    "precision": ("--precision bfloat16", "bfloat16"),
}
OF_SCENES = {
    "tile": ("--tile 32", 32),
    "halo": ("--halo 4", 4),
    "window": ("--window 1,2,3,4", (1, 2, 3, 4)),
    "bbox": ("--bbox 1,2,3,4.5", (1.0, 2.0, 3.0, 4.5)),
    "bands": ("--bands 2,1", (2, 1)),
    "rgb": ("--rgb 3,2,1", (3, 2, 1)),
    "nodata": ("--nodata -9999,0", (-9999.0, 0.0)),
    "value_range": ("--range 0,4000", (0.0, 4000.0)),
    "consistent": ("--no-consistent", False),
    "confidence": ("--confidence errors.tif", Path("errors.tif")),
    "format": ("--format COG", "COG"),
    "creation": ("--co COMPRESS=LZW --co TILED=A=B", {"COMPRESS": "LZW", "TILED": "A=B"}),
    "workers": ("--workers 3", 3),
    "cluster": ("--cluster tcp://host:8786", "tcp://host:8786"),
    "overwrite": ("--overwrite", True),
    "restart": ("--restart", True),
    "untrusted": ("--untrusted", True),
    "max_pixels": ("--max-pixels 99", 99),
    "on_corrupt": ("--on-corrupt fill", "fill"),
    "expand_palette": ("--expand-palette", True),
}
OF_RUNS = {
    "device": ("--device cpu", "cpu"),
    "threads": ("--threads 3", 3),
    "nice": ("--nice 7", 7),
    "minutes": ("--minutes 1.5", 1.5),
}


def rows(verb: str, function: str, options: dict[str, tuple[str, Any]]) -> list[Row]:
    """Rows of options that arrive under their own names, or nearly so."""
    return [
        Row(
            verb,
            name,
            f"... {words}",
            f"{function}.{name}",
            value,
        )
        for name, (words, value) in options.items()
    ]


OPTIONS = [
    *rows("upscale", "upscale_file", OF_SCENES),
    *rows("upscale", "load", OF_LOAD),
    Row("upscale", "no_alpha", "... --no-alpha", "upscale_file.alpha", False),
    Row("upscale", "weights", "... --weights mine", "load.weights", "mine"),
    Row("upscale", "scale", "... --scale 2", "load.scale", 2),
    Row("upscale", "ensemble", "... --ensemble", "load.ensemble", True),
    Row("upscale", "target", "in.tif -o other.tif", "upscale_file.target", Path("other.tif")),
    Row("upscale", "dry_run", "... --dry-run", "plan_file.source", "in.tif"),
    Row("upscale", "quiet", "... --quiet", "upscale_file.progress", None),
    Row("upscale", "recursive", "... --recursive", "find_inputs.recursive", True),
    Row(
        "upscale",
        "as_json",
        "... --json",
        "stdout",
        '{"event": "result", "source": "in.tif", "as": "JSON"}\n',
    ),
    Row(
        "verify",
        "receipt_file",
        "... --receipt moved.json",
        "read_receipt.path",
        Path("moved.json"),
    ),
    Row("verify", "quiet", "... --quiet", "stdout", ""),
    Row(
        "verify",
        "as_json",
        "... --json",
        "stdout",
        '{"path": "out.tif", "ok": true, "tiles": 1, "pieces": 1}\n',
    ),
    Row("info", "scale", "scene.tif --scale 2", "raster_facts.scale", 2),
    Row("info", "device", "... --device cpu", "environment_facts.device", "cpu"),
    Row("info", "as_json", "... --json", "stdout", '{\n  "facts": 1\n}\n'),
    *rows("bench", "load", OF_LOAD),
    Row("bench", "weights", "... --weights mine", "load.weights", "mine"),
    Row("bench", "scale", "... --scale 2", "load.scale", 2),
    Row("bench", "backend", "... --backend chunked", "time_network.backend", "chunked"),
    Row("bench", "size", "... --size 32", "time_network.size", 32),
    Row("bench", "batch", "... --batch 3", "time_network.batch", 3),
    Row("bench", "passes", "... --passes 2", "time_network.passes", 2),
    Row("bench", "as_json", "... --json", "stdout", "{}\n"),
    Row("prepare", "scale", "folder images pairs --scale 3", "prepare.settings.scale", 3),
    Row("prepare", "seed", "... --seed 7", "prepare.settings.seed", 7),
    Row("prepare", "part", "... --split val", "prepare.settings.part", "val"),
    Row("prepare", "count", "... --count 5", "prepare.settings.count", 5),
    Row(
        "prepare",
        "drawn",
        "aid images pairs --scale 4 --drawn 5 6",
        "prepare.settings.drawn",
        (5, 6),
    ),
    Row("prepare", "val", "... --val 2", "prepare.settings.val", 2),
    Row("prepare", "manifest", "... --manifest m.json", "prepare.manifest", Path("m.json")),
    Row("prepare", "blur", "... --blur 0.5 2", "prepare.settings.stages", (Stage("blur", 0.5, 2),)),
    Row("prepare", "noise", "... --noise 0 5", "prepare.settings.stages", (Stage("noise", 0, 5),)),
    Row("prepare", "jpeg", "... --jpeg 60 95", "prepare.settings.stages", (Stage("jpeg", 60, 95),)),
    Row("prepare", "degrade", "... --degrade middle", "prepare.settings.degrade", "middle"),
    Row("prepare", "jobs", "... --jobs 3", "prepare.workers", 3),
    Row("prepare", "quiet", "... --quiet", "stderr", ""),
    *rows("train", "fit", OF_RUNS),
    Row("train", "quiet", "... --quiet", "fit.progress", None),
    Row("train", "folder", "... -o run", "fit.folder", Path("run")),
    Row("train", "settings", "... --set seed=5", "fit.recipe.seed", 5),
    Row("train", "workers", "... --workers 3", "fit.workers", 3),
    Row("train", "cache", "... --cache stock", "fit.cache", Path("stock")),
    Row("train", "log_every", "... --log-every 5", "fit.log_every", 5),
    Row("train", "tensorboard", "... --tensorboard", "fit.tensorboard", True),
    *rows("finetune", "finetune", OF_RUNS),
    Row("finetune", "quiet", "... --quiet", "finetune.progress", None),
    Row("finetune", "weights", "... --weights mine", "finetune.weights", "mine"),
    Row("finetune", "folder", "... -o run", "finetune.folder", Path("run")),
    Row("finetune", "steps", "... --steps 50", "finetune.steps", 50),
    Row("finetune", "rate", "... --rate 0.5", "finetune.rate", 0.5),
    Row("finetune", "seed", "... --seed 5", "finetune.seed", 5),
    Row("finetune", "nodata", "... --nodata -9999,0", "finetune.nodata", (-9999.0, 0.0)),
    Row("finetune", "nodata", "... --nodata none", "finetune.nodata", "none"),
    Row("export", "target", "x4 -o other.onnx", "export.target", Path("other.onnx")),
    Row("export", "size", "... --size 64x48", "export.size", (48, 64)),
    Row("export", "precision", "... --precision float16", "export.precision", "float16"),
    Row("export", "program", "... --for deepness", "export.program", "deepness"),
    Row("export", "overwrite", "... --overwrite", "export.overwrite", True),
    Row("export", "quiet", "... --quiet", "stdout", ""),
    Row("export", "as_json", "... --json", "stdout", '{"as": "JSON"}\n'),
    *rows("evaluate", "load", OF_LOAD),
    Row("evaluate", "weights", "pairs --weights other", "load.weights", "other"),
    Row("evaluate", "methods", "... --method nearest", "evaluate.methods.1.name", "nearest"),
    Row("evaluate", "sr", "... --sr theirs", "results.folder", Path("theirs")),
    Row("evaluate", "ensemble", "... --ensemble", "evaluate.methods.1.passes", 8),
    Row("evaluate", "ensemble", "... --ensemble", "cost_of.passes", 8),
    Row(
        "evaluate", "rules", "... --rule esr-y --rule bands", "metrics_of.rules", ["esr-y", "bands"]
    ),
    Row("evaluate", "scale", "... --scale 3", "find_sets.scale", 3),
    Row("evaluate", "save", "... --save kept", "evaluate.save", Path("kept")),
    Row("evaluate", "report", "... --report page.html", "write_text.path", Path("page.html")),
    Row("evaluate", "no_pictures", "... --report page.html --no-pictures", "page.pictures", False),
    Row("evaluate", "json_file", "... --json all.json", "write_text.path", Path("all.json")),
    Row("evaluate", "csv_file", "... --csv all.csv", "write_text.path", Path("all.csv")),
    Row("evaluate", "cost", "... --cost", "table.costs", {"net": "measured"}),
    Row("evaluate", "cost", "... --cost --ensemble", "measured.passes", 8),
    Row("evaluate", "backend", "... --cost --backend chunked", "measured.backend", "chunked"),
    Row("evaluate", "cost_size", "... --cost-size 64", "cost_of.height", 64),
    Row("evaluate", "cost_size", "... --cost-size 64", "cost_of.width", 64),
    Row(
        "evaluate",
        "others",
        "... --report page.html --others o.csv",
        "read_others.path",
        Path("o.csv"),
    ),
    Row("evaluate", "tile", "... --tile 32", "network.tile", 32),
    Row("evaluate", "peak", "... --peak 4000", "metrics_of.peak", 4000.0),
    Row("evaluate", "value_range", "... --range 200,4200", "network.value_range", (200.0, 4200.0)),
    Row("evaluate", "value_range", "... --range 200,4200", "metrics_of.peak", 4000.0),
    Row("evaluate", "tile", "... --tile 32 --ensemble", "network.tile", 32),
    Row("evaluate", "quiet", "... --quiet", "stderr", ""),
    Row("serve", "folder", "... --folder kept", "serve.settings.folder", Path("kept")),
    Row("serve", "host", "... --host ::1", "serve.settings.host", "::1"),
    Row("serve", "port", "... --port 80", "serve.settings.port", 80),
    Row("serve", "public_url", f"... --public-url {URL}", "serve.settings.public_url", URL),
    Row("serve", "token_file", f"... --token-file {__file__}", "serve.settings.token", TOKEN),
    Row(
        "serve",
        "references",
        f"... --allow-reference {URL}",
        "serve.settings.allowed.0.host",
        "a.b",
    ),
    Row("serve", "weights", "... --weights x2", "serve.settings.weights", {"x2": "x2"}),
    Row("serve", "jobs", "... --jobs 3", "serve.settings.jobs", 3),
    Row("serve", "workers", "... --workers 99", "serve.settings.workers", 99),
    Row("serve", "keep", "... --keep 1.5h", "serve.settings.keep_seconds", 5400.0),
    Row(
        "serve", "max_upload", "... --max-upload 2MB", "serve.settings.limits.upload_bytes", 2000000
    ),
    Row("serve", "max_pixels", "... --max-pixels 5", "serve.settings.limits.pixels", 5),
    Row(
        "serve",
        "max_memory",
        "... --max-memory 2GB",
        "serve.settings.limits.memory_bytes",
        2 * 10**9,
    ),
    Row("serve", "max_disk", "... --max-disk 1TB", "serve.settings.limits.disk_bytes", 10**12),
    Row("serve", "max_time", "... --max-time 90s", "serve.settings.limits.seconds", 90.0),
    Row("serve", "max_waiting", "... --max-waiting 7", "serve.settings.limits.waiting", 7),
    Row("serve", "reserve", "... --reserve 3kB", "serve.settings.limits.reserved_bytes", 3000),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_of_a_verb_has_a_row(verb):
    command = cli.get_command(click.Context(cli), verb.name)
    options = {option.name for option in command.params if isinstance(option, click.Option)}
    assert options == {row.option for row in OPTIONS if row.verb == verb.name}


def at(heard: Heard, place: str) -> Any:
    """What has arrived there; None where nothing has."""

    def step(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return value.get(name)
        if isinstance(value, list | tuple):
            return value[int(name)] if int(name) < len(value) else None
        return getattr(value, name, None)

    return reduce(step, place.split("."), heard)


def line_of(row: Row) -> str:
    return f"{row.verb} {row.line.replace('...', NEEDED[row.verb])}"


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: f"{row.verb} {row.line} {row.place}")
def test_an_option_arrives_where_it_is_used_with_its_value(heard_of, row):
    without = at(heard_of(f"{row.verb} {NEEDED[row.verb]}"), row.place)
    arrived = at(heard_of(line_of(row)), row.place)
    assert (arrived, type(arrived)) == (row.value, type(row.value))
    assert without != row.value


@pytest.mark.parametrize("row", rows("upscale", "plan_file", OF_SCENES), ids=lambda row: row.line)
def test_a_dry_run_plans_with_the_options_of_a_run(heard_of, row):
    assert at(heard_of(f"{line_of(row)} --dry-run"), row.place) == row.value


def test_a_run_gets_the_upscaler_that_was_loaded_or_one_for_clean_scenes_to_choose_beside(heard_of):
    named = heard_of("upscale in.tif -o out.tif --weights mine")
    assert at(named, "upscale_file.weights") is API["repmamba.inference.loading.load"]
    chooser = at(heard_of("upscale in.tif -o out.tif"), "upscale_file.weights")
    assert chooser.usual is API["repmamba.scene.choice.load"]


@pytest.mark.usefixtures("heard_of")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "upscale a.tif b.tif -o out --confidence errors.tif",
            "--confidence names one file, and there are 2 inputs",
        ),
        ("upscale in.tif -o out.tif --co COMPRESS", "'COMPRESS' is not NAME=VALUE"),
        (
            "evaluate pairs --weights mine --others o.csv",
            "only drawn in the page: add --report",
        ),
        ("evaluate pairs", "There is nothing to evaluate"),
    ],
)
def test_options_that_mean_nothing_are_refused(line, said, capsys):
    assert run(line.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "rules"), [(".png", ["esr-rgb", "published"]), (".TIF", ["bands", "consistency"])]
)
def test_images_are_scored_by_the_rules_of_their_kind(heard_of, monkeypatch, suffix, rules):
    monkeypatch.setattr(PAIRS[0].files[0], "hr", Path(f"a{suffix}"))
    assert at(heard_of("evaluate pairs --weights mine"), "metrics_of.rules") == rules


def test_folders_without_lr_are_of_the_scale_that_the_weights_have(heard_of):
    assert at(heard_of("evaluate pairs --method bicubic"), "find_sets.scale") is None
    assert at(heard_of("evaluate pairs --method bicubic --weights mine"), "find_sets.scale") == 2


def test_methods_stand_in_the_order_that_the_help_states(heard_of):
    line = "evaluate pairs --method bicubic --sr theirs --weights mine --ensemble --method nearest"
    names = [method.name for method in at(heard_of(line), "evaluate.methods")]
    assert names == ["net", "net+", "theirs", "bicubic", "nearest"]
