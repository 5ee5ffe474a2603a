"""The fused network as an ONNX graph: `repmamba.network.fusion`, in the same order.

Values are tokens, (batch, height, width, channel), as matrix products and normalisations work on
the last axis; only convolutions and the scan take maps, (batch, channel, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from repmamba.errors import UsageError
from repmamba.exporting.graph import Graph, Length, Operand, Value
from repmamba.exporting.scan import Plan, plan_scans, scan_map
from repmamba.inference.exported import LR
from repmamba.network.config import SPLIT
from repmamba.network.fusion import (
    FusedCSSP,
    FusedGroup,
    FusedLPFM,
    FusedParallelRMBs,
    FusedRepMamba,
    FusedRMB,
    NormThenConv,
    ShiftedNorm,
)
from repmamba.network.repconv import EPS
from repmamba.network.repmamba import NearestConv, PixelShuffle, PixelShuffleDirect

TWICE = np.array([1, 1, 2, 2], np.float32)


@dataclass(frozen=True, slots=True)
class InputSize:
    """The input size of a graph; None for any."""

    height: int | None = None
    width: int | None = None


def write_network(graph: Graph, network: FusedRepMamba, size: InputSize) -> Value:
    """Add a network on the input LR: (batch, bands, h, w) -> (batch, bands, s h, s w)."""
    height, width = _size(graph, size)
    evened, plan = _evened(graph, height, width)
    with graph.scope("first"):
        mean = network.mean.reshape(1, -1, 1, 1)
        centred = graph.node("Sub", evened, mean.numpy())
        # The network pads its input with the mean, which is zero after the subtraction.
        shallow = _convolution(graph, network.conv_first, centred, taken=network.mean)
        deep = _norm(graph, network.embed_norm, _tokens(graph, shallow))
    for number, group in enumerate(network.groups):
        assert isinstance(group, FusedGroup)
        with graph.scope(f"groups.{number}"):
            deep = _group(graph, group, deep, plan)
    with graph.scope("after_body"):
        deep = _after_body(graph, network.conv_after_body, deep, shallow)
    with graph.scope("upsampler"):
        sr = _upsampled(graph, network.upsampler, deep, network.scale)
        ends = [graph.times(length, network.scale) for length in (height, width)]
        return graph.node("Slice", sr, np.array([0, 0]), graph.vector(ends), np.array([2, 3]))


def _size(graph: Graph, size: InputSize) -> tuple[Length, Length]:
    if size.height is not None and size.width is not None:
        return size.height, size.width
    with graph.scope("plan"):
        shape = graph.node("Shape", LR, start=2)
        height, width = graph.nodes_of("Split", shape, np.array([1, 1]), count=2, axis=0)
    return height, width


def _evened(graph: Graph, height: Length, width: Length) -> tuple[Value, Plan]:
    """The input padded to even sizes with its last row and column, and the plan of the scans."""
    with graph.scope("plan"):
        low = [graph.pieces(length, 2) for length in (height, width)]
        odd = [
            graph.minus(graph.times(half, 2), length)
            for half, length in zip(low, (height, width), strict=True)
        ]
    plan = plan_scans(graph, *low)
    with graph.scope("first"):
        return graph.node("Pad", LR, graph.vector([0] * 6 + odd), mode="edge"), plan


def _group(graph: Graph, group: FusedGroup, deep: Value, plan: Plan) -> Value:
    body = deep
    for number, block in enumerate(group.blocks):
        assert isinstance(block, FusedLPFM)
        with graph.scope(f"blocks.{number}"):
            body = _block(graph, block, body, plan)
    with graph.scope("conv"):
        convolved = _tokens(graph, _connection(graph, group.conv, _map(graph, body)))
    return graph.node("Add", deep, convolved)


def _block(graph: Graph, block: FusedLPFM, t: Value, plan: Plan) -> Value:
    shares = graph.nodes_of("Split", t, np.array(SPLIT), count=len(SPLIT), axis=-1)
    cssp = block.cssp
    if isinstance(cssp, FusedCSSP):
        v, *others = shares
        for name, rmb in cssp.named_children():
            assert isinstance(rmb, FusedRMB)
            with graph.scope(f"cssp.{name}"):
                v = _rmb(graph, rmb, v, plan)
            if others:
                v = graph.node("Concat", v, others.pop(0), axis=-1)
    else:
        assert isinstance(cssp, FusedParallelRMBs)
        results = []
        for number, (rmb, share) in enumerate(zip(cssp.rmbs, shares, strict=True)):
            assert isinstance(rmb, FusedRMB)
            with graph.scope(f"cssp.{number}"):
                results.append(_rmb(graph, rmb, share, plan))
        v = graph.node("Concat", *results, axis=-1)
    a = graph.node("Add", t, v)
    with graph.scope("ffn"):
        return graph.node("Add", a, _feed_forward(graph, block, a))


def _feed_forward(graph: Graph, block: FusedLPFM, a: Value) -> Value:
    h = _gelu(graph, _linear(graph, block.ffn.fc1, _norm(graph, block.norm, a), "fc1"))
    convolved = _convolution(graph, block.ffn.dw5x5, _map(graph, h), "dw5x5")
    h = graph.node("Add", h, _tokens(graph, _gelu(graph, convolved)))
    return _linear(graph, block.ffn.fc2, h, "fc2")


def _rmb(graph: Graph, rmb: FusedRMB, v: Value, plan: Plan) -> Value:
    n = _norm(graph, rmb.norm, v)
    x = _map(graph, _linear(graph, rmb.in_x, n, "in_x"))
    x = _silu(graph, _convolution(graph, rmb.conv, x, "conv"))
    width = rmb.gain.numel()
    low, high = graph.nodes_of("Split", x, np.array([width, width]), count=2, axis=1)
    pooled = graph.node("AveragePool", low, kernel_shape=[2, 2], strides=[2, 2])
    residue = graph.node("Sub", low, _doubled(graph, pooled, "nearest"))
    with graph.scope("scan"):
        scanned = scan_map(graph, rmb, pooled, plan)
    low = graph.node("Add", residue, _doubled(graph, scanned, "linear"))
    high = _convolution(graph, rmb.high_conv, high, "high_conv")
    y = _tokens(graph, graph.node("Concat", low, high, axis=1))
    gate = _silu(graph, _linear(graph, rmb.in_z, n, "in_z"))
    gated = graph.node("Mul", _norm(graph, rmb.out_norm, y), gate)
    result = _linear(graph, rmb.out_proj, gated, "out_proj")
    return graph.node("Add", result, graph.node("Mul", v, rmb.gain.flatten().numpy()))


def _after_body(graph: Graph, end: NormThenConv, deep: Value, skip: Value) -> Value:
    """conv(norm(deep)) + skip, as a map."""
    edge = end.edge if end.folded else None
    shift = None if edge is None else -edge
    normalised = _map(graph, _norm(graph, end.norm, deep, shift=shift))
    return graph.node("Add", _connection(graph, end.conv, normalised, taken=edge), skip)


def _upsampled(graph: Graph, upsampler: nn.Module, u: Value, scale: int) -> Value:
    if isinstance(upsampler, PixelShuffleDirect):
        return _shuffled(graph, _convolution(graph, upsampler.conv, u), scale)
    if isinstance(upsampler, PixelShuffle):
        u = graph.node("LeakyRelu", _convolution(graph, upsampler.conv_before, u), alpha=0.01)
        for conv in upsampler.convs:
            u = _shuffled(graph, _convolution(graph, conv, u), upsampler.shuffle.upscale_factor)
        return _convolution(graph, upsampler.conv_last, u)
    if isinstance(upsampler, NearestConv):
        u = graph.node("LeakyRelu", _convolution(graph, upsampler.conv_before, u), alpha=0.01)
        for conv in (upsampler.conv_up1, upsampler.conv_up2):
            u = _convolution(graph, conv, _doubled(graph, u, "nearest"))
            u = graph.node("LeakyRelu", u, alpha=0.2)
        u = graph.node("LeakyRelu", _convolution(graph, upsampler.conv_hr, u), alpha=0.2)
        return _convolution(graph, upsampler.conv_last, u)
    raise UsageError(f"A network with the upsampler {type(upsampler).__name__} cannot be exported.")


def _shuffled(graph: Graph, u: Value, step: int) -> Value:
    return graph.node("DepthToSpace", u, blocksize=step, mode="CRD")


def _connection(graph: Graph, conv: nn.Module, x: Value, *, taken: Tensor | None = None) -> Value:
    """The convolution at the end of a group or of the body, or the bottleneck of three."""
    for layer in conv if isinstance(conv, nn.Sequential) else (conv,):
        if isinstance(layer, nn.LeakyReLU):
            x = graph.node("LeakyRelu", x, alpha=layer.negative_slope)
        else:
            x, taken = _convolution(graph, layer, x, taken=taken), None
    return x


def _convolution(
    graph: Graph, conv: nn.Module, x: Value, name: str = "conv", *, taken: Tensor | None = None
) -> Value:
    """A convolution of a map, of the same size.

    taken: what was subtracted from each channel of x, and what the network pads with.
    """
    assert isinstance(conv, nn.Conv2d)
    kernel = conv.weight.double()
    bias = kernel.new_zeros(kernel.shape[0]) if conv.bias is None else conv.bias.double()
    if taken is not None:
        bias = bias + (kernel * taken.double().reshape(1, -1, 1, 1)).sum((1, 2, 3))
    weight = graph.weight(conv.weight.contiguous(), f"{name}.weight")
    pads = [length // 2 for length in conv.kernel_size] * 2
    return graph.node("Conv", x, weight, bias.numpy(), pads=pads, group=conv.groups)


def _linear(graph: Graph, layer: nn.Linear, tokens: Value, name: str) -> Value:
    weight = graph.weight(layer.weight.T.contiguous(), f"{name}.weight")
    product = graph.node("MatMul", tokens, weight)
    return graph.node("Add", product, layer.bias.numpy())


def _norm(graph: Graph, norm: nn.Module, tokens: Value, *, shift: Tensor | None = None) -> Value:
    """Layer normalisation over the last axis; the first one may be missing."""
    if isinstance(norm, nn.Identity):
        return tokens
    weight: Any
    if isinstance(norm, ShiftedNorm):
        weight, bias = np.ones(norm.width), norm.shift if shift is None else shift
    else:
        assert isinstance(norm, nn.LayerNorm)
        weight, bias = norm.weight.numpy(), norm.bias
    affine: list[Operand] = [weight] if bias is None else [weight, bias.numpy()]
    return graph.node("LayerNormalization", tokens, *affine, axis=-1, epsilon=EPS)


def _silu(graph: Graph, x: Value) -> Value:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _gelu(graph: Graph, x: Value) -> Value:
    erf = graph.node("Erf", graph.node("Mul", x, np.array(0.5**0.5)))
    product = graph.node("Mul", x, graph.node("Add", erf, np.array(1.0)))
    return graph.node("Mul", product, np.array(0.5))


def _doubled(graph: Graph, x: Value, mode: str) -> Value:
    """A map at twice its size, as by torch's interpolate."""
    how = {
        "linear": {"coordinate_transformation_mode": "half_pixel"},
        "nearest": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    }[mode]
    return graph.node("Resize", x, "", TWICE, mode=mode, **how)


def _tokens(graph: Graph, image: Value) -> Value:
    """(batch, channel, height, width) -> (batch, height, width, channel)."""
    return graph.node("Transpose", image, perm=[0, 2, 3, 1])


def _map(graph: Graph, tokens: Value) -> Value:
    """(batch, height, width, channel) -> (batch, channel, height, width)."""
    return graph.node("Transpose", tokens, perm=[0, 3, 1, 2])
