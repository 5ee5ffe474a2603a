"""The compiled depthwise convolutions and RepConv's training pass against the library's operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor, nn

from repmamba.network import depthwise
from repmamba.network.repconv import RepConv

pytest.importorskip("numba")


def random_map(batch: int, channels: int, height: int, width: int) -> Tensor:
    x = torch.randn(batch, channels, height, width, dtype=torch.float64) + 1
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def branches(conv: RepConv, x: Tensor) -> Tensor:
    result: Tensor = conv.outer_bn(conv.inner_bn(conv.dw3x3(x)) + conv.dw1x1(x) + x)
    return result


def close(found: Tensor | None, expected: Tensor | None) -> bool:
    assert found is not None
    assert expected is not None
    return bool((found - expected).abs().max() <= 1e-10 * expected.abs().max() + 1e-12)


@settings(max_examples=20, deadline=None)
@given(batch=integers(2, 3), channels=sampled_from([1, 8, 20]), height=integers(1, 7), width=integers(1, 7))
def test_repconv_trains_as_its_branches_do(batch: int, channels: int, height: int, width: int) -> None:
    torch.manual_seed(height * 10 + width)
    conv = RepConv(channels).double().train()
    for parameter in conv.parameters():
        nn.init.normal_(parameter, mean=0.3)
    ours = copy.deepcopy(conv)
    x = random_map(batch, channels, height, width)
    x_ours = x.detach().clone().requires_grad_()
    gradient = torch.randn(batch, channels, height, width, dtype=torch.float64)

    expected = branches(conv, x)
    expected.backward(gradient)
    found = ours(x_ours)
    found.backward(gradient)

    assert close(found, expected)
    assert close(x_ours.grad, x.grad)
    for (name, parameter), (_, reference) in zip(ours.named_parameters(), conv.named_parameters(), strict=True):
        if name in ("dw1x1.bias", "inner_bn.bias"):  # zero in exact arithmetic: the outer normalisation removes a mean
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
        else:
            assert close(parameter.grad, reference.grad), name
    for (name, buffer), (_, reference_buffer) in zip(ours.named_buffers(), conv.named_buffers(), strict=True):
        assert close(buffer.double(), reference_buffer.double()), name


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4)])
def test_depthwise_gradients_are_the_librarys(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 12, kernel, padding=kernel // 2, groups=12).double()
    x = random_map(2, 12, *size)
    x_ours = x.detach().clone().requires_grad_()
    weight, bias = conv.weight.detach().clone().requires_grad_(), conv.bias.detach().clone().requires_grad_()
    gradient = torch.randn(2, 12, *size, dtype=torch.float64)

    conv(x).backward(gradient)
    depthwise.depthwise(x_ours, weight, bias).backward(gradient)

    assert close(x_ours.grad, x.grad)
    assert close(weight.grad, conv.weight.grad)
    assert close(bias.grad, conv.bias.grad)


def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    conv = RepConv(64).train()
    x = torch.randn(5, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    gradients = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            conv.zero_grad()
            conv(x).square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in conv.parameters()])
    finally:
        torch.set_num_threads(threads)
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


def test_under_autocast_the_statistics_are_those_of_float32() -> None:
    torch.manual_seed(0)
    conv = RepConv(16).train()
    reference = copy.deepcopy(conv)
    x = torch.randn(2, 16, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = conv(x)
    expected = branches(reference, x.float())
    assert result.dtype == torch.float32
    assert torch.allclose(result, expected, atol=1e-5)


def test_without_numba_the_branches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "_kernels", lambda: None)
    conv = RepConv(8).train()
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(conv(x), branches(copy.deepcopy(conv), x), atol=1e-6)
