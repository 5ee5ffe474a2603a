"""The GPU scan without a GPU: its kernels in Triton's interpreter, and compiled for GPUs that are
not here.

The last tests, marked gpu, run on one.
"""

import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers
from safetensors.torch import load_file
from torch import Tensor

from repmamba.scan import triton_gpu
from repmamba.scan.selective import scan_map, selective_scan

from ..near import DOUBLE, GRADIENT, VALUE, assert_near

MAP_TENSORS = ("p", "projected", "dt_weight", "dt_bias", "A", "D")
SCRIPT = Path(__file__).with_name("triton_interpreter.py")
Ask = Callable[..., Any]

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None and (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="this system has no triton",
)


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Calls a function of triton_interpreter.py in its process."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def call(function: str, *arguments: Any) -> Any:
        pickle.dump((function, arguments), process.stdin)
        process.stdin.flush()
        result, fault = pickle.load(process.stdout)
        assert fault is None, fault
        return result

    yield call
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def assert_is_the_definition(
    ask: Ask, inputs: list[Tensor], *, steps: int = 4, segment: int = 2
) -> None:
    """Value and all six gradients against the definition in float64 on the same numbers; 4 steps:
    many chunks.
    """
    exact = [x.double().requires_grad_() for x in inputs]
    expected = scan_map(*exact, backend="definition")
    dy = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    found, *ours = ask("gradients", "scan_map", inputs, dy, steps, segment)
    double = inputs[0].dtype == torch.float64
    assert found.dtype == (torch.float64 if double else torch.float32)
    assert_near(found, expected, DOUBLE if double else VALUE, "value")
    for name, given_, mine, true in zip(
        MAP_TENSORS, inputs, ours, torch.autograd.grad(expected, exact, dy), strict=True
    ):
        assert mine.dtype == given_.dtype
        # What a half holds of a gradient is its first 8 (bfloat16) or 11 bits.
        bound = DOUBLE if double else max(GRADIENT, torch.finfo(given_.dtype).eps)
        assert_near(mine, true, bound, f"gradient of {name}")


@needs_triton
@pytest.mark.parametrize(("channel", "rank"), [(8, 1), (5, 2), (1, 3), (40, 1)])
def test_the_kernels_agree_with_the_definition_at_every_width(channel, rank, ask, map_case):
    assert_is_the_definition(ask, [x.float() for x in map_case(1, channel, 2, 3, rank)])


@needs_triton
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 4), (5, 1), (3, 3), (2, 9)], ids=str)
def test_the_kernels_agree_with_the_definition_at_one_step_and_around_a_chunk(size, ask, map_case):
    assert_is_the_definition(ask, [x.float() for x in map_case(1, 8, *size, 1)])


@needs_triton
def test_the_kernels_agree_with_the_definition_with_chunks_as_long_as_on_a_gpu(ask, map_case):
    inputs = [x.float() for x in map_case(1, 8, 3, 11, 1)]
    assert triton_gpu.STEPS < 33 < 2 * triton_gpu.STEPS
    assert_is_the_definition(ask, inputs, steps=triton_gpu.STEPS, segment=triton_gpu.SEGMENT)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernels_agree_with_the_definition_where_decays_vanish_and_where_they_are_one(
    dtype, ask, map_case
):
    inputs = map_case(1, 8, 3, 4, 2, spread=15.0)  # raw dt to either side of 30
    raw = torch.einsum("kcr,bkrhw->bkchw", inputs[2], inputs[1].reshape(1, 4, 34, 3, 4)[:, :, :2])
    assert raw.min() < -30
    assert raw.max() > 30
    assert_is_the_definition(ask, [x.to(dtype) for x in inputs])


@needs_triton
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=integers(1, 2),
    channel=integers(1, 33),
    height=integers(1, 4),
    width=integers(1, 3),
    rank=integers(1, 3),
)
def test_the_kernels_agree_with_the_definition_on_any_shape(
    ask, map_case, batch, channel, height, width, rank
):
    assert_is_the_definition(ask, map_case(batch, channel, height, width, rank))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_maps_are_read_as_they_are_and_the_rest_is_float32(dtype, ask, map_case):
    maps, constants = map_case(1, 8, 2, 4, 1)[:2], map_case(1, 8, 2, 4, 1)[2:]
    inputs = [*(x.to(dtype) for x in maps), *(x.float() for x in constants)]
    assert_is_the_definition(ask, inputs)
    assert_near(
        ask("value", inputs),
        scan_map(*(x.double() for x in inputs), backend="definition"),
        VALUE,
        "value",
    )


@needs_triton
def test_memory_order_and_strides_of_the_maps_change_nothing(ask, map_case):
    inputs = [x.float() for x in map_case(1, 8, 2, 3, 1)]
    expected = ask("value", inputs)
    assert torch.equal(ask("value", [x.contiguous() for x in inputs]), expected)
    wide = [torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0] for x in inputs]
    assert torch.equal(ask("value", wide), expected)


@needs_triton
def test_an_image_gets_the_same_bits_in_a_batch(ask, map_case):
    p, projected, *constants = (x.float() for x in map_case(2, 8, 3, 3, 1))
    together = ask("value", [p, projected, *constants])
    assert torch.equal(ask("value", [p[1:], projected[1:], *constants]), together[1:])


@needs_triton
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("kind", ["plain", "extreme"])
def test_sequences_match_the_golden_numbers(kind, length, ask, golden: Path):
    numbers = load_file(golden / "scan.safetensors")
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    inputs = [numbers[f"{kind}.L{length}.{name}"] for name in names]
    y, *gradients = ask(
        "gradients", "selective_scan", inputs, numbers[f"{kind}.L{length}.dy"], 4, 2
    )
    assert_near(y, numbers[f"{kind}.L{length}.y"], VALUE, "value")
    for name, found in zip(names, gradients, strict=True):
        assert_near(
            found, numbers[f"{kind}.L{length}.grad_{name}"], GRADIENT, f"gradient of {name}"
        )


@needs_triton
def test_the_operators_pass_opcheck(ask, map_case):
    ask("keeps_the_rules_of_torch", "scan_map_triton", [x.float() for x in map_case(1, 2, 1, 2, 1)])
    torch.manual_seed(0)
    u, B = torch.rand(1, 2, 3), torch.randn(1, 2, 16, 3)
    ask(
        "keeps_the_rules_of_torch",
        "scan_sequences_triton",
        [u, u + 1, -torch.rand(2, 16), B, B + 1, torch.rand(2)],
    )


@needs_triton
@pytest.mark.parametrize("operator", ["scan_map", "scan_sequences"])
def test_forward_mode_derivatives_are_refused(operator, ask, map_case):
    u, B = torch.rand(1, 2, 3), torch.randn(1, 2, 16, 3)
    sequences = [u, u + 1, -torch.rand(2, 16), B, B + 1, torch.rand(2)]
    inputs = (
        sequences if operator == "scan_sequences" else [x.float() for x in map_case(1, 2, 1, 2, 1)]
    )
    assert "'triton' has no derivatives in forward mode" in ask(
        "said_of_a_tangent", operator, inputs
    )


@needs_triton
def test_the_whole_graph_compiles_and_gives_the_same_values_and_gradients(ask, map_case):
    compiled, plain = ask("compiled_and_plain", [x.float() for x in map_case(1, 4, 2, 2, 1)])
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))


@needs_triton
def test_an_exported_program_contains_the_operator_and_works_for_other_sizes(ask, map_case):
    inputs, others = ([x.float() for x in map_case(1, 4, *size, 1)] for size in ((2, 3), (3, 2)))
    called, by_program, by_module = ask("exported", inputs, others)
    assert "repmamba.scan_map_triton.default" in called
    assert torch.equal(by_program, by_module)


COMPILED_FOR_A_GPU_THAT_IS_NOT_HERE = """
import sys
from types import SimpleNamespace
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from repmamba.scan import triton_gpu, triton_kernels

target = GPUTarget("cuda", int(sys.argv[1]), 32)
here = dict(get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target)
driver.set_active(SimpleNamespace(**here))
done = set()

def compile_only(kernel, grid, *arguments, **constants):
    compiled = getattr(triton_kernels, kernel).warmup(*arguments, grid=grid, **constants, num_warps=1)
    assert compiled.asm["cubin"]
    done.add(kernel)

triton_gpu._launch = compile_only
height, width, channel, rank = map(int, sys.argv[3:])
maps = [torch.rand(2, n, height, width).to(getattr(torch, sys.argv[2])) for n in (channel, 4 * (rank + 32))]
constants = torch.rand(4, channel, rank), torch.rand(4, channel), -torch.rand(4 * channel, 16), torch.rand(4 * channel)
triton_gpu.scan_map(*(x.requires_grad_() for x in (*maps, *constants))).sum().backward()
print(*sorted(done))
"""
EVERY_WIDTH = [
    (9, 7, 8, 1),
    (9, 7, 16, 1),
    (9, 7, 32, 1),
    (9, 7, 64, 2),
]  # of the network: height, width, channel, rank


def kernels_compiled(
    architecture: int, dtype: str, shape: tuple[int, ...], cache: Path
) -> list[str]:
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            COMPILED_FOR_A_GPU_THAT_IS_NOT_HERE,
            str(architecture),
            dtype,
            *map(str, shape),
        ],
        env=os.environ | {"TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


@needs_triton
def test_every_kernel_compiles_to_machine_code_as_it_is_launched(tmp_path):
    assert kernels_compiled(90, "float32", EVERY_WIDTH[0], tmp_path) == [
        "carry",
        "chunk_ends",
        "gradients",
        "outputs",
    ]


@needs_triton
def test_sizes_of_one_compile_too(tmp_path):
    """Triton makes constants of arguments that are 1, with another type."""
    assert kernels_compiled(90, "float32", (1, 1, 1, 1), tmp_path) == ["gradients", "outputs"]


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("shape", EVERY_WIDTH, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
def test_every_kernel_compiles_for_every_width_and_generation(architecture, dtype, shape, tmp_path):
    assert len(kernels_compiled(architecture, dtype, shape, tmp_path)) == 4


WITHOUT_A_LAUNCHER = """
import sys, warnings
import torch
sys.modules.update(eval(sys.argv[1]))
torch.cuda.is_available = lambda: eval(sys.argv[2])
from repmamba.scan.backends import choose, explain

warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    chosen = [choose(torch.device("cuda")).backend.name for _ in range(2)]
assert chosen == ["chunked", "chunked"], chosen
assert explain("cuda").name == "chunked"
print(*(warning.message for warning in caught), sep="\\n")
"""


@pytest.mark.parametrize(
    ("modules", "device", "reason"),
    [
        pytest.param("{'triton': None}", "True", "ModuleNotFoundError", id="no triton"),
        pytest.param("{}", "True", "", id="no C compiler", marks=needs_triton),
        pytest.param("{}", "False", "0 active drivers", id="no GPU", marks=needs_triton),
    ],
)
def test_if_the_launcher_cannot_start_chunked_is_used_with_one_warning(
    modules, device, reason, tmp_path
):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("REPMAMBA_SCAN", "CC")
    }
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_LAUNCHER, modules, device],
        env=environment | {"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (warning,) = process.stdout.splitlines()
    assert warning.startswith("The scan 'triton' cannot start (")
    assert reason in warning
    assert warning.endswith("The scan runs on 'chunked' instead.")


def test_the_kernels_are_not_imported_before_a_gpu_is_computed_on():
    """Nor triton by us; torch imports it, where it is installed, with the part that torch.library
    brings in.
    """
    code = """
import sys, repmamba
assert "triton" not in sys.modules
import torch
from repmamba.scan import backends, triton_gpu
from repmamba.scan.selective import scan_map
scan_map(torch.rand(1, 8, 2, 2), torch.rand(1, 132, 2, 2), torch.rand(4, 8, 1), torch.rand(4, 8), -torch.rand(32, 16),
         torch.rand(32))
assert backends.explain("cpu").name == "native"
assert backends.survey("cpu")["triton"] == "Does not run on cpu: it is for cuda."
assert "repmamba.scan.triton_kernels" not in sys.modules
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("channel", "rank", "size"),
    [(8, 1, (64, 64)), (16, 1, (1, 1)), (32, 1, (33, 31)), (64, 2, (40, 24)), (5, 3, (3, 43))],
)
def test_on_a_gpu_it_agrees_with_the_definition(channel, rank, size, dtype, map_case):
    inputs = [
        x.to("cuda", dtype if n < 2 else torch.float32)
        for n, x in enumerate(map_case(2, channel, *size, rank))
    ]
    if dtype == torch.float64:
        inputs = [x.double() for x in inputs]
    exact, ours = ([x.to(kind).requires_grad_() for x in inputs] for kind in (torch.float64, None))
    expected, found = scan_map(*exact, backend="definition"), scan_map(*ours, backend="triton")
    dy = torch.randn(expected.shape, device="cuda", dtype=torch.float64)
    double = dtype == torch.float64
    assert_near(found, expected, DOUBLE if double else VALUE, "value")
    pairs = zip(
        torch.autograd.grad(found, ours, dy.to(found.dtype)),
        torch.autograd.grad(expected, exact, dy),
        strict=True,
    )
    for name, (mine, true) in zip(MAP_TENSORS, pairs, strict=True):
        bound = DOUBLE if double else max(GRADIENT, torch.finfo(mine.dtype).eps)
        assert_near(mine, true, bound, f"gradient of {name}")


@pytest.mark.gpu
def test_on_a_gpu_two_runs_give_the_same_bits(map_case):
    inputs = [x.to("cuda", torch.float32).requires_grad_() for x in map_case(2, 64, 40, 24, 2)]
    runs = []
    for _ in range(2):
        y = scan_map(*inputs, backend="triton")
        runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "extreme"])
def test_on_a_gpu_sequences_match_the_golden_numbers(kind, golden: Path):
    numbers = {name: x.cuda() for name, x in load_file(golden / "scan.safetensors").items()}
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    inputs = [numbers[f"{kind}.L1000.{name}"].requires_grad_() for name in names]
    y = selective_scan(*inputs[:6], dt_bias=inputs[6], backend="triton")
    assert_near(y, numbers[f"{kind}.L1000.y"], VALUE, "value")
    gradients = torch.autograd.grad(y, inputs, numbers[f"{kind}.L1000.dy"])
    for name, found in zip(names, gradients, strict=True):
        assert_near(found, numbers[f"{kind}.L1000.grad_{name}"], GRADIENT, f"gradient of {name}")
