"""The network against the published modules, with the tolerances of the golden numbers' README."""

import json
from pathlib import Path

import pytest
import torch

from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.published import from_published, published_names, to_published
from repmamba.network.repmamba import RepMamba

VARIANTS = ("upsampler_pixelshuffle", "upsampler_nearest_conv", "resi_3conv")
# the README allows 1e-4 and 1e-5; a sound one is within these
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-8}


@pytest.fixture(params=[False, True], ids=["as trained", "fused"])
def form(request):
    return fuse if request.param else lambda network: network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_results_are_those_of_the_published_network(scale, case, dtype, form, numbers, network_of):
    golden = numbers(f"eval_x{scale}")
    with torch.no_grad():
        result = form(network_of(f"net_x{scale}", dtype=dtype))(golden[f"{case}.input"].to(dtype))
    assert result.dtype == dtype
    assert (result - golden[f"{case}.output64"]).abs().max() < TOLERANCE[dtype]
    assert (result - golden[f"{case}.output32"]).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_results_on_a_gpu_are_those_of_the_published_network(scale, form, numbers, network_of):
    golden = numbers(f"eval_x{scale}")
    network = form(network_of(f"net_x{scale}", dtype=torch.float64)).float().cuda()
    with torch.no_grad():
        result = network(golden["a.input"].float().cuda()).cpu()
    assert (result - golden["a.output64"]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_those_of_the_published_network(variant, dtype, form, numbers, network_of):
    golden = numbers(variant)
    with torch.no_grad():
        result = form(network_of(variant, dtype=dtype))(golden["a.input"].to(dtype))
    assert (result - golden["a.output64"]).abs().max() < TOLERANCE[dtype]


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def trained(request, numbers, network_of):
    """The network after one forward and backward pass in training mode, its prediction and its
    loss.
    """
    golden = numbers("train_x4")
    network = network_of("net_x4", dtype=request.param).train()
    prediction = network(golden["input"].to(request.param))
    loss = (prediction - golden["target"].to(request.param)).abs().mean()
    loss.backward()
    return network, prediction.detach(), loss.detach()


def test_loss_is_that_of_the_published_network(trained, numbers):
    _, prediction, loss = trained
    golden = numbers("train_x4")
    assert (prediction - golden["pred64"]).abs().max() < 1e-4
    assert abs(loss.item() - golden["loss64"].item()) < 1e-5


def test_every_gradient_is_that_of_the_published_network(trained, numbers):
    network, _, _ = trained
    golden = numbers("train_x4")
    gradients = to_published(
        network.config, {name: value.grad for name, value in network.named_parameters()}
    )
    assert set(gradients) == {
        key.removeprefix("grad.") for key in golden if key.startswith("grad.")
    }
    for name, gradient in gradients.items():
        expected = golden[f"grad.{name}"]
        assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-8, name


def test_batch_statistics_are_those_of_the_published_network(trained, numbers):
    network, _, _ = trained
    golden = numbers("train_x4")
    buffers = {name: value for name, value in network.named_buffers() if name != "mean"}
    buffers = to_published(network.config, buffers)
    assert set(buffers) == {key.removeprefix("stat.") for key in golden if key.startswith("stat.")}
    for name, statistic in buffers.items():
        assert (statistic - golden[f"stat.{name}"]).abs().max() <= 1e-5, name
        if name.endswith("num_batches_tracked"):
            assert statistic.equal(golden[f"stat.{name}"])


def test_fresh_weights_are_distributed_as_published(golden: Path):
    statistics = json.loads((golden / "init_stats.json").read_text())["parameters"]
    torch.manual_seed(0)
    network = RepMamba(NetworkConfig())
    fresh = {
        name: tensor.double()
        for name, tensor in to_published(network.config, network.state_dict()).items()
        if not name.endswith("num_batches_tracked")
    }
    assert set(fresh) == set(statistics)
    for name, tensor in fresh.items():
        known = statistics[name]
        assert list(tensor.shape) == known["shape"]
        std = tensor.std().item() if tensor.numel() > 1 else 0.0
        if known["std_of_means"] == 0 and known["std_of_stds"] == 0:
            assert tensor.mean().item() == pytest.approx(known["mean"], abs=1e-6), name
            assert tensor.min().item() == pytest.approx(known["min"], abs=1e-6), name
            assert tensor.max().item() == pytest.approx(known["max"], abs=1e-6), name
        else:
            assert (
                abs(tensor.mean().item() - known["mean_of_means"]) <= 5 * known["std_of_means"]
            ), name
            assert abs(std - known["mean_of_stds"]) <= 5 * known["std_of_stds"], name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_names_translate_to_the_published_ones_and_back(scale, numbers):
    config = NetworkConfig(scale=scale)
    state = numbers(f"net_x{scale}")
    ours = from_published(config, state)
    assert len(ours) == len(state) == 1102
    assert set(published_names(config).values()) == set(state)
    assert all(to_published(config, ours)[name] is tensor for name, tensor in state.items())
