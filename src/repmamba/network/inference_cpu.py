"""Inference of the fused network on a CPU by compiled passes over rows: what fusion.py says in torch, in fewer passes.

Between two layers of a block there is little arithmetic and much memory: in torch each operation reads and writes a
whole map. Here an RMB is two passes with the scan between them, a ConvFFN one, and a 3x3 convolution one
(inference_numba.py). fusion.py asks `serves` and takes its own operations where that says no: while gradients are
wanted or a program is traced, in other types than float32, on other devices, and without Numba.

Threads: rows are shared among torch.get_num_threads() threads, and the result is the same, bit by bit, for any number.
Maps between passes and the threads' scratch are kept from call to call, one set for each thread that calls: allocated
anew, their page faults would cost a third of the time.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, Protocol, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.network.convffn import ConvFFN
from repmamba.network.repconv import to_map, to_tokens

Array = NDArray[np.float32]
WORK_FOR_THREADS = 1 << 16
"""Numbers of a map below which handing a share to another thread costs more than it saves."""

LARGEST_KEPT = 1 << 26
"""Numbers of a buffer that is kept from call to call; a larger one goes back when its call ends."""


class FoldedRMB(Protocol):
    """What the passes read of fusion.FusedRMB, which is said there."""

    in_x: nn.Linear
    in_z: nn.Linear
    conv: nn.Module
    high_conv: nn.Module
    x_proj: Tensor
    out_norm: nn.Module
    out_proj: nn.Linear
    gain: Tensor

    def scan_projected(self, pooled: Tensor, projected: Tensor) -> Tensor:
        """The sum of the four directed scans."""


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether the compiled passes may compute on this map and these weights."""
    tensors = (x, *weights)
    return (
        not _watched()
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.is_autocast_enabled("cpu")
        and x.shape[2] % 2 == 0
        and x.shape[3] % 2 == 0
        and _kernels() is not None
    )


def _watched() -> bool:
    """Whether torch records operations: it compiles, exports or traces a program, or counts what is done."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def convolves(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether `convolution` may compute this layer: a dense 3x3 on whole registers of channels."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.groups == 1
        and serves(x, conv.weight)
        and conv.in_channels % _lanes() == 0
    )


def convolution(conv: nn.Conv2d, x: Tensor, skip: Tensor | None = None, edge: Tensor | None = None) -> Tensor:
    """conv(x) + skip, x in a frame of one pixel of the values `edge` (C) or zeros: (B, C, H, W) -> (B, N, H, W).

    A skip wants N to fill whole registers.
    """
    weight, bias = _packed(conv, _convolution_weights)
    outputs = weight.shape[1]
    result = torch.empty(x.shape[0], *x.shape[2:], outputs)
    frame = _zeros(1, x.shape[1]) if edge is None else _row(edge)
    added = _zeros(0, outputs) if skip is None else _pixels(skip)
    arrays = (_pixels(x), frame, weight, bias, added, _ones(outputs), _flat(result))
    _over_rows("convolution", x, arrays, lambda kernels, width: kernels.convolution_scratch(width, x.shape[1]))
    return to_map(result)[:, : conv.out_channels]


def rmb(module: FoldedRMB, v: Tensor, beside: Tensor | None = None) -> Tensor:
    """A folded RMB on v (B, C, H, W), and behind its channels those of `beside`: (B, C + n, H, W)."""
    batch, C, height, width = v.shape
    half = (batch, height // 2, width // 2)
    weights = _packed(module, _rmb_weights)
    residue, high = (_buffer(name, batch * height * width, C) for name in ("residue", "high"))
    pooled, projected = torch.empty(*half, C), torch.empty(*half, module.x_proj.shape[0])
    image = _rows(v)
    columns = weights["x_proj"].shape[1]
    _over_rows(
        "front",
        v,
        (image, *(weights[name] for name in FRONT), residue, high, _flat(pooled), _flat(projected)),
        lambda kernels, width: kernels.front_scratch(width, C, columns),
    )
    scanned = _pixels(module.scan_projected(to_map(pooled), to_map(projected)))
    beside = v[:, :0] if beside is None else beside
    result = torch.empty(batch, height, width, C + beside.shape[1])
    inputs = (scanned, residue, high, *(weights[name] for name in TAIL), _rows(beside))
    columns = weights["out_proj"].shape[1]
    _over_rows(
        "tail",
        v,
        (image, *(weights[name] for name in GATE), *inputs, _flat(result)),
        lambda kernels, width: kernels.tail_scratch(width, C, columns),
    )
    return to_map(result)


FRONT = ("scale", "shift", "in_x", "bias_x", "conv", "conv_bias", "high_conv", "high_bias", "x_proj")
GATE = ("scale", "shift", "in_z", "bias_z")
TAIL = ("out_scale", "out_shift", "out_proj", "out_bias", "gain")


def feed_forward(ffn: ConvFFN, t: Tensor, c: Tensor) -> Tensor:
    """a + ffn(LN(a)), a = t + c: (B, 64, H, W)."""
    weights = _packed(ffn, _ffn_weights)
    C, hidden = t.shape[1], ffn.fc1.out_features
    result = torch.empty(t.shape[0], *t.shape[2:], C)
    arrays = (_rows(t), _rows(c), _ones(C), _zeros(1, C), *weights, _ones(C), _flat(result))
    _over_rows("feed_forward", t, arrays, lambda kernels, width: kernels.feed_forward_scratch(width, C, hidden))
    return to_map(result)


def feeds_forward(ffn: ConvFFN, t: Tensor) -> bool:
    """Whether `feed_forward` may compute this part: its hidden channels fill whole registers."""
    return serves(t, ffn.fc1.weight) and ffn.fc1.out_features % _lanes() == 0


# The weights as the passes read them: (inputs, outputs), outputs added up with zeros to whole registers


def _rmb_weights(module: FoldedRMB) -> dict[str, Array]:
    assert isinstance(module.conv, nn.Conv2d)
    assert isinstance(module.high_conv, nn.Conv2d)
    width = module.gain.numel()
    out_scale, out_shift = _affine(module.out_norm, 2 * width)
    return {
        "scale": _ones(width),
        "shift": _zeros(1, width),
        "in_x": _matrix(module.in_x.weight),
        "bias_x": _row(module.in_x.bias),
        "conv": _taps(module.conv),
        "conv_bias": _row(module.conv.bias),
        "high_conv": _taps(module.high_conv),
        "high_bias": _row(module.high_conv.bias),
        "x_proj": _matrix(module.x_proj),
        "in_z": _matrix(module.in_z.weight),
        "bias_z": _row(module.in_z.bias),
        "out_scale": out_scale,
        "out_shift": out_shift,
        "out_proj": _matrix(module.out_proj.weight),
        "out_bias": _whole_registers(_row(module.out_proj.bias)),
        "gain": _row(module.gain),
    }


def _ffn_weights(ffn: ConvFFN) -> tuple[Array, ...]:
    fc1, conv, fc2 = ffn.fc1, ffn.dw5x5, ffn.fc2
    return _matrix(fc1.weight), _row(fc1.bias), _taps(conv), _row(conv.bias), _matrix(fc2.weight), _row(fc2.bias)


def _convolution_weights(conv: nn.Conv2d) -> tuple[Array, Array]:
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    return _matrix(conv.weight.permute(0, 2, 3, 1).flatten(1)), _whole_registers(_row(bias))


def _affine(norm: nn.Module, width: int) -> tuple[Array, Array]:
    """Scale and shift of a layer normalisation, or of one that has a shift or nothing."""
    if isinstance(norm, nn.LayerNorm):
        return _row(norm.weight), _row(norm.bias)
    shift = norm.shift
    return _ones(width), _row(shift) if isinstance(shift, Tensor) else _zeros(1, width)


def _matrix(weight: Tensor) -> Array:
    return _whole_registers(np.ascontiguousarray(weight.detach().numpy().T))


def _taps(conv: nn.Conv2d) -> Array:
    return np.ascontiguousarray(conv.weight.detach().flatten(1).numpy().T)


def _whole_registers(matrix: Array) -> Array:
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % _lanes())))


def _row(values: Tensor | None) -> Array:
    assert values is not None, "every folded layer has its bias"
    return values.detach().reshape(1, -1).contiguous().numpy()


@cache
def _ones(width: int) -> Array:
    return np.ones((1, width), np.float32)


@cache
def _zeros(rows: int, width: int) -> Array:
    return np.zeros((rows, width), np.float32)


_packings: "WeakKeyDictionary[nn.Module, tuple[object, Any]]" = WeakKeyDictionary()


def _packed(module: object, pack: Callable[[Any], Any]) -> Any:
    """The weights of a module for its passes, made again when one of them has changed."""
    assert isinstance(module, nn.Module)
    tensors = [*module.parameters(), *module.buffers()]
    state = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    known = _packings.get(module)
    if known is None or known[0] != state:
        known = state, pack(module)
        _packings[module] = known
    return known[1]


# Maps as rows of pixels


def _pixels(image: Tensor) -> Array:
    """(B, C, H, W) -> (B H W, C), dense; a view of a channels-last map."""
    return _flat(to_tokens(image).contiguous())


def _rows(image: Tensor) -> Array:
    """(B, C, H, W) -> (B H W, C), rows of any stride; a view of some channels of a channels-last map."""
    tokens = to_tokens(image)
    batch, height, width, channels = tokens.shape
    stride = tokens.stride(2)
    regular = tokens.stride() == (height * width * stride, width * stride, stride, 1)
    return tokens.as_strided((batch * height * width, channels), (stride, 1)).numpy() if regular else _pixels(image)


def _flat(tokens: Tensor) -> Array:
    result: Array = tokens.flatten(0, 2).numpy()
    return result


# Threads and their memory


def _over_rows(name: str, image: Tensor, arrays: tuple[Array, ...], scratch: Callable[[ModuleType, int], int]) -> None:
    """All rows of a batch through a pass, shared among as many threads as torch may use."""
    kernels = _kernels()
    assert kernels is not None, "serves() is asked first"
    run: Callable[..., None] = getattr(kernels, name)
    batch, _, height, width = image.shape
    size, pairs = scratch(kernels, width), batch * height // 2
    threads = min(torch.get_num_threads(), pairs) if image.numel() >= WORK_FOR_THREADS else 1

    def share(first: int, last: int) -> None:
        run(first, last, height, width, *arrays, _buffer("scratch", size))

    bounds = [pairs * thread // threads for thread in range(threads + 1)]
    others = [_pool(os.getpid()).submit(share, *span) for span in pairwise(bounds[1:])]
    share(*bounds[:2])
    for other in others:
        other.result()


_memory = threading.local()


def _buffer(name: str, *shape: int) -> Array:
    """Uninitialised memory of the calling thread, the same at every call of the name that it suffices for."""
    count = int(np.prod(shape))
    if count > LARGEST_KEPT:
        return np.empty(shape, np.float32)
    kept: Array | None = getattr(_memory, name, None)
    if kept is None or kept.size < count:
        kept = np.empty(count, np.float32)
        setattr(_memory, name, kept)
    return kept[:count].reshape(shape)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked one does not inherit them and starts its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="repmamba-inference")


def _lanes() -> int:
    kernels = _kernels()
    assert kernels is not None
    lanes: int = kernels.LANES
    return lanes


@cache
def _kernels() -> ModuleType | None:
    try:
        return import_module("repmamba.network.inference_numba")
    except ImportError:
        return None
