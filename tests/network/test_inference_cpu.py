"""The compiled passes of the fused network against its own operations in torch, which are what fusion.py says."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repmamba.network import inference_cpu
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import LastConv, fuse
from repmamba.network.repmamba import RepMamba

pytest.importorskip("numba")

CONFIGS = (
    NetworkConfig(depths=(1,)),
    NetworkConfig(depths=(1,), scale=3, mlp_ratio=1.5),
    NetworkConfig(depths=(1,), cssp=False, scale=2),
    NetworkConfig(depths=(1,), mlp_ratio=1.2),  # 76 hidden channels fill no whole registers: the ConvFFN stays in torch
    NetworkConfig(depths=(1,), resi_connection="3conv"),
    NetworkConfig(depths=(1,), upsampler="nearest+conv", in_chans=4),
)


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plainly(network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(inference_cpu, "serves", lambda *tensors: False)
        result: Tensor = network(image)
    return result


def relative_difference(result: Tensor, expected: Tensor) -> float:
    assert result.isfinite().all()
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the passes that run."""
    run: list[str] = []
    original = inference_cpu._over_rows

    def noted(name, *arguments):
        run.append(name)
        original(name, *arguments)

    monkeypatch.setattr(inference_cpu, "_over_rows", noted)
    return run


@settings(max_examples=30, deadline=None)
@given(
    config=sampled_from(CONFIGS),
    seed=integers(0, 1 << 30),
    batch=integers(1, 3),
    height=integers(1, 19),
    width=integers(1, 19),
)
def test_compiled_equals_plain(shaken, config, seed, batch, height, width):
    fused = fuse(shaken(config, seed=seed))
    image = torch.rand(batch, config.in_chans, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        result = fused(image)
    with pytest.MonkeyPatch.context() as patch:
        expected = plainly(fused, image, patch)
    assert relative_difference(result, expected) < 1e-5


def test_all_stages_are_compiled(shaken, passes):
    with torch.no_grad():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 4, 4))
    assert passes == ["front", "tail"] * 4 + ["feed_forward"] + ["convolution"] * 3


def test_the_result_does_not_depend_on_the_number_of_threads(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(3, 3, 70, 34)  # three threads share its rows within images
    results = []
    with torch.no_grad():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_calls_from_several_threads_do_not_meet(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    images = [torch.rand(1, 3, size, 20) for size in (12, 30, 22, 8)]
    with torch.no_grad():
        expected = [fused(image) for image in images]
    wrong = []

    def check(image: Tensor, right: Tensor) -> None:
        with torch.no_grad():
            wrong.extend(image.shape for _ in range(5) if not torch.equal(fused(image), right))

    threads = [threading.Thread(target=check, args=pair) for pair in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buffers_kept_between_calls_carry_nothing_over(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 10)
    with torch.no_grad():
        expected = fused(image)
        fused(torch.full((2, 3, 40, 30), torch.nan))
        assert torch.equal(fused(image), expected)


def test_changed_weights_are_seen(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 10)
    with torch.no_grad():
        before = fused(image)
        for values in [*fused.parameters(), *fused.buffers()]:
            values.mul_(0.9)
        after = fused(image)
    assert not torch.allclose(before, after)
    assert relative_difference(after, plainly(fused, image, monkeypatch)) < 1e-5
    fused.load_state_dict(fuse(shaken(CONFIGS[0])).state_dict())
    with torch.no_grad():
        assert torch.equal(fused(image), before)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_watched_or_of_another_kind_runs_in_torch(shaken, passes):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 4, 6)
    with FlopCounterMode(display=False), torch.no_grad():
        fused(image)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        fused(image)
    with torch.no_grad():
        torch.jit.trace(fused, (image,), check_trace=False)
        copy.deepcopy(fused).double()(image.double())
    assert passes == []


def test_gradients_of_the_image_are_those_of_the_unfused_network(shaken, passes):
    network = shaken(CONFIGS[0])
    images = [torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for module, image in zip((network, fuse(network)), images, strict=True):
        module(image).square().sum().backward()
    assert passes == []
    assert relative_difference(images[1].grad, images[0].grad) < 1e-4


def test_inference_mode_is_served(shaken, passes):
    with torch.inference_mode():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 4, 6))
    assert passes


@pytest.mark.parametrize("outputs", [3, 12, 27, 48])
def test_a_last_convolution_may_have_any_number_of_outputs(outputs):
    conv = LastConv(64, outputs, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 64, 6, 8).to(memory_format=torch.channels_last)
    expected = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    assert relative_difference(conv(x), expected) < 1e-6


@pytest.mark.parametrize("value", [-100.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 100.0])
def test_gelu_and_silu_are_exact_far_from_zero_too(value):
    """Through the passes themselves: a ConvFFN and an RMB whose products give `value` everywhere."""
    from repmamba.network import inference_numba as kernels

    x, weight = torch.zeros(3, 1).numpy(), torch.zeros(1, 16).numpy()
    bias, result = torch.full((1, 16), value), torch.empty(3, 16)
    for kernel, function in (
        (kernels.product_silu, nn.functional.silu),
        (kernels.product_gelu, nn.functional.gelu),
    ):
        kernel(3, x, weight, 16, bias.numpy(), result.numpy())
        expected = function(bias.double()).expand(3, 16)
        assert (result - expected).abs().max() <= 2e-7 * max(1.0, abs(value))


def test_an_unfused_network_is_left_to_torch(passes):
    with torch.no_grad():
        RepMamba(CONFIGS[0]).eval()(torch.rand(1, 3, 4, 4))
    assert passes == []
