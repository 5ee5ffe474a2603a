"""The passes that train on a CPU against torch's own operations in float64, which a block takes for
that type.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers
from torch import Tensor, nn

from repmamba.kernels.library import VARIABLE, levels, library
from repmamba.network import training_cpu
from repmamba.network.config import WIDTH, NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.lpfm import LPFM
from repmamba.network.repmamba import RepMamba
from repmamba.network.training_cpu import FastLPFM, with_fast_passes

# their gradient: the normalisation after them takes them out with the mean. Here it is 0.
ZERO_IN_EXACT_ARITHMETIC = ("conv.dw1x1.bias", "inner_bn.bias")

# those that this processor runs; "pairs" has products of pairs of bfloat16 as instructions
LEVELS = (*levels(library().handle.features()), *(["pairs"] if library().pairs else []))


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels of one level, in the place of those that were chosen."""
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "v4" if request.param == "pairs" else request.param)
        library.cache_clear()
        kernels = library()
        if request.param != "pairs":
            patch.setattr(training_cpu, "library", lambda: replace(kernels, pairs=False))
        training_cpu._kernel.cache_clear()
        yield request.param
    library.cache_clear()
    training_cpu._kernel.cache_clear()


def fast(block: LPFM) -> LPFM:
    """The same block, by the passes."""
    found: LPFM = with_fast_passes(nn.ModuleList([block]))[0]  # type: ignore[arg-type, index]
    assert type(found) is FastLPFM
    return found


def shake(module: nn.Module) -> None:
    """Put the module in training mode, and none of its parameters at a value that hides a
    mistake.
    """
    for name, parameter in module.named_parameters():
        if not name.endswith("A_log"):
            nn.init.uniform_(parameter, 0.2, 0.8)  # a normalisation divides by some of them
            with torch.no_grad():
                parameter.mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
    module.train()


def maps(*shape: int) -> tuple[Tensor, Tensor]:
    """An input, which wants a gradient, and a gradient of the result."""
    x, gradient = (
        torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    return (x + 0.5).requires_grad_(), gradient


def close(found: Tensor | None, expected: Tensor | None, bound: float) -> bool:
    assert found is not None
    assert expected is not None
    return bool((found.double() - expected).abs().max() <= bound * expected.abs().max())


def assert_trains_as_in_float64(block: LPFM, x: Tensor, gradient: Tensor, bound: float) -> None:
    """Result, gradients and statistics of a block by the passes are those of its copy in
    float64.
    """
    reference = copy.deepcopy(block).double()
    x_reference = x.detach().double().requires_grad_()
    expected = reference(x_reference)
    expected.backward(gradient.double())
    found = fast(block)(x)
    found.backward(gradient)

    assert close(found, expected, bound)
    assert close(x.grad, x_reference.grad, bound)
    for (name, parameter), (_, exact) in zip(
        block.named_parameters(), reference.named_parameters(), strict=True
    ):
        if name.endswith(ZERO_IN_EXACT_ARITHMETIC) and reference.cssp.m8.bn.training:
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
        else:
            assert close(parameter.grad, exact.grad, bound), name
    for (name, buffer), (_, expected) in zip(
        block.named_buffers(), reference.named_buffers(), strict=True
    ):
        assert close(buffer, expected.double(), bound), name


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=integers(2, 3), height=integers(1, 4), columns=integers(1, 4))
def test_a_block_trains_as_in_float64(level: str, batch: int, height: int, columns: int) -> None:
    torch.manual_seed(height * 10 + columns)
    block = LPFM(NetworkConfig())
    shake(block)
    x, gradient = maps(batch, WIDTH, 2 * height, 2 * columns)
    # five normalisations one after another
    assert_trains_as_in_float64(block, x, gradient, bound=1e-3)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=integers(1, 3), height=integers(1, 4), columns=integers(1, 4))
def test_a_block_with_frozen_statistics_trains_as_in_float64(
    level: str, batch: int, height: int, columns: int
) -> None:
    torch.manual_seed(height * 10 + columns)
    block = LPFM(NetworkConfig())
    shake(block)
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.eval()
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 2.0)
    x, gradient = maps(batch, WIDTH, 2 * height, 2 * columns)
    assert_trains_as_in_float64(block, x, gradient, bound=1e-4)


@pytest.mark.parametrize("mlp_ratio", [2.0, 0.25, 3.75])
def test_a_young_block_trains_as_in_float64_on_a_whole_patch(level: str, mlp_ratio: float) -> None:
    torch.manual_seed(0)
    block = LPFM(NetworkConfig(mlp_ratio=mlp_ratio)).train()
    x, gradient = maps(2, WIDTH, 18, 30)
    assert_trains_as_in_float64(block, x, gradient, bound=5e-5)


def test_maps_in_another_memory_order_give_the_same() -> None:
    torch.manual_seed(0)
    block = LPFM(NetworkConfig()).train()
    x, gradient = maps(2, WIDTH, 4, 6)
    assert_trains_as_in_float64(
        block, x.detach().contiguous().requires_grad_(), gradient.contiguous(), 5e-5
    )


def test_under_autocast_the_gradients_are_those_of_float32_within_its_precision(level: str) -> None:
    torch.manual_seed(0)
    block = LPFM(NetworkConfig()).train()
    reference = copy.deepcopy(block).double()
    x, gradient = maps(4, WIDTH, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result = fast(block)(x)
    result.backward(gradient)
    reference(x.detach().double()).backward(gradient.double())
    assert result.dtype == torch.float32
    for (name, found), (_, exact) in zip(
        block.named_parameters(), reference.named_parameters(), strict=True
    ):
        if not name.endswith(ZERO_IN_EXACT_ARITHMETIC):
            assert found.grad is not None
            assert exact.grad is not None
            error = (found.grad - exact.grad).norm() / exact.grad.norm()
            assert error < 0.05, name


@pytest.mark.parametrize("half", [False, True])
def test_the_number_of_threads_changes_no_bit(half: bool) -> None:
    torch.manual_seed(0)
    block, (x, gradient) = fast(LPFM(NetworkConfig()).train()), maps(5, WIDTH, 32, 32)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x.grad = None
            block.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                result = block(x)
            result.backward(gradient)
            found.append([result, x.grad, *(parameter.grad for parameter in block.parameters())])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_two_steps_at_once_do_not_share_memory() -> None:
    torch.manual_seed(0)
    block = fast(LPFM(NetworkConfig()).train())
    inputs = [maps(2, WIDTH, 8, 8) for _ in range(2)]
    expected = []
    for x, gradient in inputs:
        block.zero_grad()
        block(x).backward(gradient)
        expected.append([x.grad, *(parameter.grad for parameter in block.parameters())])
        x.grad = None
    results = [block(x) for x, _ in inputs]
    for number in (1, 0):
        x, gradient = inputs[number]
        block.zero_grad()
        results[number].backward(gradient)
        found = [x.grad, *(parameter.grad for parameter in block.parameters())]
        assert all(
            torch.equal(one, other) for one, other in zip(found, expected[number], strict=True)
        )


def test_gradients_of_several_pieces_add_up() -> None:
    torch.manual_seed(0)
    block, (x, gradient) = fast(LPFM(NetworkConfig()).train()), maps(2, WIDTH, 8, 8)
    block(x).backward(gradient)
    once = [
        parameter.grad.clone() for parameter in block.parameters() if parameter.grad is not None
    ]
    block(x).backward(gradient)
    for parameter, before in zip(block.parameters(), once, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 2 * before)


def test_a_second_backward_pass_is_refused() -> None:
    block, (x, gradient) = fast(LPFM(NetworkConfig()).train()), maps(2, WIDTH, 4, 4)
    result = block(x)
    result.backward(gradient, retain_graph=True)
    with pytest.raises(RuntimeError, match="computed once"):
        result.backward(gradient)


def test_second_derivatives_are_refused() -> None:
    x, block = torch.randn(2, WIDTH, 4, 4, requires_grad=True), fast(LPFM(NetworkConfig()).train())
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


REASONS = ("evaluation", "float64", "float16", "statistics frozen in part")


@pytest.mark.parametrize("why", REASONS)
def test_torch_operations_run_where_the_passes_do_not_apply(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain, x = LPFM(NetworkConfig()).train(), torch.randn(2, WIDTH, 4, 4)
    if why == "evaluation":
        plain.eval()
    elif why == "float64":
        plain, x = plain.double(), x.double()
    elif why == "statistics frozen in part":
        plain.cssp.m16.bn.eval()
    block = copy.deepcopy(plain)
    block.__class__ = FastLPFM
    monkeypatch.setattr(training_cpu, "_Passes", None)
    with torch.autocast("cpu", torch.float16, enabled=why == "float16"):
        assert torch.equal(block(x), plain(x))
    for (name, buffer), (_, expected) in zip(
        block.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, expected), name


def with_an_adapter(block: LPFM) -> None:
    class Adapted(nn.Linear):
        pass

    block.cssp.m8.ss2d.in_proj.__class__ = Adapted


def with_a_bias(block: LPFM) -> None:
    block.cssp.m8.ss2d.out_proj.bias = nn.Parameter(torch.zeros(8))


def with_another_eps(block: LPFM) -> None:
    block.cssp.m32.ss2d.out_norm.eps = 1.0


def with_another_momentum(block: LPFM) -> None:
    block.cssp.m32.bn.momentum = 0.5


def synchronised(block: LPFM) -> None:
    setattr(block.cssp.m8, "bn", nn.SyncBatchNorm(8))  # noqa: B010  # of another type, as conversion does


@pytest.mark.parametrize(
    "change", [with_an_adapter, with_a_bias, with_another_eps, with_another_momentum, synchronised]
)
def test_a_block_with_replaced_parts_does_not_change(change) -> None:
    network = RepMamba(NetworkConfig(depths=(2,)))
    changed, other = network.groups[0].blocks
    change(changed)
    with_fast_passes(network)
    assert (type(changed), type(other)) == (LPFM, FastLPFM)


@pytest.mark.parametrize("options", [{"cssp": False}, {"repconv": False}, {"mlp_ratio": 1.05}])
def test_blocks_of_other_designs_do_not_change_and_train(options) -> None:
    network = with_fast_passes(RepMamba(NetworkConfig(depths=(1,), **options)).train())
    assert type(network.groups[0].blocks[0]) is LPFM
    network(torch.rand(2, 3, 4, 4)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_kernels_the_blocks_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError("no library")

    monkeypatch.setattr(training_cpu, "library", none)
    network = with_fast_passes(RepMamba(NetworkConfig(depths=(1,))))
    assert type(network.groups[0].blocks[0]) is LPFM


def test_a_network_with_fast_passes_has_the_same_state_copies_and_fuses() -> None:
    torch.manual_seed(0)
    plain, x = RepMamba(NetworkConfig(depths=(1, 1))), torch.rand(1, 3, 8, 8)
    network = with_fast_passes(copy.deepcopy(plain))
    assert list(network.state_dict()) == list(plain.state_dict())
    assert type(copy.deepcopy(network).groups[1].blocks[0]) is FastLPFM
    plain.load_state_dict(network.state_dict())
    assert torch.equal(fuse(network)(x), fuse(plain)(x))
    assert torch.equal(network.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("default", ["type", "device"])
def test_default_dtype_and_device_of_torch_change_nothing(default: str) -> None:
    torch.manual_seed(0)
    block, (x, gradient) = LPFM(NetworkConfig()), maps(2, WIDTH, 4, 14)
    shake(block)
    fast(block)
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
