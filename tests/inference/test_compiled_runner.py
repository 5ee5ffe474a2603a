"""The compiled passes of the fused network against torch operations, the reference."""

import ctypes
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor, nn

import repmamba.kernels
from repmamba import load
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.inference import compiled_runner as runners
from repmamba.inference.compiled_runner import CompiledRunner, compiled_runner
from repmamba.inference.packed_weights import Packing
from repmamba.inference.pass_plan import ARGUMENTS, PassPlan
from repmamba.inference.runners import TorchRunner
from repmamba.kernels.library import VARIABLE as LEVEL
from repmamba.kernels.library import levels, library
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import FusedRMB, fuse
from repmamba.scan.backends import VARIABLE as SCAN

CONFIGS = (
    NetworkConfig(depths=(1,)),
    NetworkConfig(depths=(1,), scale=3, mlp_ratio=1.5),
    NetworkConfig(depths=(1,), cssp=False, scale=2),
    NetworkConfig(depths=(1,), mlp_ratio=1.2),  # 76 hidden channels do not fill whole registers
    NetworkConfig(depths=(2, 1), patch_norm=False),
    NetworkConfig(depths=(1,), scale=1, upsampler="none"),
    NetworkConfig(depths=(1,), resi_connection="3conv"),
    NetworkConfig(depths=(1,), upsampler="nearest+conv", in_chans=4),
    NetworkConfig(depths=(1,), mlp_ratio=16),  # more inputs of a product than pairs support
)
MOST_SECONDS = 60.0  # for another thread, which never takes a second

pairs_only = pytest.mark.skipif(
    not library().pairs, reason="this processor has no products of bfloat16"
)


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def runner_of(network: nn.Module, precision: torch.dtype = torch.float32) -> CompiledRunner:
    runner = compiled_runner(network, precision)
    assert isinstance(runner, CompiledRunner)
    return runner


def by_torch(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(image)
    return result


def relative_difference(result: Tensor, expected: Tensor) -> float:
    assert result.isfinite().all()
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


@settings(max_examples=30)
@given(
    config=sampled_from(CONFIGS),
    seed=integers(0, 1 << 30),
    batch=integers(1, 3),
    height=integers(1, 19),
    # around the sizes in which a convolution processes a row
    width=integers(1, 19) | integers(120, 140),
)
def test_compiled_equals_torch(shaken, config, seed, batch, height, width):
    fused = fuse(shaken(config, seed=seed))
    image = torch.rand(
        batch, config.in_chans, height, width, generator=torch.Generator().manual_seed(seed)
    )
    assert relative_difference(runner_of(fused).run(image), by_torch(fused, image)) < 1e-5


ONE_LEVEL = """
import sys, torch
from repmamba.inference.compiled_runner import compiled_runner
from repmamba.kernels.library import library

torch.set_num_threads(1)
cases = torch.load(sys.argv[1], weights_only=False)
results = [compiled_runner(network, torch.float32).run(image) for network, image in cases]
torch.save((library().level, results), sys.argv[1])
"""


@pytest.mark.parametrize("level", levels(library().handle.features()))
def test_each_level_of_the_processor_equals_torch(shaken, tmp_path, level):
    """In one process each, because a process chooses its level once."""
    networks = [fuse(shaken(config)) for config in CONFIGS]
    cases = [
        (network, torch.rand(batch, network.config.in_chans, *size))
        for network in networks
        for batch, size in ((1, (6, 10)), (2, (19, 133)))
    ]
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-c", ONE_LEVEL, str(tmp_path / "cases.pt")]
    subprocess.run(command, env=os.environ | {LEVEL: level}, check=True, timeout=10 * MOST_SECONDS)
    chosen, results = torch.load(tmp_path / "cases.pt")
    assert chosen == level
    for (network, image), result in zip(cases, results, strict=True):
        assert relative_difference(result, by_torch(network, image)) < 1e-5


def test_the_arguments_are_those_of_the_header():
    header = (Path(repmamba.kernels.__file__).parent / "inference.h").read_text()
    for kernel, arguments in ARGUMENTS.items():
        name = kernel.title().replace("_", "")
        body = re.search(rf"struct {name} {{(.*?)\n}};", header, re.DOTALL)
        assert body is not None
        declared = re.findall(r"[\w*, ]+;", re.sub(r"//.*", "", body[1]))
        names = [
            re.findall(r"\w+", part)[-1]
            for line in declared
            for part in line.rstrip(";").split(",")
        ]
        assert [field for field, _ in arguments._fields_] == names


def test_the_result_does_not_depend_on_the_number_of_threads(shaken):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    image = torch.rand(3, 3, 70, 34)  # three threads share its rows within images
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(runner.run(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_calls_from_several_threads_do_not_interfere(shaken):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    images = [torch.rand(1, 3, size, 20) for size in (12, 30, 22, 8, 12)]
    expected = [runner.run(image) for image in images]
    wrong = []

    def check(image: Tensor, right: Tensor) -> None:
        wrong.extend(image.shape for _ in range(5) if not torch.equal(runner.run(image), right))

    threads = [
        threading.Thread(target=check, args=pair) for pair in zip(images, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(MOST_SECONDS)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_buffers_kept_between_calls_leak_nothing(shaken):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    image = torch.rand(1, 3, 6, 10)
    expected = runner.run(image)
    for shape in ((2, 3, 40, 30), image.shape):
        runner.run(torch.full(shape, torch.nan))
        assert torch.equal(runner.run(image), expected)


def test_weights_that_change_later_change_nothing(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    runner, image = runner_of(fused), torch.rand(1, 3, 6, 10)
    before = runner.run(image)
    with torch.no_grad():
        for values in [*fused.parameters(), *fused.buffers()]:
            values.mul_(0.9)
    assert torch.equal(runner.run(image), before)
    runner._kept.clear()  # nor a plan that is written later
    assert torch.equal(runner.run(image), before)
    assert relative_difference(runner_of(fused).run(image), by_torch(fused, image)) < 1e-5


def test_an_image_with_a_lazy_negative_bit_is_negated(shaken):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    image = torch.complex(torch.zeros(1, 3, 4, 6), torch.rand(1, 3, 4, 6)).conj().imag
    assert image.is_neg()
    assert torch.equal(runner.run(image), runner.run(image.resolve_neg()))


@pytest.mark.parametrize("default", ["type", "device"])
def test_default_dtype_and_device_of_torch_change_nothing(shaken, default):
    fused, image = fuse(shaken(CONFIGS[0])), torch.rand(1, 3, 4, 6)
    torch.set_default_dtype(torch.float64 if default == "type" else torch.float32)
    try:
        with torch.device("meta" if default == "device" else "cpu"):
            result = runner_of(fused).run(image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result, runner_of(fused).run(image))


def test_no_torch_operation_runs_beside_the_passes(shaken):
    """They would start torch's threads, which spin on the cores of the passes afterwards."""
    runner, image = runner_of(fuse(shaken(CONFIGS[0]))), torch.rand(1, 3, 32, 32)
    runner.run(image)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        runner.run(image)
    views = {
        "alias",
        "as_strided",
        "detach",
        "empty",
        "permute",
        "resolve_conj",
        "resolve_neg",
        "slice",
        "to",
    }
    assert {event.name.removeprefix("aten::") for event in profile.events()} <= views


def test_a_call_finishes_without_other_threads(shaken, monkeypatch):
    runner, image = runner_of(fuse(shaken(CONFIGS[0]))), torch.rand(1, 3, 70, 70)
    expected = runner.run(image)
    torch.set_num_threads(3)
    monkeypatch.setattr("repmamba.scan.threads._pool", lambda process: Busy())
    assert torch.equal(runner.run(image), expected)


class Busy:
    """A pool that never runs its work."""

    def submit(self, function: Callable[..., None]) -> None:
        """Forget the function."""


def test_a_late_thread_finds_nothing_to_do(shaken, monkeypatch):
    runner, image = runner_of(fuse(shaken(CONFIGS[0]))), torch.rand(1, 3, 70, 70)
    expected, late = runner.run(image), Late()
    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr("repmamba.scan.threads._pool", lambda process: late)
        result = runner.run(image)
        runner.run(torch.zeros(1, 3, 70, 70))
    del runner
    gc.collect()
    for function in late.waiting:
        function()
    assert len(late.waiting) == 2
    assert torch.equal(result, expected)


class Late:
    """A pool that runs its work later."""

    def __init__(self) -> None:
        self.waiting: list[Callable[..., None]] = []

    def submit(self, function: Callable[..., None]) -> None:
        """Keep the function."""
        self.waiting.append(function)


@pairs_only
@pytest.mark.parametrize("config", CONFIGS)
def test_in_bfloat16_products_are_rounded_and_nothing_else(shaken, config):
    fused, image = fuse(shaken(config)), torch.rand(1, config.in_chans, 20, 136)
    expected = by_torch(fused, image)
    with torch.autocast("cpu", torch.bfloat16):
        usual = relative_difference(by_torch(fused, image).float(), expected)
    result = runner_of(fused, torch.bfloat16).run(image)
    assert result.dtype == torch.float32
    assert 1e-4 < relative_difference(result, expected) < usual < 2e-2


@pairs_only
def test_bfloat16_does_not_depend_on_the_number_of_threads_either(shaken):
    runner, image = runner_of(fuse(shaken(CONFIGS[0])), torch.bfloat16), torch.rand(2, 3, 70, 34)
    expected = runner.run(image)
    torch.set_num_threads(3)
    assert torch.equal(runner.run(image), expected)


def map_at(address: int, pixels: int, channels: int, kind: type = ctypes.c_float) -> Tensor:
    """A copy of a map of a plan."""
    array = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), (pixels, channels))
    return torch.from_numpy(array.copy())


@pairs_only
@pytest.mark.parametrize("size", [(6, 6), (20, 34), (4, 140)])
def test_a_product_in_bfloat16_is_that_of_the_rounded_factors(shaken, size):
    """The projection for the scan, whose factors stay in a map."""
    fused = fuse(shaken(CONFIGS[0]))
    runner = runner_of(fused, torch.bfloat16)
    image = torch.rand(1, 3, *size)
    runner.run(image)
    plan = runner._plan((*image.shape, 1))
    rmb = fused.groups[0].blocks[0].cssp.m64
    stage = [place for place, stage in enumerate(plan.stages) if stage.kernel.startswith("front")][
        -1
    ]
    plan.compute(stage, stage + 1)
    arguments, pixels = plan.stages[stage].arguments, size[0] * size[1] // 4
    pooled = map_at(arguments.pooled, pixels, 64)
    projected = map_at(arguments.projected, pixels, arguments.projections)[:, : len(rmb.x_proj)]
    expected = pooled.bfloat16().double() @ rmb.x_proj.T.bfloat16().double()
    assert relative_difference(projected.double(), expected) < 1e-6


@pytest.mark.skipif(not library().amx, reason="this processor has no AMX")
@pytest.mark.parametrize("size", [(2, 2), (4, 38), (6, 64), (2, 98)])
def test_a_convolution_by_amx_is_that_of_the_rounded_factors(shaken, size):
    fused = fuse(shaken(CONFIGS[0]))
    runner = runner_of(fused, torch.bfloat16)
    image = torch.rand(1, 3, *size)
    runner.run(image)
    plan = runner._plan((*image.shape, 1))
    stage = next(
        place for place, stage in enumerate(plan.stages) if stage.kernel == "convolution_amx"
    )
    x, skip = (torch.randn(size[0] * size[1], 64) for _ in range(2))
    arguments = plan.stages[stage].arguments
    arguments.x, arguments.skip = x.data_ptr(), skip.data_ptr()
    plan.compute(stage, stage + 1)
    conv = fused.groups[0].conv
    as_map = x.T.reshape(1, 64, *size).bfloat16().double()
    exact = nn.functional.conv2d(
        as_map, conv.weight.bfloat16().double(), conv.bias.double(), padding=1
    )
    expected = exact[0].flatten(1).T + skip
    assert relative_difference(map_at(arguments.result, *x.shape).double(), expected) < 1e-6


@pytest.mark.parametrize("value", [-100.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 100.0])
def test_gelu_and_silu_are_exact_also_far_from_zero(shaken, value):
    """Through a ConvFFN and a gate whose products give `value` everywhere."""
    fused = fuse(shaken(CONFIGS[0]))
    block = fused.groups[0].blocks[0]
    rmb: FusedRMB = block.cssp.m64
    with torch.no_grad():
        for layer in (block.ffn.fc1, rmb.in_z):
            layer.weight.zero_()
            layer.bias.fill_(value)
    image = torch.rand(1, 3, 6, 10)
    assert relative_difference(runner_of(fused).run(image), by_torch(fused, image)) < 1e-5


def test_plans_of_few_shapes_are_kept_and_many_maps_are_not(shaken, monkeypatch):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    for side in (8, 10, 12, 8, 10):
        runner.run(torch.rand(1, 3, side, side))
    assert [plan.key[2] for plan in runner._kept] == [12, 8, 10]
    monkeypatch.setattr(runners, "KEPT", 1000)
    runner.run(torch.rand(1, 3, 8, 8))
    assert all(plan.key[2] != 8 for plan in runner._kept)


def test_memory_of_one_large_shape_is_released_before_another_is_allocated(shaken, monkeypatch):
    runner, alive, made = runner_of(fuse(shaken(CONFIGS[0]))), [], []

    class Noted(PassPlan):
        def __init__(self, *arguments):
            alive.append(sum(plan() is not None for plan in made))
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(runners, "PassPlan", Noted)
    monkeypatch.setattr(runners, "KEPT_BESIDE", 1000)
    for side in (8, 10, 10, 8):
        runner.run(torch.rand(1, 3, side, side))
    assert alive == [0, 0, 0]


def test_maps_go_with_their_runner(shaken):
    runner = runner_of(fuse(shaken(CONFIGS[0])))
    runner.run(torch.rand(1, 3, 6, 10))
    there = weakref.ref(runner._kept[0])
    del runner
    gc.collect()
    assert there() is None


@pytest.mark.parametrize(
    "precision", [torch.float32, pytest.param(torch.bfloat16, marks=pairs_only)], ids=str
)
def test_a_runner_can_be_pickled_to_other_processes(shaken, precision):
    runner, image = runner_of(fuse(shaken(CONFIGS[0])), precision), torch.rand(1, 3, 6, 10)
    expected = runner.run(image)
    assert torch.equal(pickle.loads(pickle.dumps(runner)).run(image), expected)


# As `load` makes it


def test_load_uses_compiled_passes_on_a_cpu_unless_options_exclude_them(small_weights, monkeypatch):
    assert isinstance(load(small_weights, device="cpu").runner, CompiledRunner)
    for how in ({"fuse": False}, {"backend": "chunked"}):
        assert isinstance(load(small_weights, device="cpu", **how).runner, TorchRunner)
    with monkeypatch.context() as patch:
        patch.setenv(SCAN, "chunked")
        assert isinstance(load(small_weights, device="cpu").runner, TorchRunner)
    reduced = load(small_weights, device="cpu", precision="bfloat16").runner
    assert isinstance(reduced, CompiledRunner if library().pairs else TorchRunner)


def test_without_bfloat16_products_torch_computes(small_weights, monkeypatch):
    without = replace(library(), pairs=False, amx=False)
    monkeypatch.setattr(runners, "library", lambda: without)
    assert isinstance(load(small_weights, device="cpu", precision="bfloat16").runner, TorchRunner)
    assert isinstance(load(small_weights, device="cpu").runner, CompiledRunner)


def test_the_network_is_the_runner_and_the_module_is_torch(small_weights):
    upscaler, image = load(small_weights, device="cpu"), torch.rand(2, 3, 7, 10)
    result = upscaler.network(image)
    assert torch.equal(result, upscaler.run(image))
    assert relative_difference(result, by_torch(upscaler.module, image)) < 1e-5


def test_the_network_refuses_what_it_cannot_compute(small_weights):
    network = load(small_weights, device="cpu").network
    with pytest.raises(ShapeMismatch, match=r"\(batch, 3, height, width\)"):
        network(torch.rand(1, 4, 6, 6))
    with pytest.raises(UsageError, match=r"torch\.float64 on cpu"):
        network(torch.rand(1, 3, 6, 6, dtype=torch.float64))
    with pytest.raises(UsageError, match="requires gradients"):
        network(torch.rand(1, 3, 6, 6).requires_grad_())
    with torch.no_grad():
        network(torch.rand(1, 3, 6, 6).requires_grad_())


def test_panels_hold_every_weight_once():
    weights = np.arange(2 * 5 * 200, dtype=np.float32).reshape(2, 5, 200)
    packed = Packing("").matrix(weights)
    assert packed.shape == (2, 1000)
    assert sorted(packed[1]) == sorted(weights[1].ravel())
    panel = library().panel
    assert (packed[1, : 5 * panel].reshape(5, panel) == weights[1, :, :panel]).all()
