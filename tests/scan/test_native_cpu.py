"""What holds for the compiled scan only: threads, torch.compile and torch.export, processes,
levels, precision.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from repmamba.errors import BackendFallback
from repmamba.kernels.library import VARIABLE, levels, library
from repmamba.scan import backends, native_cpu, threads
from repmamba.scan.selective import scan_map


def value_and_gradients(inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = scan_map(*leaves, backend="native")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.fixture
def many_pixels(map_case) -> list[Tensor]:
    """Enough pixels for several threads."""
    inputs = [x.float() for x in map_case(3, 24, 40, 41, 1)]
    assert inputs[0].numel() > native_cpu.WORK_FOR_THREADS
    return inputs


def test_any_number_of_threads_gives_the_same_bits_and_is_not_changed(many_pixels):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(many_pixels))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_python_threads_at_once_do_not_disturb_each_other(many_pixels):
    expected = value_and_gradients(many_pixels)
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(value_and_gradients, [many_pixels] * 8):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_with_one_torch_thread_no_other_thread_is_used(many_pixels, one_thread, monkeypatch):
    monkeypatch.setattr(threads, "_pool", lambda process: pytest.fail("a pool was started"))
    value_and_gradients(many_pixels)


@pytest.mark.parametrize("backend", [None, "native"])
def test_the_gradients_of_float64_maps_are_the_numerical_ones_by_another_backend(backend, map_case):
    inputs = [x.requires_grad_() for x in map_case(2, 3, 2, 3, 1)]
    fallback = (
        pytest.warns(BackendFallback, match="'native' does not run on cpu in float64")
        if backend
        else nullcontext()
    )
    backends.warn_once.cache_clear()
    with fallback:
        assert torch.autograd.gradcheck(
            lambda *x: scan_map(*x, backend=backend), inputs, fast_mode=True
        )


class Map(nn.Module):
    """The operator as a network contains it."""

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        self.scan_parameters = nn.ParameterList([nn.Parameter(x) for x in parameters])

    def forward(self, p: Tensor, projected: Tensor) -> Tensor:
        return scan_map(2 * p, projected, *self.scan_parameters, backend="native")


def test_the_whole_graph_compiles_and_gives_the_same_values_and_gradients(map_case):
    p, projected, *parameters = (x.float() for x in map_case(2, 8, 5, 6, 1))
    network = Map(parameters)
    p.requires_grad_()
    plain = network(p, projected)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(p, projected)
    assert torch.equal(plain, compiled)
    leaves = [p, *network.parameters()]
    for a, b in zip(
        torch.autograd.grad(plain.square().sum(), leaves),
        torch.autograd.grad(compiled.square().sum(), leaves),
        strict=True,
    ):
        assert torch.equal(a, b)


FIRST_USE_IN_AN_EXPORT = """
import torch, warnings
from repmamba.errors import BackendFallback
from repmamba.scan.selective import scan_map

warnings.simplefilter("error", BackendFallback)

class Map(torch.nn.Module):
    def forward(self, p, projected):
        return scan_map(p, projected, weight, bias, A, D, backend="native")

def maps(height, width):
    return torch.rand(1, 8, height, width), torch.rand(1, 132, height, width)

weight, bias, A, D = torch.rand(4, 8, 1), torch.rand(4, 8), -torch.rand(32, 16), torch.rand(32)
sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
program = torch.export.export(Map(), maps(5, 6), dynamic_shapes={"p": sides, "projected": sides})
assert torch.ops.repmamba.scan_map.default in {node.target for node in program.graph.nodes}
for size in ((5, 6), (9, 4), (1, 1)):
    inputs = maps(*size)
    assert torch.equal(program.module()(*inputs), Map()(*inputs))
"""


def test_an_exported_program_contains_the_operator_and_works_for_other_sizes():
    """In a fresh process: the kernels are first loaded while torch.export traces."""
    process = subprocess.run(
        [sys.executable, "-c", FIRST_USE_IN_AN_EXPORT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("operator", ["map", "sequences"])
def test_the_operators_pass_opcheck(operator, map_case):
    """Schema, fake tensors and autograd registration, as torch.library.opcheck tests them."""
    torch.manual_seed(0)
    if operator == "map":
        called, inputs = torch.ops.repmamba.scan_map, [x.float() for x in map_case(2, 8, 3, 4, 1)]
    else:
        u, B = torch.rand(2, 6, 5), torch.randn(2, 3, 16, 5)
        called, inputs = (
            torch.ops.repmamba.scan_sequences,
            [u, u + 1, -torch.rand(6, 16), B, B + 1, torch.rand(6)],
        )
    torch.library.opcheck(called, (*(x.requires_grad_() for x in inputs), True))


def test_nan_and_infinity_propagate(map_case):
    inputs = [x.float() for x in map_case(1, 16, 4, 4, 1)]
    inputs[0][0, 3, 2, 2] = torch.nan
    y = scan_map(*inputs, backend="native")
    assert y[0, 3].isnan().any()
    assert not y[0, 4].isnan().any()


AT_ANOTHER_LEVEL = """
import sys, warnings
import torch
from repmamba.errors import BackendFallback
from repmamba.kernels.library import library
from repmamba.scan.selective import scan_map, selective_scan

warnings.simplefilter("error", BackendFallback)
assert library().level == sys.argv[1]

def value_and_gradients(scan, inputs, backend, dtype):
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    y = scan(*leaves, backend=backend)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]

torch.manual_seed(0)
for channel in (1, 2, 4, 5, 8, 16, 20, 64):  # half a register, one, several, and parts of one, at every level
    rank = -(-channel // 16)
    maps = [torch.randn(2, channel, 9, 11), torch.randn(2, 4 * (rank + 32), 9, 11), torch.randn(4, channel, rank)]
    maps += [torch.randn(4, channel) - 1, -4 * torch.rand(4 * channel, 16), torch.randn(4 * channel)]
    u, B = torch.randn(1, 2 * channel, 70), torch.randn(1, 2, 16, 70)
    sequences = [u, 3 * torch.rand_like(u), -4 * torch.rand(2 * channel, 16), B, B.flip(-1), torch.randn(2 * channel)]
    for scan, inputs in ((scan_map, maps), (selective_scan, sequences)):
        found = value_and_gradients(scan, inputs, "native", torch.float32)
        expected = value_and_gradients(scan, inputs, "definition", torch.float64)
        for ours, exact in zip(found, expected, strict=True):
            assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max(), (channel, scan)
"""


@pytest.mark.parametrize("level", ["neon", "v2", "v3", "v4"])
def test_every_level_agrees_with_the_definition_in_value_and_gradient(level):
    if level not in levels(library().handle.features()):
        pytest.skip(f"this processor has no {level}")
    process = subprocess.run(
        [sys.executable, "-c", AT_ANOTHER_LEVEL, level],
        env=os.environ | {VARIABLE: level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
