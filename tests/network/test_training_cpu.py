"""The passes that train on a CPU against torch's own operations in float64, which the network takes for that type."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor, nn

from repmamba.network import training_cpu
from repmamba.network.config import RMB_WIDTHS, WIDTH, NetworkConfig
from repmamba.network.lpfm import LPFM
from repmamba.network.rmb import RMB

ZERO_IN_EXACT_ARITHMETIC = ("dw1x1.bias", "inner_bn.bias")
"""Their gradient: the normalisation after them takes them out with the mean. Here it is 0."""


def shake(module: nn.Module) -> None:
    """Put the module in training mode, and none of its parameters at a value that hides a mistake."""
    for name, parameter in module.named_parameters():
        if not name.endswith("A_log"):
            nn.init.uniform_(parameter, 0.2, 0.8)  # a normalisation divides by some of them
            with torch.no_grad():
                parameter.mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
    module.train()


def maps(*shape: int) -> tuple[Tensor, Tensor]:
    """An input, which wants a gradient, and a gradient of the result."""
    x, gradient = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return (x + 0.5).requires_grad_(), gradient


def close(found: Tensor | None, expected: Tensor | None, bound: float) -> bool:
    assert found is not None
    assert expected is not None
    return bool((found.double() - expected).abs().max() <= bound * expected.abs().max())


def assert_trains_as_in_float64(module: nn.Module, x: Tensor, gradient: Tensor, bound: float = 5e-5) -> None:
    """Result, gradients and statistics of the module, which the passes serve, are those of its copy in float64."""
    reference = copy.deepcopy(module).double()
    x_reference = x.detach().double().requires_grad_()
    expected = reference(x_reference)
    expected.backward(gradient.double())
    found = module(x)
    found.backward(gradient)

    assert close(found, expected, bound)
    assert close(x.grad, x_reference.grad, bound)
    for (name, parameter), (_, exact) in zip(module.named_parameters(), reference.named_parameters(), strict=True):
        if name.endswith(ZERO_IN_EXACT_ARITHMETIC):
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
        else:
            assert close(parameter.grad, exact.grad, bound), name
    for (name, buffer), (_, expected) in zip(module.named_buffers(), reference.named_buffers(), strict=True):
        assert close(buffer, expected.double(), bound), name


@settings(max_examples=10)
@given(batch=integers(2, 3), width=sampled_from(RMB_WIDTHS), height=integers(1, 4), columns=integers(1, 4))
def test_an_rmb_trains_as_in_float64(batch: int, width: int, height: int, columns: int) -> None:
    torch.manual_seed(height * 10 + columns)
    rmb = RMB(width)
    shake(rmb)
    x, gradient = maps(batch, width, 2 * height, 2 * columns)
    assert training_cpu.serves(x, rmb)
    assert_trains_as_in_float64(rmb, x, gradient)


@settings(max_examples=6)
@given(batch=integers(2, 3), height=integers(1, 3), columns=integers(1, 3))
def test_a_block_trains_as_in_float64(batch: int, height: int, columns: int) -> None:
    torch.manual_seed(height * 10 + columns)
    block = LPFM(NetworkConfig())
    shake(block)
    x, gradient = maps(batch, WIDTH, 2 * height, 2 * columns)
    assert training_cpu.serves(x, block.ffn)
    assert_trains_as_in_float64(block, x, gradient, bound=1e-3)  # five normalisations one after another


def test_maps_in_another_memory_order_give_the_same() -> None:
    torch.manual_seed(0)
    rmb = RMB(16)
    shake(rmb)
    x, gradient = maps(2, 16, 4, 6)
    assert_trains_as_in_float64(rmb, x.detach().contiguous().requires_grad_(), gradient.contiguous())


def test_under_autocast_the_gradients_are_those_of_float32_within_its_precision() -> None:
    torch.manual_seed(0)
    block = LPFM(NetworkConfig()).train()
    reference = copy.deepcopy(block).double()
    x, gradient = maps(4, WIDTH, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result = block(x)
    result.backward(gradient)
    reference(x.detach().double()).backward(gradient.double())
    assert result.dtype == torch.float32
    for (name, found), (_, exact) in zip(block.named_parameters(), reference.named_parameters(), strict=True):
        if not name.endswith(ZERO_IN_EXACT_ARITHMETIC):
            assert found.grad is not None
            assert exact.grad is not None
            error = (found.grad - exact.grad).norm() / exact.grad.norm()
            assert error < 0.05, name


OF_TORCHS_PRODUCTS = ("ss2d.in_proj.weight", "ss2d.x_proj", "ss2d.out_proj.weight")
"""Gradients of matrices are torch's products over all pixels; on some processors their order depends on the threads."""


def test_the_number_of_threads_changes_no_bit_of_what_the_passes_compute() -> None:
    torch.manual_seed(0)
    rmb, (x, gradient) = RMB(32).train(), maps(5, 32, 32, 32)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x.grad = None
            rmb.zero_grad()
            rmb(x).backward(gradient)
            assert x.grad is not None
            found.append({"x": x.grad} | {name: p.grad for name, p in rmb.named_parameters() if p.grad is not None})
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert others.keys() == found[0].keys() > set(OF_TORCHS_PRODUCTS)
        for name, other in others.items():
            bound = 1e-6 * found[0][name].abs().max() if name in OF_TORCHS_PRODUCTS else 0
            assert (other - found[0][name]).abs().max() <= bound, name


REASONS = ("no Numba", "evaluation", "float64", "synchronised statistics", "float16", "frozen statistics", "a hook")
OF_SOMEBODY_ELSE = (
    *("norm", "bn", "dw1x1", "ss2d", "ss2d.in_proj", "ss2d.out_norm", "ss2d.out_proj"),
    *("ss2d.conv", "ss2d.conv.dw3x3", "ss2d.conv.inner_bn", "ss2d.high_conv.dw1x1", "ss2d.high_conv.outer_bn"),
)


@pytest.mark.parametrize("name", OF_SOMEBODY_ELSE)
def test_an_adapter_in_the_place_of_any_layer_is_called_and_learns(name: str) -> None:
    rmb, x = RMB(8).train(), torch.randn(2, 8, 4, 4)
    layer = rmb.get_submodule(name)
    plain = type(layer)

    class Adapted(plain):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(x)
            return result + self.adapter * result.sin()

    layer.register_parameter("adapter", nn.Parameter(torch.ones(())))
    layer.__class__ = Adapted
    rmb(x).square().sum().backward()
    assert layer.adapter.grad is not None


@pytest.mark.parametrize("name", ["norm", "ss2d.out_norm"])
def test_a_normalisation_of_another_eps_is_that_of_torch(name: str) -> None:
    rmb, x = RMB(8).train(), torch.randn(2, 8, 4, 4)
    assert training_cpu.serves(x, rmb)
    norm = rmb.get_submodule(name)
    assert isinstance(norm, nn.LayerNorm)
    norm.eps = 1.0
    assert not training_cpu.serves(x, rmb)


@pytest.mark.parametrize("name", ["ss2d.in_proj", "ss2d.out_proj"])
def test_a_bias_that_a_layer_of_ours_has_not_is_added_and_learns(name: str) -> None:
    rmb, x = RMB(8).train(), torch.randn(2, 8, 4, 4)
    layer = rmb.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    rmb(x).square().sum().backward()
    assert layer.bias.grad is not None


def test_a_forward_that_is_set_on_a_layer_is_called() -> None:
    rmb, x, called = RMB(8).train(), torch.randn(2, 8, 4, 4), []
    layer, of_torch = rmb.ss2d.out_proj, rmb.ss2d.out_proj.forward
    layer.forward = lambda x: called.append(x) or of_torch(x)  # type: ignore[func-returns-value]
    rmb(x)
    assert called


@pytest.mark.parametrize("why", REASONS)
def test_torchs_own_operations_run_where_the_passes_do_not_serve(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rmb, x = RMB(8).train(), torch.randn(2, 8, 4, 4)
    assert training_cpu.serves(x, rmb)
    with torch.autocast("cpu", torch.float16, enabled=why == "float16"):
        if why == "no Numba":
            monkeypatch.setattr(training_cpu, "_kernels", lambda: None)
        elif why == "evaluation":
            rmb.eval()
        elif why == "float64":
            rmb, x = rmb.double(), x.double()
        elif why == "synchronised statistics":
            setattr(rmb, "bn", nn.SyncBatchNorm(8))  # noqa: B010  # of another type, as conversion does
        elif why == "frozen statistics":
            rmb.bn.eval()
        elif why == "a hook":
            rmb.ss2d.out_norm.register_full_backward_hook(lambda *arguments: None)
        assert not training_cpu.serves(x, rmb)
    if why == "no Numba":
        rmb(x).sum().backward()
        assert all(parameter.grad is not None for parameter in rmb.parameters())


def test_frozen_statistics_stay_and_are_what_is_normalised_by() -> None:
    rmb, x = RMB(8).train(), torch.randn(2, 8, 4, 4)
    for norm in rmb.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            norm.running_mean.uniform_(-1, 1)
            norm.eval()
    expected, before = copy.deepcopy(rmb).eval()(x), copy.deepcopy(rmb.state_dict())
    assert close(rmb(x), expected.double(), 1e-6)
    assert all(torch.equal(values, before[name]) for name, values in rmb.state_dict().items())


def test_hooks_of_all_layers_of_a_block_are_called() -> None:
    block, called = LPFM(NetworkConfig()).train(), set()
    for name, part in block.named_modules():
        part.register_forward_hook(lambda *arguments, name=name: called.add(name))
    block(torch.rand(2, WIDTH, 4, 4))
    assert called > {"norm", "ffn", "ffn.dw5x5", "cssp.m8.norm", "cssp.m8.ss2d.conv.inner_bn", "cssp.m64.bn"}
    only_norm = LPFM(NetworkConfig()).train()
    only_norm.norm.register_forward_hook(lambda *arguments: called.clear())
    only_norm(torch.rand(2, WIDTH, 4, 4))
    assert not called


@pytest.mark.parametrize("module", [RMB(WIDTH), LPFM(NetworkConfig())], ids=["RMB", "LPFM"])
def test_second_derivatives_are_refused_rather_than_wrong(module: nn.Module) -> None:
    x = torch.randn(2, WIDTH, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(module.train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("default", ["type", "device"])
def test_what_torch_makes_by_default_changes_nothing(default: str) -> None:
    torch.manual_seed(0)
    block, (x, gradient) = LPFM(NetworkConfig()), maps(2, WIDTH, 4, 14)
    shake(block)
    found = []
    for changed in (True, False):
        x.grad = None
        torch.set_default_dtype(torch.float64 if changed and default == "type" else torch.float32)
        try:
            with torch.device("meta" if changed and default == "device" else "cpu"):
                result = block(x)
                result.backward(gradient)
        finally:
            torch.set_default_dtype(torch.float32)
        assert x.grad is not None
        found.append((result, x.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_hidden_width_that_does_not_fill_registers_trains() -> None:
    block = LPFM(NetworkConfig(mlp_ratio=1.05)).train()
    assert block.ffn.fc1.out_features % training_cpu.LANES
    block(torch.rand(2, WIDTH, 4, 4)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_kernels_with_vector_code_of_another_file_are_cached_under_its_version() -> None:
    """Numba's cache looks at the file of a kernel alone, and would serve what an older `Vectors` wrote."""
    from repmamba.network import training_numba as kernels
    from repmamba.scan.vector_code import VERSION

    compiled = kernels.kernel("normalise", half=False)
    assert VERSION in compiled.py_func.__qualname__  # type: ignore[attr-defined]
