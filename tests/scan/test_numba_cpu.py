"""What holds for the compiled scan alone: threads, torch.compile and torch.export, numerical gradients, processes."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor, nn

from repmamba.scan import numba_cpu, threads
from repmamba.scan.selective import scan_map, selective_scan
from repmamba.scan.vector_code import LANES, VERSION, counting, whole_vector_code


def value_and_gradients(inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = scan_map(*leaves, backend="numba")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.fixture
def many_pixels(map_case) -> list[Tensor]:
    """Enough of them for threads."""
    inputs = [x.float() for x in map_case(3, 24, 40, 41, 1)]
    assert inputs[0].numel() > numba_cpu.WORK_FOR_THREADS
    return inputs


@pytest.fixture(scope="module")
def power_of_two():
    """2**x of float32 numbers, as the kernels compute it."""

    @whole_vector_code
    def rows(v, x, result):
        with counting(v.builder, x.count) as row:
            v.store(v.exp2(v.load(x.at(row))), result.at(row))

    @njit
    def run(x, result):
        rows(x, result)

    def power_of_two(x):
        result = np.empty_like(x).reshape(-1, LANES)
        run(x.reshape(result.shape), result)
        return result.reshape(x.shape)

    return power_of_two


def test_powers_of_two_are_right_to_the_last_digits_and_slow_decays_to_the_very_last(power_of_two):
    x = -np.linspace(0, 125, 1 << 16, dtype=np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(power_of_two(x) / exact - 1).max() < 4e-7
    slow = -np.geomspace(1e-8, 1e-3, 1 << 10, dtype=np.float32)
    assert np.abs(power_of_two(slow) - np.exp2(slow.astype(np.float64))).max() < 6.1e-8


def test_what_has_decayed_beyond_all_numbers_is_0(power_of_two):
    assert (power_of_two(-np.geomspace(151, 1e20, 1 << 10, dtype=np.float32)) == 0).all()


def test_any_number_of_threads_gives_the_same_bits_and_stays_as_it_was_set(many_pixels):
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


def test_one_thread_of_torch_means_that_no_other_is_asked(many_pixels, one_thread, monkeypatch):
    monkeypatch.setattr(threads, "_pool", lambda process: pytest.fail("a pool was started"))
    value_and_gradients(many_pixels)


@pytest.mark.parametrize(("channel", "rank"), [(3, 1), (17, 2)])
def test_the_gradients_of_a_map_are_the_numerical_ones(channel, rank, map_case):
    inputs = [x.requires_grad_() for x in map_case(2, channel, 2, 3, rank)]
    assert torch.autograd.gradcheck(lambda *x: scan_map(*x, backend="numba"), inputs, fast_mode=True)


def test_the_gradients_of_sequences_are_the_numerical_ones():
    torch.manual_seed(0)
    u, dt, B, C = torch.rand(2, 6, 5), torch.randn(2, 6, 5), torch.randn(2, 3, 16, 5), torch.randn(2, 3, 16, 5)
    inputs = [x.double().requires_grad_() for x in (u, dt, -torch.rand(6, 16), B, C, torch.rand(6), torch.rand(6))]
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x[:6], dt_bias=x[6], backend="numba"), inputs, fast_mode=True
    )


class Map(nn.Module):
    """The operator as a network holds it."""

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        self.scan_parameters = nn.ParameterList([nn.Parameter(x) for x in parameters])

    def forward(self, p: Tensor, projected: Tensor) -> Tensor:
        return scan_map(2 * p, projected, *self.scan_parameters, backend="numba")


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
        return scan_map(p, projected, weight, bias, A, D, backend="numba")

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


def test_an_exported_program_holds_the_operator_and_serves_other_sizes():
    """In a fresh process: torch.export replaces builtins while it traces, and numba is first imported in the middle."""
    process = subprocess.run(
        [sys.executable, "-c", FIRST_USE_IN_AN_EXPORT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operator", ["map", "sequences"])
def test_the_operators_keep_the_rules_of_torch(operator, dtype, map_case):
    """Schema, fake tensors and autograd registration, as torch.library.opcheck tests them."""
    torch.manual_seed(0)
    if operator == "map":
        called, inputs = torch.ops.repmamba.scan_map, [x.to(dtype) for x in map_case(2, 8, 3, 4, 1)]
    else:
        u, B = torch.rand(2, 6, 5, dtype=dtype), torch.randn(2, 3, 16, 5, dtype=dtype)
        called = torch.ops.repmamba.scan_sequences
        inputs = [u, u + 1, -torch.rand(6, 16, dtype=dtype), B, B + 1, torch.rand(6, dtype=dtype)]
    torch.library.opcheck(called, (*(x.requires_grad_() for x in inputs), True))


def test_numbers_that_are_not_finite_are_not_hidden(map_case):
    inputs = [x.float() for x in map_case(1, 16, 4, 4, 1)]
    inputs[0][0, 3, 2, 2] = torch.nan
    y = scan_map(*inputs, backend="numba")
    assert y[0, 3].isnan().any()
    assert not y[0, 4].isnan().any()


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_are_cached_under_the_constants_that_stand_in_another_file(way, dtype):
    """Numba's cache looks at the file of a kernel alone, and would serve what was compiled for another size of h."""
    kernel = numba_cpu._kernels().kernel(way, dtype)
    assert f"_with_vectors_{VERSION}_" in kernel.py_func.__qualname__


@pytest.mark.long
def test_a_second_process_finds_the_compiled_kernel_in_a_cache_of_the_users_choice(tmp_path):
    """With NUMBA_CACHE_DIR, as where the package's own folder cannot be written."""
    code = (
        "from repmamba.scan import numba_cpu, numba_kernels; numba_cpu.start();"
        "print(sum(numba_kernels.kernel('forward', 'float32').stats.cache_hits.values()))"
    )
    hits = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]


ON_ANOTHER_PROCESSOR = """
import sys, torch
from repmamba.scan.selective import selective_scan
from repmamba.scan.vector_code import LANES

assert LANES == int(sys.argv[1]), LANES
torch.manual_seed(0)
u, dt = torch.randn(1, 24, 70), 3 * torch.randn(1, 24, 70)
B, C = torch.randn(1, 2, 16, 70), torch.randn(1, 2, 16, 70)
leaves = [x.requires_grad_() for x in (u, dt, -4 * torch.rand(24, 16), B, C, torch.randn(24), torch.randn(24))]
results = []
for backend in ("numba", "definition"):
    y = selective_scan(*leaves[:6], dt_bias=leaves[6], backend=backend)
    results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
for found, expected in zip(*results, strict=True):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this processor has no AVX2")
@pytest.mark.long
@pytest.mark.parametrize(("lanes", "features"), [(8, "+avx2,+fma"), (4, "+sse4.2")], ids=["AVX2", "SSE"])
def test_code_for_lesser_processors_agrees_with_the_definition_too(lanes, features, tmp_path):
    if "+avx2" in features and "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this processor has no AVX2")
    environment = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_PROCESSOR, str(lanes)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
