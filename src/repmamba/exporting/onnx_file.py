"""A network as an ONNX file: graph, metadata and checksum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repmamba import __version__
from repmamba.errors import MissingExtra
from repmamba.exporting.graph import IR_VERSION, OPSET, Graph
from repmamba.exporting.network import InputSize, write_network
from repmamba.exporting.programs import Program
from repmamba.inference.exported import BLANK, CHECKSUM, LR, SR, sealed
from repmamba.network.fusion import FusedRepMamba


def graph_of(network: FusedRepMamba, size: InputSize, program: Program, *, half: bool) -> Graph:
    """The graph of a network and of a program's last nodes. Raises MissingExtra."""
    try:
        import onnx  # noqa: F401
    except ImportError as missing:
        raise MissingExtra(
            "An export as .onnx needs onnx: pip install 'repmamba[onnx]'."
        ) from missing
    graph = Graph(half=half)
    result = program.write(graph, write_network(graph, network, size))
    graph.rename(result, SR)
    return graph


def model_of(graph: Graph, network: FusedRepMamba, size: InputSize) -> Any:
    """The model of a graph, without metadata."""
    from onnx import TensorProto, helper

    scale, bands = network.scale, network.config.in_chans
    lr: list[Any] = ["batch", bands, "height", "width"]
    sr: list[Any] = ["batch", bands, f"{scale}*height", f"{scale}*width"]
    if size.height is not None and size.width is not None:
        lr = [1, bands, size.height, size.width]
        sr = [1, bands, scale * size.height, scale * size.width]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in ((LR, lr), (SR, sr))
    ]
    written = helper.make_graph(
        graph.nodes, "repmamba", ends[:1], ends[1:], list(graph.constants.values())
    )
    return helper.make_model(
        written,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="repmamba",
        producer_version=__version__,
    )


def content_of(model: Any, metadata: Mapping[str, str]) -> bytes:
    """The file: the model with this metadata and its checksum."""
    from onnx import helper

    helper.set_model_props(model, {**metadata, CHECKSUM: BLANK})
    return sealed(model.SerializeToString())
