"""The graph of every kind of network gives the results of the network."""

import pytest
import torch

from repmamba.exporting.graph import Graph
from repmamba.exporting.network import InputSize
from repmamba.exporting.onnx_file import graph_of, model_of
from repmamba.exporting.programs import ANY
from repmamba.inference.exported import LR
from repmamba.inference.onnx_runner import open_session
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.repmamba import RepMamba

KINDS = {
    "x2": NetworkConfig(scale=2, depths=(1,)),
    "x3, two blocks, range": NetworkConfig(scale=3, depths=(2, 1), img_range=255.0),
    "x4, shuffles": NetworkConfig(scale=4, depths=(1,), upsampler="pixelshuffle"),
    "x3, shuffle of 3": NetworkConfig(scale=3, depths=(1,), upsampler="pixelshuffle"),
    "x4, nearest": NetworkConfig(scale=4, depths=(1,), upsampler="nearest+conv"),
    "bottlenecks": NetworkConfig(scale=2, depths=(1,), resi_connection="3conv"),
    "no first norm, 5 bands": NetworkConfig(scale=2, depths=(1,), patch_norm=False, in_chans=5),
    "ablated": NetworkConfig(scale=2, depths=(1,), repconv=False, cssp=False),
}


def drawn(config: NetworkConfig) -> RepMamba:
    """Weights and statistics that all differ from their initial values."""
    network = RepMamba(config).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and "A_log" not in name and "dt_" not in name:
                change = 0.03 * torch.randn_like(tensor)
                tensor.add_(change.abs() if "running_var" in name else change)
    return network


def results(network, size: InputSize, *shapes):
    graph = graph_of(network, size, ANY, half=False)
    session = open_session(model_of(graph, network, size).SerializeToString())
    for shape in shapes:
        lr = torch.rand(shape)
        with torch.inference_mode():
            yield torch.from_numpy(session.run(None, {LR: lr.numpy()})[0]), network(lr)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_the_results_of_the_network(kind: str):
    config = KINDS[kind]
    network, bands = fuse(drawn(config)), config.in_chans
    shapes = [(1, bands, 12, 10), (2, bands, 7, 9), (1, bands, 1, 1)]
    with torch.no_grad():
        for found, expected in results(network, InputSize(), *shapes):
            assert_near(found, expected)


def test_a_last_norm_that_cannot_be_folded_keeps_its_affine():
    network = drawn(NetworkConfig(scale=2, depths=(1,)))
    with torch.no_grad():
        network.norm.weight[3] = 0
    fused = fuse(network)
    assert not fused.conv_after_body.folded
    with torch.no_grad():
        ((found, expected),) = results(fused, InputSize(), (1, 3, 8, 8))
    assert_near(found, expected)


@pytest.mark.parametrize("size", [(11, 14), (32, 32)])
def test_a_graph_of_a_fixed_size_gives_the_results_of_the_network(size: tuple[int, int]):
    network = fuse(drawn(NetworkConfig(scale=2, depths=(1,))))
    with torch.no_grad():
        ((found, expected),) = results(network, InputSize(*size), (1, 3, *size))
    assert_near(found, expected)


def test_the_number_of_nodes_does_not_depend_on_the_input_size():
    network = fuse(RepMamba(NetworkConfig(scale=2, depths=(1,))))
    with torch.no_grad():
        graphs: list[Graph] = [
            graph_of(network, size, ANY, half=False)
            for size in (InputSize(), InputSize(64, 64), InputSize(1000, 1000))
        ]
    kinds = {node.op_type for graph in graphs for node in graph.nodes}
    assert not kinds & {"Loop", "Scan", "If"}
    counts = [len(graph.nodes) for graph in graphs]
    assert counts[1] == counts[2] < counts[0] < 1300
