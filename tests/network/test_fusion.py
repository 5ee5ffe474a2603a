import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repmamba.errors import UsageError
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import FusedRepMamba, fuse
from repmamba.network.repconv import EPS, RepConv
from repmamba.network.repmamba import RepMamba

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
CONFIGS = (
    NetworkConfig(depths=(1,)),
    NetworkConfig(depths=(2, 1), scale=2, img_range=255.0),
    NetworkConfig(depths=(1,), scale=3, in_chans=5, patch_norm=False),
    NetworkConfig(depths=(1,), upsampler="pixelshuffle", mlp_ratio=1.5, img_range=0.5),
    NetworkConfig(depths=(1,), upsampler="nearest+conv", resi_connection="3conv"),
    NetworkConfig(depths=(1,), upsampler="none", scale=1, img_range=2.0),
    NetworkConfig(depths=(1,), repconv=False),
    NetworkConfig(depths=(1,), cssp=False),
)


def relative_difference(result, expected):
    assert result.isfinite().all()
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


@settings(max_examples=24)
@given(
    config=sampled_from(CONFIGS),
    dtype=sampled_from([torch.float32, torch.float64]),
    seed=integers(0, 1 << 30),
    height=integers(1, 7),
    width=integers(1, 7),
    tiny=lists(sampled_from([0.0, -0.0, 1e-40, 1e-30, -1e-12, 1e-6, 1e-3]), max_size=4),
)
def test_fused_equals_unfused(shaken, config, dtype, seed, height, width, tiny):
    network = shaken(config, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d) and tiny:
                where = torch.randint(0, module.weight.numel(), (len(tiny),), generator=generator)
                module.weight[where] = torch.tensor(tiny, dtype=dtype)
        image = torch.rand(2, config.in_chans, height, width, generator=generator, dtype=dtype)
        expected = network(image)
        assert relative_difference(fuse(network)(image), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("weight", [0.0, 1e-38])
def test_an_affine_that_cannot_be_divided_by_is_kept(shaken, weight):
    network = shaken(CONFIGS[0])
    rmb = network.groups[0].blocks[0].cssp.m16
    assert fuse(network).conv_after_body.folded
    with torch.no_grad():
        network.norm.weight[3] = weight
        rmb.ss2d.out_norm.weight[5] = weight
    fused = fuse(network)
    assert not fused.conv_after_body.folded
    assert isinstance(fused.groups[0].blocks[0].cssp.m16.out_norm, nn.LayerNorm)
    assert not isinstance(fused.groups[0].blocks[0].cssp.m32.out_norm, nn.LayerNorm)


def test_fusing_does_not_change_the_network(shaken):
    network = shaken(CONFIGS[0]).train()
    before = copy.deepcopy(network.state_dict())
    fused = fuse(network)
    with torch.no_grad():
        for buffer in [*fused.buffers(), *fused.parameters()]:
            buffer.zero_()
    assert network.training
    assert not fused.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_fusing_twice_is_fusing_once(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    again = fuse(fused)
    image = torch.rand(1, 3, 4, 6)
    with torch.no_grad():
        assert torch.equal(fused(image), again(image))
    assert again is not fused
    assert isinstance(again, FusedRepMamba)


def test_a_network_in_training_mode_is_fused_as_in_evaluation(shaken):
    network = shaken(CONFIGS[0])
    image = torch.rand(1, 3, 4, 6)
    with torch.no_grad():
        expected = network(image)
        assert relative_difference(fuse(network.train())(image), expected) < 1e-5


def test_another_module_is_refused():
    with pytest.raises(UsageError, match="fuse got a Linear; expected a RepMamba"):
        fuse(nn.Linear(2, 2))


class Adapted(nn.Linear):
    """As an adapter changes a layer: its weight is not all that it computes."""

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


def test_a_layer_of_another_kind_or_another_eps_is_refused_rather_than_lost():
    network = RepMamba(NetworkConfig(depths=(1,)))
    block = network.groups[0].blocks[0]
    block.norm.eps = 1.0
    with pytest.raises(UsageError, match=r"whose groups\.0\.blocks\.0\.norm was replaced .* Merge"):
        fuse(network)
    block.norm.eps = EPS
    block.ffn.fc2 = Adapted(block.ffn.fc2.in_features, 64)
    with pytest.raises(
        UsageError, match=r"whose groups\.0\.blocks\.0\.ffn\.fc2 was replaced \(Adapted"
    ):
        fuse(network)


def test_fused_has_fewer_operations_and_no_batch_normalisation(shaken):
    network = shaken(NetworkConfig())
    fused = fuse(network)
    counts = []
    for module in (network, fused):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.rand(1, 3, 8, 8))
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0]
    assert not any(isinstance(module, nn.BatchNorm2d | RepConv) for module in fused.modules())
    values = [tensor.numel() for tensor in [*fused.parameters(), *fused.buffers()]]
    assert sum(values) < sum(parameter.numel() for parameter in network.parameters())


def test_a_fused_network_changes_type_as_a_whole(shaken):
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    network = shaken(CONFIGS[0])
    with torch.no_grad():
        result = fuse(network).double()(image)
        expected = network.double()(image)
    assert result.dtype == torch.float64
    assert relative_difference(result, expected) < 1e-5


@pytest.mark.parametrize("height", [4, 5])
def test_a_folded_repconv_is_one_convolution(height):
    repconv = RepConv(16).double().eval()
    with torch.no_grad():
        for tensor in [*repconv.parameters(), *repconv.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.2)
        x = torch.rand(2, 16, height, 3, dtype=torch.float64)
        folded = repconv.folded()
        assert relative_difference(folded(x), repconv(x)) < 1e-14
    assert sum(parameter.numel() for parameter in folded.parameters()) == 16 * 10


@pytest.mark.parametrize("scan", ["chunked", ""])
def test_a_fused_network_survives_export(shaken, scan, monkeypatch):
    monkeypatch.setenv("REPMAMBA_SCAN", scan)
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 4)
    with torch.no_grad():
        expected = fused(image)
        program = torch.export.export(fused, (image,))
        assert relative_difference(program.module()(image), expected) < 1e-5


def test_maps_stay_channels_last(shaken):
    """Tokens are then views of them: a layout that is lost on the way costs a copy at every layer
    behind it.
    """
    fused = fuse(shaken(CONFIGS[0]))
    lost = []

    def note(module, _, result):
        if not result.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in fused.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        fused(torch.rand(2, 3, 6, 8))
    assert lost == []
