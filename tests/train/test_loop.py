"""The loop: a run that is stopped, killed or robbed of its disk equals one that is not, step for
step.
"""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repmamba.data.pairs import find_pairs
from repmamba.data.patches import Sampler
from repmamba.data.stock import load_stock
from repmamba.errors import (
    JobChanged,
    MissingExtra,
    NoSpace,
    RecipeError,
    RepmambaWarning,
    TargetError,
    TrainingStopped,
)
from repmamba.network.checkpoint import read_checkpoint
from repmamba.network.lpfm import LPFM
from repmamba.network.training_cpu import FastLPFM
from repmamba.train import learner as learner_module
from repmamba.train.callbacks import TensorBoard
from repmamba.train.curves import read_curve
from repmamba.train.distributed import Processes
from repmamba.train.learner import Learner, parameter_groups, synchronised
from repmamba.train.loop import fit
from repmamba.train.monitor import Monitor, heading
from repmamba.train.recipe_file import read_recipe, recipe_text
from repmamba.train.run import Run
from repmamba.train.saves import newest_save, saved_steps
from repmamba.train.step import Batch

# Run by a child process: it prints when it has started, so that a kill does not only hit imports.
CHILD = """
import sys, torch
from repmamba.train.loop import fit
from repmamba.train.monitor import Monitor
from repmamba.train.recipe_file import read_recipe
torch.set_num_threads(1)
print("begun", flush=True)
fit(read_recipe(sys.argv[1]), sys.argv[2], log_every=1, device="cpu")
"""


# seconds to wait for a child: less than the test's limit, so that its output is shown
PATIENCE = 240


def started(recipe: Path, folder: Path, **environment: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(recipe), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert child.stdout is not None
    return child


def ended(child: subprocess.Popen[str]) -> str:
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, errors
    return errors


def same_weights(one: Path, other: Path, name: str = "last.safetensors") -> bool:
    a, b = (read_checkpoint(folder / name).weights for folder in (one, other))
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_writes_all_its_files(whole_run, tiny, seen):
    lines = seen(whole_run)
    assert [line[1] for line in lines if line[0] == "step"] == list(range(1, 9))
    assert [line[1] for line in lines if line[0] == "validation"] == [3, 6, 8]
    assert saved_steps(whole_run / "saves") == [6, 8]
    assert {path.name for path in (whole_run / "crops").iterdir()} == {
        f"step-0000000{step}.png" for step in (3, 6, 8)
    }
    checkpoint = read_checkpoint(whole_run / "best.safetensors")
    assert checkpoint.config == tiny().network
    assert checkpoint.training["recipe"]["name"] == "tiny"
    assert checkpoint.training["validation"]["rule"] == "esr-rgb"
    with Image.open(whole_run / "curve.png") as plot:
        assert plot.width > 100


def test_a_run_learns(tiny, tmp_path):
    result = fit(
        tiny(steps=30, validation={"every": 30}, checkpoints={"every": 30}), tmp_path, log_every=6
    )
    losses = [
        line["loss"] for line in read_curve(tmp_path / "curve.jsonl") if line["kind"] == "step"
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert result.psnr is not None
    assert result.summary().startswith("Finished after 30 steps; best ")


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_workers_changes_nothing(tiny, tmp_path, whole_run, seen, workers):
    fit(tiny(), tmp_path, log_every=1, workers=workers)
    assert seen(tmp_path) == seen(whole_run)


def test_the_image_cache_on_disk_changes_nothing(tiny, tmp_path, whole_run, seen):
    fit(tiny(data={"cache": "disk"}), tmp_path, log_every=1)
    assert seen(tmp_path) == seen(whole_run)


def test_a_run_stopped_by_the_clock_goes_on_unchanged(tiny, tmp_path, whole_run, seen):
    calls = 0
    while not (result := fit(tiny(), tmp_path, log_every=1, minutes=0)).finished:
        calls += 1
        assert result.steps == calls
        assert "Interrupted after" in result.summary()
    assert calls == 7
    assert seen(tmp_path) == seen(whole_run)
    assert same_weights(tmp_path, whole_run)
    assert same_weights(tmp_path, whole_run, "best.safetensors")


def test_losses_between_two_entries_of_the_curve_survive_a_stop(tiny, tmp_path, seen):
    fit(tiny(), tmp_path / "whole", log_every=4)
    for _ in range(3):
        fit(tiny(), tmp_path / "stopped", log_every=4, minutes=0)
    assert fit(tiny(), tmp_path / "stopped", log_every=4).finished
    assert seen(tmp_path / "stopped") == seen(tmp_path / "whole")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_killed_at_any_moment_equals_one_that_was_not(
    tiny, tiny_file, tmp_path, whole_run, seen, kills
):
    """A life lasts until a seeded step is saved, and a moment more; what is left then is done
    here.
    """
    draw = np.random.default_rng(17)
    killed = 0
    for run in range(5 * kills):
        folder = tmp_path / f"run{run}"
        for _ in range(4):
            child = started(tiny_file, folder)
            try:
                assert child.stdout.readline() == "begun\n"
                wait_until_saved(child, folder, draw.integers(0, 8))
                time.sleep(draw.uniform(0, 0.3))
            finally:
                child.kill()
                _, errors = child.communicate(timeout=PATIENCE)
            assert child.returncode in (0, -signal.SIGKILL), errors
            killed += child.returncode == -signal.SIGKILL
            if child.returncode == 0 or killed == kills:
                break
        fit(tiny(), folder, log_every=1)
        assert seen(folder) == seen(whole_run)
        assert same_weights(folder, whole_run)
        assert same_weights(folder, whole_run, "best.safetensors")
        if killed == kills:
            break
    assert killed == kills


def wait_until_saved(child: subprocess.Popen[Any], folder: Path, step: int) -> None:
    """Wait until the child has saved this step or a later one, or has ended."""
    end = time.monotonic() + PATIENCE
    while max(saved_steps(folder / "saves"), default=0) < step and child.poll() is None:
        assert time.monotonic() < end, "no save comes"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_request_to_end_saves_first(tiny, tmp_path, whole_run, seen, monkeypatch, number):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stepped = Monitor.stepped

    def asked(self: Monitor, images: int) -> None:
        stepped(self, images)
        signal.raise_signal(number)

    with monkeypatch.context() as asking:
        asking.setattr(Monitor, "stepped", asked)
        result = fit(tiny(), tmp_path, log_every=1)
    assert (result.steps, result.finished) == (1, False)
    assert saved_steps(tmp_path / "saves") == [1]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    fit(tiny(), tmp_path, log_every=1)
    assert seen(tmp_path) == seen(whole_run)


def test_a_corrupt_newest_save_gives_a_warning_and_the_same_run(
    tiny, tmp_path, whole_run, seen, caplog
):
    for _ in range(4):
        fit(tiny(), tmp_path, log_every=1, minutes=0)
    newest = tmp_path / "saves" / "step-00000004" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-1000] + bytes(1000))
    with caplog.at_level(logging.WARNING, "repmamba"):
        fit(tiny(), tmp_path, log_every=1)
    assert "step-00000004 is corrupt" in caplog.text
    assert seen(tmp_path) == seen(whole_run)


def test_a_full_disk_gives_a_warning_and_the_run_resumes_from_the_save_before(
    tiny, tmp_path, whole_run, seen, caplog, limit_file_size
):
    fit(tiny(), tmp_path, log_every=1, minutes=0)
    with (
        limit_file_size(60_000),
        caplog.at_level(logging.WARNING, "repmamba"),
        pytest.raises(NoSpace, match="step-00000008 cannot be written"),
    ):
        fit(tiny(), tmp_path, log_every=1)
    assert "step-00000002 cannot be written" in caplog.text
    assert "Training continues; earlier files are unchanged." in caplog.text
    assert "No picture of the curve: " in caplog.text
    assert "Free some space" not in caplog.text, "it was the limit on a file's size"
    assert saved_steps(tmp_path / "saves") == [1]
    assert fit(tiny(), tmp_path, log_every=1).finished
    assert seen(tmp_path) == seen(whole_run)


def test_a_failed_write_of_a_save_costs_only_that_file(tiny, tmp_path, caplog):
    """Names taken by folders stand for what the system refuses: the last weights, and the picture
    of the curve.
    """
    for name in ("last.safetensors", "curve.png"):
        (tmp_path / name / "in the way").mkdir(parents=True)
    recipe = tiny(data={"val": []}, checkpoints={"every": 2, "archive": 4})
    with (
        caplog.at_level(logging.WARNING, "repmamba"),
        pytest.raises(TargetError, match=r"last\.safetensors cannot be"),
    ):
        fit(recipe, tmp_path)
    assert "No picture of the curve: " in caplog.text
    assert saved_steps(tmp_path / "saves") == [4, 6, 8]
    assert (tmp_path / "step-00000008.safetensors").is_file()
    assert [
        line["step"] for line in read_curve(tmp_path / "curve.jsonl") if line["kind"] == "note"
    ] == [2, 4, 6, 8]


def test_archived_steps_leave_usable_weights(tiny, tmp_path):
    recipe = tiny(data={"val": []}, checkpoints={"every": 2, "archive": 4}, step={"ema": 0.9})
    assert fit(recipe, tmp_path).finished
    assert {path.name for path in tmp_path.glob("step-*")} == {
        f"step-0000000{step}.safetensors" for step in (4, 8)
    }
    archived, last = (
        read_checkpoint(tmp_path / name)
        for name in ("step-00000008.safetensors", "last.safetensors")
    )
    assert archived.training["steps"] == 8
    assert all(torch.equal(archived.weights[name], last.weights[name]) for name in last.weights)
    assert read_checkpoint(tmp_path / "step-00000004.safetensors").training["steps"] == 4


def test_a_folder_that_cannot_be_written_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TargetError, match=r"recipe\.toml cannot be written: "):
        fit(tiny(), tmp_path / "file")


def test_a_finished_run_started_again_does_nothing(tiny, whole_run):
    before = {path: path.stat().st_mtime_ns for path in whole_run.glob("*.safetensors")}
    result = fit(tiny(), whole_run, log_every=1)
    assert result.finished
    assert {path: path.stat().st_mtime_ns for path in whole_run.glob("*.safetensors")} == before


def test_a_run_logs_its_heading_before_reading_and_then_its_progress(
    tiny, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("repmamba.train.progress.LINES_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "repmamba.train"):
        fit(tiny(), tmp_path, log_every=2, cache=tmp_path / "shared")
        fit(tiny(), tmp_path)
    lines = [
        record.getMessage()
        for record in caplog.records
        if not record.getMessage().startswith("Image ")
    ]
    assert "Image 4 of 5." in caplog.messages
    assert lines[0].startswith("tiny: x2 network of ")
    assert (
        "from a bilinear start; 8 steps of 2 patches of 8x8 LR pixels, 3 of 10x10 from 5 on, loss "
        "l1" in lines[0]
    )
    assert lines[1] == "On cpu (threads: 1), in float32."
    assert lines[2].startswith("Reading 2 validation images: ")
    assert lines[3].startswith("Reading 5 training images: ")
    assert re.fullmatch(
        r"Step 3 of 8, loss 0\.\d{5}, lr 1\.00e-03, img_s \d+\.\d; \d\d:\d\d left\.", lines[7]
    )
    assert re.fullmatch(
        r"After step 3: \d+\.\d{3} dB, SSIM 0\.\d{4} \(esr-rgb, 2 images\); the best so far\.",
        lines[8],
    )
    assert any(line.startswith("Continuing after step 8, in float32, from ") for line in lines)
    assert len(list((tmp_path / "shared").iterdir())) == 3


def test_a_folder_of_another_recipe_is_refused_before_anything_is_read(
    tiny, whole_run, monkeypatch
):
    monkeypatch.setattr(
        "repmamba.train.loop.open_stock", lambda *_, **__: pytest.fail("images were read")
    )
    with pytest.raises(JobChanged, match=r"optimiser.lr: 0.001 -> 0.5"):
        fit(tiny(optimiser={"lr": 0.5}), whole_run)


CONSTANT = {"kind": "constant", "warmup": 2}


def test_a_constant_run_can_be_ended_later_by_a_descent_as_if_planned(tiny, tmp_path, seen):
    planned = tiny(steps=8, schedule=CONSTANT | {"descent": 4, "floor": 0.1})
    fit(planned, tmp_path / "planned", log_every=1)
    fit(tiny(steps=2, schedule=CONSTANT), tmp_path / "moved", log_every=1)
    longer = fit(tiny(steps=4, schedule=CONSTANT), tmp_path / "moved", log_every=1)
    assert (longer.steps, longer.finished) == (4, True)
    fit(planned, tmp_path / "moved", log_every=1)
    # Each end has its own validation; the steps are those of the planned run.
    steps = [line for line in seen(tmp_path / "moved") if line[0] == "step"]
    assert steps == [line for line in seen(tmp_path / "planned") if line[0] == "step"]
    rates = [line[4] for line in steps]
    assert rates[2:5] == [1e-3] * 3
    assert rates[5:] == pytest.approx(
        [1e-3 * (0.1 + 0.9 * (1 - (t / 4) ** 0.5)) for t in (1, 2, 3)]
    )


def test_an_end_that_steps_depend_on_is_not_moved(tiny, tmp_path):
    descending = tiny(steps=6, schedule=CONSTANT | {"descent": 4})
    fit(descending, tmp_path)
    with pytest.raises(JobChanged, match=r"\(steps: 6 -> 9\), with 6 steps done.*start.weights"):
        fit(tiny(steps=9, schedule=CONSTANT | {"descent": 4}), tmp_path)
    with pytest.raises(JobChanged, match=r"seed: 1234 -> 5; steps: 6 -> 9"):
        fit(tiny(steps=9, seed=5, schedule=CONSTANT | {"descent": 4}), tmp_path)
    assert read_recipe(tmp_path / "recipe.toml") == descending


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"optimiser": {"lr": 1e20}, "schedule": {"kind": "constant", "warmup": 5}}, "the loss is"),
        (
            {"optimiser": {"lr": 0.2}, "divergence": 1.2, "steps": 130},
            "has grown to more than 1.2 times its lowest",
        ),
    ],
    ids=["not finite", "diverging"],
)
def test_a_stopped_run_names_the_step_and_the_last_good_save(
    tiny, tmp_path, monkeypatch, changes, what
):
    monkeypatch.setattr("repmamba.train.run.SETTLING", 4)
    recipe = tiny(
        **({"checkpoints": {"every": 1}, "data": {"val": []}, "step": {"clip": 0.0}} | changes)
    )
    with pytest.raises(
        TrainingStopped, match=r"Stopped at step \d+: .*the last good save is .*step-\d+"
    ) as stopped:
        fit(recipe, tmp_path)
    assert what in str(stopped.value)
    _, state = newest_save(tmp_path / "saves")
    assert all(tensor.isfinite().all() for tensor in state["learner"]["network"].values())


def test_only_the_first_process_names_the_last_good_save(tiny, tmp_path):
    for rank, said in (
        (0, "there is no good save in "),
        (1, "The first process prints the last good save"),
    ):
        run = Run(tiny(), tmp_path, None, Processes(rank, 2))
        assert said in run._fault(7, "the loss is nan")


def test_progress_reports_images_read_and_every_step(tiny, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("repmamba.train.progress.LINES_EVERY", 0.0)
    told = []
    with caplog.at_level(logging.INFO, "repmamba.train"):
        fit(tiny(steps=6), tmp_path, log_every=2, progress=told.append)
    assert [(one.what, one.done, one.total) for one in told] == [
        *(("Reading validation images", done, 2) for done in (1, 2)),
        *(("Reading training images", done, 5) for done in (1, 2, 3, 4, 5)),
        *(("tiny", done, 6) for done in (1, 2, 3, 4, 5, 6)),
    ]
    assert told[-1].values.keys() == {"loss", "lr", "img_s", "psnr"}
    assert told[-1].seconds_left == 0
    assert not any(record.getMessage().startswith(("Step", "Image")) for record in caplog.records)


@pytest.mark.parametrize(
    ("batch_norm", "said"),
    [
        ("process", "of each one alone"),
        ("synchronised", "over all of them"),
        ("frozen", "with frozen statistics"),
    ],
)
def test_several_processes_log_how_batch_norm_is_computed(tiny, batch_norm, said):
    recipe = tiny(step={"batch_norm": batch_norm})
    assert (
        f"one of 2 processes, BatchNorm {said})"
        in heading(recipe, torch.device("cpu"), Processes(0, 2))[1]
    )
    assert "BatchNorm" not in heading(recipe, torch.device("cpu"), Processes())[1]


def test_a_run_too_short_for_its_recipe_warns_before_it_begins(tiny, tmp_path):
    with pytest.warns(
        RepmambaWarning, match=r"ends after 4 steps, before .*data.patches.start: 5; change"
    ):
        fit(tiny(steps=4, data={"val": []}), tmp_path)


def test_the_weight_of_a_loss_is_shown_as_it_is(tiny):
    losses = [{"name": "l1", "weight": 0.1}, {"name": "fft"}]
    first, _ = heading(tiny(losses=losses), torch.device("cpu"), Processes())
    assert "loss 0.1 l1 + fft, " in first


def test_the_surplus_step_comes_once_an_epoch(tiny, tmp_path):
    def updates(surplus: bool) -> int:
        data = {"patches": [{"size": 8, "batch": 2}], "short_batch": "keep", "val": []}
        folder = tmp_path / str(surplus)
        fit(
            tiny(
                unit="epoch",
                steps=2,
                data=data,
                step={"surplus_step": surplus},
                checkpoints={"every": 1},
            ),
            folder,
        )
        state = newest_save(folder / "saves")[1]["learner"]["optimiser"]["state"]
        return int(state[0]["step"])

    assert updates(surplus=False) == 6
    assert updates(surplus=True) == 8


def test_a_run_begins_from_weights_and_a_running_mean(tiny, tmp_path, whole_run):
    start = {
        "weights": str(whole_run / "last.safetensors"),
        "ema": str(whole_run / "best.safetensors"),
    }
    learner = Learner(tiny(start=start), torch.device("cpu"), Processes())
    last, best = (read_checkpoint(path).weights for path in start.values())
    assert all(torch.equal(learner.network.state_dict()[name], last[name]) for name in last)
    assert all(torch.equal(learner.best_network.state_dict()[name], best[name]) for name in best)


def test_a_learner_on_a_cpu_has_fast_blocks_unless_its_network_is_compiled(tiny):
    for compiled, expected in ((False, FastLPFM), (True, LPFM)):
        learner = Learner(tiny(step={"compile": compiled}), torch.device("cpu"), Processes())
        assert type(learner.network.groups[0].blocks[0]) is expected
        assert type(learner.best_network.groups[0].blocks[0]) is LPFM


def test_only_matrices_decay_if_the_recipe_says_so(tiny):
    network = Learner(tiny(), torch.device("cpu"), Processes()).network
    everything = parameter_groups(network, tiny())
    matrices, others = parameter_groups(network, tiny(optimiser={"decay": "matrices"}))
    assert len(everything) == 1
    assert len(matrices["params"]) + len(others["params"]) == len(everything[0]["params"])
    assert others["weight_decay"] == 0
    assert all(parameter.dim() >= 2 for parameter in matrices["params"])
    assert any(
        parameter is network.groups[0].blocks[0].cssp.m8.ss2d.A_log
        for parameter in others["params"]
    )


def test_bf16_is_only_used_if_a_trial_shows_it_faster(tiny, tmp_path, monkeypatch, caplog):
    recipe = tiny(step={"precision": "bf16"}, steps=2, data={"val": []})
    caplog.set_level(logging.WARNING, "repmamba")
    for faster, chosen in ((False, "float32"), (True, "bf16")):
        monkeypatch.setattr(learner_module, "bf16_is_faster", lambda *_, faster=faster: faster)
        fit(recipe, tmp_path / chosen)
        assert newest_save(tmp_path / chosen / "saves")[1]["learner"]["precision"] == chosen
    assert "training in float32" in caplog.text
    monkeypatch.setattr(
        learner_module, "bf16_is_faster", lambda *_: pytest.fail("a run that goes on tries nothing")
    )
    fit(recipe, tmp_path / "bf16")


INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.long,
        pytest.mark.skipif(not shutil.which("g++"), reason="this system has no compiler of C++"),
    ],
)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_compiled_network_takes_the_same_steps_and_keeps_its_names(tiny, monkeypatch, backend):
    """Traced by Dynamo and AOTAutograd, as on any device; Inductor takes minutes."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=backend))
    draw = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand(2, 3, side, side, generator=draw) for side in (8, 16))
    seen, names = [], []
    for compile_it in (False, True):
        learner = Learner(tiny(step={"compile": compile_it}), torch.device("cpu"), Processes())
        learner.precision = "float32"
        seen.append([float(learner.step(Batch(lr, hr), 1e-3).loss) for _ in range(2)])
        names.append(list(learner.state()["network"]))
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert names[1] == names[0]
    assert not torch._dynamo.utils.counters["graph_break"]


def test_synchronised_statistics_change_no_name_and_no_value_and_need_gpus(tiny):
    network = Learner(tiny(), torch.device("cpu"), Processes()).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network.eval()(lr := torch.rand(1, 3, 8, 8))
    # the conversion itself runs on any device
    converted = synchronised(network, torch.device("cuda"))
    norms = [
        module
        for module in converted.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    assert all(isinstance(module, torch.nn.SyncBatchNorm) for module in norms)
    after = converted.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(converted.eval()(lr), expected)
    with pytest.raises(RecipeError, match=r"step\.batch_norm is synchronised"):
        synchronised(network, torch.device("cpu"))


def test_frozen_statistics_stay_those_of_the_start(tiny, whole_run, tmp_path):
    start = whole_run / "last.safetensors"
    recipe = tiny(step={"batch_norm": "frozen", "ema": 0.0}, start={"weights": str(start)})
    assert fit(recipe, tmp_path / "run", device="cpu").finished
    found, before = (
        read_checkpoint(path).weights for path in (tmp_path / "run" / "last.safetensors", start)
    )
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(found[name], before[name]) for name in statistics)
    assert not torch.equal(
        found["groups.0.blocks.0.ffn.fc1.weight"], before["groups.0.blocks.0.ffn.fc1.weight"]
    )


def test_a_recipe_without_images_is_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.train is empty"):
        fit(tiny(data={"train": []}), tmp_path)


def test_tensorboard_is_written_on_request_and_missing_in_one_line(tiny, tmp_path, monkeypatch):
    recipe = tiny(steps=2, data={"val": []})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with monkeypatch.context() as patched:
        patched.setattr(
            "repmamba.train.loop.training_files",
            lambda recipe: pytest.fail("images were looked for"),
        )
        with pytest.raises(MissingExtra, match=r"pip install 'repmamba\[train\]'"):
            fit(recipe, tmp_path / "without", tensorboard=True)
    assert not (tmp_path / "without").exists()
    monkeypatch.undo()
    fit(recipe, tmp_path / "with", tensorboard=True)
    assert list((tmp_path / "with").glob("events.out.tfevents.*"))


def test_tensorboard_has_no_step_twice_when_a_run_goes_on_from_an_earlier_one(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # killed at step 6, its last save was of step 3
    for begun, last, loss in ((0, 6, 1.0), (3, 5, 2.0)):
        told = {"tell": lambda reached: None, "callbacks": [TensorBoard()]}
        monitor = Monitor(tmp_path, tiny(), begun, writes=True, **told)
        with monitor:
            for step in range(begun + 1, last + 1):
                monitor.log(step, loss, 0.0, 0.0)
        time.sleep(1)  # files are read in the order of their names, which have only seconds
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("step/loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]


def test_a_run_without_matplotlib_does_not_fail(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert fit(tiny(steps=2, data={"val": []}), tmp_path).finished
    assert not (tmp_path / "curve.png").exists()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_two_processes_take_the_step_of_the_mean_of_their_halves(tiny, tmp_path):
    """Of the samples that one process would see, each takes every second; the gradient is the mean
    of theirs.
    """
    recipe = tiny(
        steps=1,
        data={"patches": [{"size": 8, "batch": 5}], "val": []},
        step={"ema": 0.0, "clip": 0.0},
    )
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_text(recipe))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pair = [
        started(file, tmp_path / "run", RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in (0, 1)
    ]
    for child in pair:
        ended(child)

    stock = load_stock(find_pairs(Path(recipe.data.train[0])), 2)
    samples = Sampler(recipe.seed, stock.sizes, recipe.data.patches, recipe.data.augment).samples(0)
    gradients, losses = [], []
    for share in (samples[::2], samples[1::2]):
        alone = Learner(recipe, torch.device("cpu"), Processes())
        loss = alone.loss(alone.network((batch := Batch(*stock.batch(share, 8))).lr), batch.hr)
        loss.backward()
        gradients.append(
            [parameter.grad * len(share) / 5 for parameter in alone.network.parameters()]
        )
        losses.append(float(loss.detach()) * len(share) / 5)
    expected = Learner(recipe, torch.device("cpu"), Processes())
    for parameter, *grads in zip(expected.network.parameters(), *gradients, strict=True):
        parameter.grad = sum(grads)
    for group in expected.optimiser.param_groups:
        group["lr"] = recipe.rate(0)
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in expected.network.parameters()]
    )
    expected.optimiser.step()

    line = next(read_curve(tmp_path / "run" / "curve.jsonl"))
    assert line["loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    state = newest_save(tmp_path / "run" / "saves")[1]["learner"]["network"]
    # AdamW's first step is the sign of the gradient: tiny gradients cannot be compared.
    for (name, parameter), grad in zip(
        expected.network.named_parameters(),
        (p.grad for p in expected.network.parameters()),
        strict=True,
    ):
        clear = grad.abs() > 1e-5
        torch.testing.assert_close(state[name][clear], parameter.detach()[clear], atol=2e-5, rtol=0)
    assert json.loads((tmp_path / "run" / "saves" / "step-00000001" / "digests.json").read_text())


@pytest.mark.long
def test_a_torchrun_run_can_be_resumed_after_one_process_was_killed(tiny, tmp_path, seen):
    """By torchrun's own command; when one process is killed, torchrun ends the others."""
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_text(tiny(steps=30, validation={"every": 15})))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    status, lines = ended_by_torchrun(file, whole)
    assert status == 0, lines
    status, lines = ended_by_torchrun(file, stopped, kill_after=4)
    assert status, lines
    assert saved_steps(stopped / "saves")[-1] < 30
    status, lines = ended_by_torchrun(file, stopped)
    assert status == 0, lines
    assert seen(stopped) == seen(whole)
    assert same_weights(stopped, whole)


def ended_by_torchrun(recipe: Path, folder: Path, kill_after: int | None = None) -> tuple[int, str]:
    """The exit status and the lines of a run in two processes; after a save of that step, one of
    them is killed.
    """
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    verb = [
        "-m",
        "repmamba.cli",
        "train",
        str(recipe),
        "-o",
        str(folder),
        "--log-every",
        "1",
        "--quiet",
    ]
    # Lines go into a file: a full pipe that nobody reads would block the process.
    lines = folder.with_suffix(".lines")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    with (
        lines.open("w") as file,
        subprocess.Popen([*launcher, *verb], stderr=file, env=environment) as run,
    ):
        try:
            if kill_after is not None:
                wait_until_saved(run, folder, kill_after)
                os.kill(children(run.pid)[0], signal.SIGKILL)
            run.wait(timeout=PATIENCE)
        except (subprocess.TimeoutExpired, AssertionError) as late:
            # On a hang, SIGABRT makes Python's fault handler print every thread's stack.
            for process in [*children(run.pid), run.pid]:
                os.kill(process, signal.SIGABRT)
                time.sleep(1)
            pytest.fail(f"{late}\n{lines.read_text()}")
        finally:
            run.kill()
    return run.returncode, lines.read_text()


def children(parent: int) -> list[int]:
    found = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(int(entry.name) for entry in found if f"\nPPid:\t{parent}\n" in status_of(entry))


def status_of(process: Path) -> str:
    try:
        return (process / "status").read_text()
    except OSError:  # it has ended meanwhile
        return ""
