import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from

from repmamba.errors import ShapeMismatch
from repmamba.network.config import PUBLISHED, NetworkConfig
from repmamba.network.repconv import RepConv
from repmamba.network.repmamba import RepMamba


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def saved_by_folding_repconvs(network):
    """A RepConv is one 3x3 kernel and a bias when folded."""
    repconvs = [module for module in network.modules() if isinstance(module, RepConv)]
    return sum(parameters(repconv) - 10 * repconv.dw3x3.weight.shape[0] for repconv in repconvs)


@pytest.mark.parametrize(
    ("options", "trained", "folded"),
    [
        ({"scale": 2}, 775_212, 764_412),
        ({"scale": 3}, 783_867, 773_067),
        ({"scale": 4}, 795_984, 785_184),
        ({"upsampler": "pixelshuffle"}, 1_102_371, 1_091_571),
        ({"upsampler": "nearest+conv"}, 917_731, 906_931),
        ({"upsampler": "none", "scale": 1}, 770_019, 759_219),
        ({"resi_connection": "3conv"}, 668_976, 658_176),
    ],
    ids=str,
)
def test_parameters_are_counted_as_published(options, trained, folded):
    network = RepMamba(NetworkConfig(**options))
    assert parameters(network) == trained
    assert trained - saved_by_folding_repconvs(network) == folded


def test_parts_have_the_sizes_of_the_specification():
    network = RepMamba(NetworkConfig())
    block = network.groups[0].blocks[0]
    assert parameters(network.groups[0]) == 121_552
    assert parameters(block.cssp) == 64_592
    assert [parameters(rmb) for rmb in block.cssp.children()] == [2_480, 5_728, 14_528, 41_856]
    assert parameters(block.ffn) == 8_320 + 3_328 + 8_256
    buffers = [
        value
        for name, value in network.state_dict().items()
        if "running" in name or "tracked" in name
    ]
    assert sum(buffer.numel() for buffer in buffers) == 10_200


SMALL = {
    scale: NetworkConfig(
        scale=scale, depths=(1,), upsampler="none" if scale == 1 else "pixelshuffledirect"
    )
    for scale in (1, 2, 3, 4)
}


@settings(max_examples=15)
@given(height=integers(1, 9), width=integers(1, 9), scale=sampled_from([1, 2, 3, 4]))
def test_odd_sizes_are_padded_by_the_last_row_and_column_and_cropped(shaken, height, width, scale):
    network = shaken(SMALL[scale])
    image = torch.rand(1, 3, height, width)
    repeated = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
    with torch.no_grad():
        result, even = network(image), network(repeated)
    assert result.shape == (1, 3, scale * height, scale * width)
    assert torch.equal(result, even[..., : scale * height, : scale * width])


@pytest.mark.parametrize("in_chans", [1, 2, 4, 13])
def test_any_number_of_bands_goes_through(shaken, in_chans):
    network = shaken(NetworkConfig(in_chans=in_chans, depths=(1,)))
    with torch.no_grad():
        assert network(torch.rand(2, in_chans, 4, 6)).shape == (2, in_chans, 16, 24)
    assert (network.mean == 0).all()


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_each_published_network_upscales_by_its_scale(config):
    network = RepMamba(config).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 2, 4)).shape == (1, 3, 2 * config.scale, 4 * config.scale)
    assert network.scale == config.scale


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 3, 0, 4), (0, 3, 4, 4)])
def test_an_input_that_does_not_fit_is_refused_in_one_line(shape):
    with pytest.raises(ShapeMismatch, match="this network takes \\(batch, 3, height, width\\)"):
        RepMamba(NetworkConfig(depths=(1,)))(torch.zeros(shape))


@pytest.mark.parametrize(
    "switches", [{"repconv": False}, {"cssp": False}, {"repconv": False, "cssp": False}], ids=str
)
def test_ablated_networks_train(switches):
    network = RepMamba(NetworkConfig(depths=(1,), **switches))
    assert any(isinstance(module, RepConv) for module in network.modules()) == switches.get(
        "repconv", True
    )
    network(torch.rand(2, 3, 4, 4)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_cssp_each_rmb_only_sees_its_own_channels(shaken):
    network = shaken(NetworkConfig(depths=(1,), cssp=False))
    side_by_side = network.groups[0].blocks[0].cssp
    assert [rmb.ss2d.width for rmb in side_by_side.rmbs] == [8, 8, 16, 32]
    t = torch.rand(1, 64, 4, 4)
    changed = t.clone()
    changed[:, 16:32] += 1
    with torch.no_grad():
        difference = (side_by_side(t) - side_by_side(changed)).abs().amax((0, 2, 3))
    assert (difference[16:32] > 0).all()
    assert (difference[:16] == 0).all()
    assert (difference[32:] == 0).all()


def test_img_range_scales_what_the_body_sees_and_back():
    network = RepMamba(NetworkConfig(depths=(1,), img_range=255.0)).eval()
    seen = []
    network.conv_first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        network(image)
    assert torch.allclose(seen[0], 255 * (image - network.mean))
