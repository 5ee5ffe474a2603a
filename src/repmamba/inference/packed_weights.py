"""The fused network's weights in the layout of the compiled passes (kernels/inference.h)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.kernels.library import library
from repmamba.network.fusion import (
    FusedGroup,
    FusedLPFM,
    FusedParallelRMBs,
    FusedRepMamba,
    FusedRMB,
)
from repmamba.network.repmamba import PixelShuffleDirect

Array = NDArray[np.float32]

# fields of a kernel's arguments that are the same for every shape: arrays and numbers
Fields = dict[str, Any]

# bytes of an AVX-512 register and a cache line; a load across two lines takes twice the time
ALIGNMENT = 64

MOST_INPUTS = 512  # most inputs of a product in pairs, as in pairs.h


def empty(count: int) -> Array:
    """An uninitialised, aligned array of `count` numbers."""
    memory = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count * 4].view(np.float32)


def _aligned(array: NDArray[np.float32]) -> Array:
    copy = empty(array.size).reshape(array.shape)
    copy[...] = array
    return copy


class Packing:
    """Packs weights for the kernels of one arithmetic (kernels/products.h)."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.lanes, self.panel = library().lanes, library().panel

    def of_pairs(self, inputs: int) -> bool:
        """Whether a product with this many inputs is computed in pairs of bfloat16."""
        return self.suffix != "" and inputs % 32 == 0 and inputs <= MOST_INPUTS

    def matrix(self, weights: NDArray[np.float32]) -> Array:
        """(inputs, outputs) or (n, inputs, outputs) -> their panels, one row per matrix."""
        weights = weights.reshape(-1, *weights.shape[-2:])
        panel = self.panel
        if self.of_pairs(weights.shape[1]):
            weights = _pairs(_whole(weights, 16))
            panel = 32 if self.suffix == "_amx" else panel
        weights = _whole(weights)
        outputs = weights.shape[2]
        places = {*range(panel, outputs, panel), outputs - outputs % self.lanes} - {0, outputs}
        parts = [
            part.reshape(len(weights), -1) for part in np.split(weights, sorted(places), axis=2)
        ]
        return _aligned(np.concatenate(parts, axis=1))

    def outputs(self, inputs: int, outputs: int) -> int:
        """Columns of a matrix padded to whole registers."""
        return -(-outputs // 16) * 16 if self.of_pairs(inputs) else -(-outputs // 8) * 8


def _whole(numbers: NDArray[np.float32], multiple: int = 8) -> NDArray[np.float32]:
    """The last axis padded with zeros to a multiple."""
    return np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % multiple)])


def _pairs(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, inputs, outputs) -> (n, inputs / 2, outputs), two bfloat16 inputs in each float32."""
    n, inputs, outputs = matrices.shape
    rounded = (
        torch.from_numpy(np.ascontiguousarray(matrices))
        .to(torch.bfloat16)
        .view(torch.int16)
        .numpy()
    )
    interleaved = np.swapaxes(rounded.reshape(n, inputs // 2, 2, outputs), 2, 3)
    return np.ascontiguousarray(interleaved).view(np.float32).reshape(n, inputs // 2, outputs)


class Layers:
    """The weights of all passes, in order."""

    def __init__(self, network: FusedRepMamba, suffix: str) -> None:
        """suffix: of the kernels' names: "" for float32, "_pairs" or "_amx" for bfloat16."""
        self.suffix = suffix
        packing = Packing(suffix)
        self.first = _first(packing, network)
        self.groups = [
            (
                [Block(packing, block) for block in group.blocks if isinstance(block, FusedLPFM)],
                _connection(packing, group.conv),
            )
            for group in network.groups
            if isinstance(group, FusedGroup)
        ]
        end = network.conv_after_body
        norm = {"norm": 1, **_affine(end.norm, "norm_")}
        edge = {"edge": _row(end.edge)} if end.folded else {}
        self.end = _connection(packing, end.conv, **norm, **edge)
        self.bands, self.scale = network.config.in_chans, network.scale
        self.shuffled: Fields | None = None
        if isinstance(network.upsampler, PixelShuffleDirect):
            sizes = {"bands": self.bands, "scale": self.scale}
            self.shuffled = _convolution(packing, network.upsampler.conv) | sizes


class Block:
    """The weights of an LPFM: its RMBs and its ConvFFN."""

    def __init__(self, packing: Packing, block: FusedLPFM) -> None:
        self.chained = not isinstance(block.cssp, FusedParallelRMBs)
        rmbs = (part for part in block.cssp.modules() if isinstance(part, FusedRMB))
        self.rmbs = [RMBWeights(packing, rmb) for rmb in rmbs]
        ffn = block.ffn
        hidden = _row(ffn.fc1.bias).size
        # Padded hidden channels stay zero through both activations.
        back = np.pad(_numbers(ffn.fc2.weight).T, ((0, hidden - ffn.fc1.out_features), (0, 0)))
        self.feed_forward: Fields = {
            "channels": len(ffn.fc2.weight),
            "hidden": hidden,
            "fc1": packing.matrix(_numbers(ffn.fc1.weight).T),
            "fc1_bias": _row(ffn.fc1.bias),
            "conv": _taps(ffn.dw5x5),
            "conv_bias": _row(ffn.dw5x5.bias),
            "fc2": packing.matrix(back),
            "fc2_bias": _row(ffn.fc2.bias),
        }


class RMBWeights:
    """The weights of an RMB: of its first pass, its scan and its second pass."""

    def __init__(self, packing: Packing, rmb: FusedRMB) -> None:
        self.width = rmb.gain.numel()
        self.projections = packing.outputs(self.width, len(rmb.x_proj))
        self.front: Fields = {
            "in_x": packing.matrix(_numbers(rmb.in_x.weight).T),
            "in_x_bias": _row(rmb.in_x.bias),
            "conv": _taps(rmb.conv),
            "conv_bias": _row(rmb.conv.bias),
            "high_conv": _taps(rmb.high_conv),
            "high_bias": _row(rmb.high_conv.bias),
            "x_proj": packing.matrix(_numbers(rmb.x_proj).T),
            "projections": self.projections,
        }
        scan = (rmb.dt_weight, rmb.dt_bias, rmb.A, rmb.D)
        self.scan = tuple(weight.detach().clone() for weight in scan)
        self.tail: Fields = {
            "in_z": packing.matrix(_numbers(rmb.in_z.weight).T),
            "in_z_bias": _row(rmb.in_z.bias),
            **_affine(rmb.out_norm, "out_"),
            "out_proj": packing.matrix(_numbers(rmb.out_proj.weight).T),
            "out_bias": _row(rmb.out_proj.bias),
            "gain": _row(rmb.gain),
        }


def _first(packing: Packing, network: FusedRepMamba) -> Fields:
    conv, norm = network.conv_first, network.embed_norm
    rows = _numbers(conv.weight).transpose(2, 3, 1, 0).reshape(3, -1, conv.out_channels)
    return {
        "inputs": conv.in_channels,
        "outputs": conv.out_channels,
        "edge": _row(network.mean),
        "weight": Packing("").matrix(rows),
        "bias": _row(conv.bias),
        **({} if isinstance(norm, nn.Identity) else _affine(norm)),
    }


def _connection(packing: Packing, conv: Any, **first: Any) -> list[Fields]:
    """The convolution at the end of a group or of the body, or the three of the bottleneck.

    first: further fields of the first convolution.
    """
    layers = [layer for layer in conv.modules() if isinstance(layer, nn.Conv2d)]
    slopes = [layer.negative_slope for layer in conv.children() if isinstance(layer, nn.LeakyReLU)]
    passes = [
        _convolution(packing, layer, slope=slope)
        for layer, slope in zip(layers, [*slopes, 1.0], strict=True)
    ]
    passes[0] |= first
    return passes


def _convolution(packing: Packing, conv: nn.Conv2d, **more: Any) -> Fields:
    """A 3x3 convolution; a pointwise one becomes a 3x3 one with only the centre."""
    around = (3 - conv.kernel_size[0]) // 2
    weight = np.pad(_numbers(conv.weight), ((0, 0), (0, 0), (around, around), (around, around)))
    inputs = conv.in_channels
    if packing.suffix == "_amx" and packing.of_pairs(inputs):
        kernel, matrices = "convolution_amx", weight.transpose(2, 3, 1, 0).reshape(9, inputs, -1)
    else:
        kernel = "convolution" + packing.suffix.replace("_amx", "_pairs")
        matrices = _elements(weight)
    bias = np.zeros(conv.out_channels, np.float32) if conv.bias is None else _numbers(conv.bias)
    outputs = packing.outputs(inputs, conv.out_channels)
    return {
        "kernel": kernel,
        "inputs": inputs,
        "outputs": outputs,
        "weight": packing.matrix(matrices),
        "bias": _aligned(_whole(bias, outputs)),
        "edge": _aligned(np.zeros(inputs, np.float32)),
        "slope": 1.0,
        **more,
    }


def _elements(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """G g G^T of every filter, after Winograd: (N, C, 3, 3) -> (16, C, N)."""
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    elements = np.einsum("ip,ncpq,jq->ijcn", G, weight.astype(np.float64), G, optimize=True)
    return np.ascontiguousarray(elements.reshape(16, *elements.shape[2:]), np.float32)


def _affine(norm: Any, prefix: str = "") -> Fields:
    """Scale and shift of a layer normalisation, or only the shift, or nothing if it has neither."""
    if isinstance(norm, nn.LayerNorm):
        return {f"{prefix}scale": _row(norm.weight), f"{prefix}shift": _row(norm.bias)}
    if norm.shift is None:
        return {}
    shift = _row(norm.shift)
    return {f"{prefix}scale": _aligned(np.ones_like(shift)), f"{prefix}shift": shift}


def _taps(conv: Any) -> Array:
    """Weights of a depthwise convolution as (taps, channels)."""
    return _aligned(_whole(_numbers(conv.weight).reshape(len(conv.weight), -1).T))


def _row(values: Any) -> Array:
    assert values is not None, "every folded layer has a bias"
    return _aligned(_whole(_numbers(values).ravel()))


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array
