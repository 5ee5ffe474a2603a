"""The scan's nodes against its definition, also where a factored form would overflow."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from repmamba.exporting.graph import IR_VERSION, OPSET, Graph
from repmamba.exporting.scan import plan_scans, scan_map
from repmamba.inference.onnx_runner import open_session
from repmamba.scan.definition import scan_by_definition
from repmamba.scan.selective import scan_map_as_sequences


class Layer:
    """Random tensors of an RMB for the scan."""

    def __init__(self, channel: int, *, bias: float, fastest: float) -> None:
        rank = 2
        self.x_proj = torch.randn(4 * (rank + 32), channel) / channel**0.5
        self.dt_weight = torch.randn(4, channel, rank)
        self.dt_bias = torch.randn(4, channel) + bias
        self.A = -torch.logspace(-2, np.log10(fastest), 16).repeat(4 * channel, 1)
        self.D = torch.randn(4 * channel)


def session_of(layer: Layer, size: tuple[int, int] | None):
    graph = Graph()
    channel = layer.dt_weight.shape[1]
    if size is None:
        shape = graph.node("Shape", "p", start=2)
        sides = graph.nodes_of("Split", shape, np.array([1, 1]), count=2, axis=0)
    else:
        sides = list(size)
    result = scan_map(graph, layer, "p", plan_scans(graph, *sides))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", channel, "h", "w"])
        for name in ("p", result)
    ]
    written = helper.make_graph(
        graph.nodes, "scan", ends[:1], ends[1:], list(graph.constants.values())
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(written, opset_imports=opset, ir_version=IR_VERSION)
    return open_session(model.SerializeToString())


def by_definition(layer: Layer, p: torch.Tensor) -> torch.Tensor:
    p = p.double()
    projected = torch.einsum("nc,bchw->bnhw", layer.x_proj.double(), p)
    rest = (layer.dt_weight, layer.dt_bias, layer.A, layer.D)
    return scan_map_as_sequences(
        scan_by_definition, p, projected, *(each.double() for each in rest)
    )


# one pixel; a block exactly, and a little more; a batch; lines; several blocks
SIZES = [(1, 1, 1), (1, 16, 16), (1, 16, 17), (3, 5, 7), (1, 2, 600), (1, 40, 33)]


@pytest.mark.parametrize(("bias", "fastest"), [(-4.0, 20.0), (3.0, 500.0)], ids=["slow", "fast"])
def test_the_nodes_agree_with_the_definition_for_maps_of_any_size(bias: float, fastest: float):
    layer = Layer(6, bias=bias, fastest=fastest)
    session = session_of(layer, None)
    for batch, height, width in SIZES:
        p = torch.randn(batch, 6, height, width)
        expected = by_definition(layer, p)
        found = torch.from_numpy(session.run(None, {"p": p.numpy()})[0])
        assert found.shape == expected.shape
        bound = 1e-5 * expected.abs().max()
        assert (found - expected).abs().max() <= bound, (batch, height, width)


@pytest.mark.parametrize("size", [(1, 1), (16, 17), (40, 33)])
def test_a_map_of_a_fixed_size_is_scanned_as_one_of_any_size(size: tuple[int, int]):
    layer = Layer(4, bias=-3.0, fastest=20.0)
    p = torch.randn(1, 4, *size)
    found = session_of(layer, size).run(None, {"p": p.numpy()})[0]
    expected = by_definition(layer, p)
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_large_step_sizes_do_not_overflow():
    """In some steps the decay underflows float32, in others it is 1."""
    layer = Layer(4, bias=0.0, fastest=1e4)
    layer.dt_bias[:, ::2] = 60.0
    layer.dt_bias[:, 1::2] = -60.0
    p = torch.randn(1, 4, 24, 24)
    found = torch.from_numpy(session_of(layer, None).run(None, {"p": p.numpy()})[0])
    expected = by_definition(layer, p)
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
