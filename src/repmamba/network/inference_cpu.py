"""Inference of the fused network on a CPU by compiled passes over rows: what fusion.py says in torch, in fewer passes.

Between two layers of a block there is little arithmetic and much memory: in torch each operation reads and writes a
whole map. Here an RMB is two passes with the scan between them, a ConvFFN one, and a 3x3 convolution one
(inference_numba.py). The modules of fusion.py write down their passes (`Passes`) beside their operations of torch, and
what was written down for a shape is run again and again by threads of our own (inference_stages.py). `compute` says
no, and the operations of torch are taken: while gradients are wanted or a program is traced, with hooks, with parts of
somebody else, in other types than float32, on other devices, with another scan, and without Numba.

Under torch's autocast to bfloat16 the factors of the large matrix products are rounded to it, two to a number, and so
is what an RMB's first pass leaves for its second one; all else stays float32. That is where the processor multiplies
such pairs, tiles of them at best (inference_amx.py); elsewhere bfloat16 is left to operations of torch.

Threads: as many as torch.get_num_threads() says, or `share_passes`; the result is the same, bit by bit, for any number.
No operation of torch runs meanwhile: its threads would keep the cores for a while after each. Maps and scratch are kept
from call to call, for each thread those of its last shape: allocated anew, their page faults would cost a third of the
time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.errors import ShapeMismatch
from repmamba.network.convffn import ConvFFN
from repmamba.network.inference_stages import Stage, run
from repmamba.network.onlookers import plain, watched
from repmamba.scan.backends import choose
from repmamba.scan.compiled import started

Array = NDArray[np.float32]
"""A map, (pixels, channels): the pixels of all images of a batch, row by row; channels side by side."""

WORK_FOR_THREADS = 1 << 14
"""Numbers of a map below which a second thread costs more than it saves."""

LARGEST_KEPT = 1 << 28
"""Numbers of all maps of a shape that are kept from call to call, of 750 x 750 pixels, say; more go back at its end."""

SCAN = "numba"
"""The backend of the scan that the passes call."""


class FoldedRMB(Protocol):
    """What the passes read of fusion.FusedRMB, which is said there."""

    in_x: nn.Linear
    in_z: nn.Linear
    conv: nn.Module
    high_conv: nn.Module
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_norm: nn.Module
    out_proj: nn.Linear
    gain: Tensor


class Folded(Protocol):
    """What `compute` asks of fusion.FusedRepMamba."""

    def write(self, passes: "Passes") -> None:
        """Write down all passes, from passes.image on; the last one gives the result."""


def compute(network: Folded, image: Tensor) -> Tensor | None:
    """The result of the passes that the network writes down; None where they do not serve.

    image: (B, in_chans, H, W) -> (B, bands, scale H', scale W') of `Passes.shuffle` or (B, C, H', W') of `Passes.give`,
    with H' and W' the even numbers from H and W on.
    """
    assert isinstance(network, nn.Module)
    if not serves(network, image) or (state := _state(network)) is None:
        return None
    threads, in_pairs = _memory.threads or torch.get_num_threads(), torch.is_autocast_enabled("cpu")
    key = (state, tuple(image.shape), threads, in_pairs)
    # Taken out while they run: what is left in the middle is not run again.
    known = _memory.passes.pop(network, None)
    if known is None or known[0] != key:
        known = None  # what another shape took is given back before this one takes its own
        _memory.passes.clear()
        passes = Passes(image, threads, in_pairs=in_pairs)
        network.write(passes)
    else:
        passes = known[1]
    result = passes.run(image)
    if passes.kept:
        _memory.passes[network] = key, passes
    return result


def share_passes(threads: int) -> None:
    """Let the passes of the calling thread be shared by so many, or by as many as operations of torch are: 0."""
    _memory.threads = threads


def serves(network: nn.Module, image: Tensor) -> bool:
    """Whether compiled passes may compute on this image, as things are; what is in the network, `_state` looks at."""
    autocast = torch.is_autocast_enabled("cpu")
    return (
        not watched()
        and type(image) in (Tensor, nn.Parameter)
        and image.device.type == "cpu"
        and image.dtype == torch.float32
        and not (torch.is_grad_enabled() and image.requires_grad)
        and (not autocast or torch.get_autocast_dtype("cpu") == torch.bfloat16)
        and all(choose(image.device, name).backend.name == SCAN for name in _scans(network))
        and (kernels := _kernels()) is not None
        and (not autocast or kernels.HAS_PAIRS)
    )


def _state(network: nn.Module) -> int | None:
    """What changes when a weight does; None where passes do not do for a network in this state."""
    found: list[Tensor] = []
    for module in _parts(network):
        if not plain(module):
            return None
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            if (
                type(tensor) not in (Tensor, nn.Parameter)
                or tensor.device.type != "cpu"
                or tensor.dtype != torch.float32
                or (tensor.requires_grad and torch.is_grad_enabled())
                or not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
            ):
                return None
            found.append(tensor)
    return _digest(found)


def _digest(tensors: Iterable[Tensor]) -> int:
    """Of what is in memory: the version of a tensor does not tell what was written past it, as through `.data`."""
    kernels = _kernels()
    assert kernels is not None, "serves() is asked first"
    places = [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]
    return int(kernels.digest(np.array(places, np.int64).reshape(-1, 2)))


def _scans(network: nn.Module) -> set[Any]:
    """The backends of the scan that were asked for in the network; None for no wish."""
    # Asked of the type: a module looks through its parts first, which a call cannot spare.
    return {module.backend for module in _parts(network) if hasattr(type(module), "backend")}


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    """The network's modules as modules(), in a tenth of the time: a call asks for them twice."""
    waiting = [network]
    while waiting:
        module = waiting.pop()
        yield module
        waiting.extend(part for part in module._modules.values() if part is not None)


class Passes:
    """The passes of a network over a batch of one shape, as they are written down, and the maps between them."""

    def __init__(self, image: Tensor, threads: int, *, in_pairs: bool = False) -> None:
        kernels = _kernels()
        assert kernels is not None, "serves() is asked first"
        self.kernels = kernels
        self.batch, bands, rows, columns = image.shape
        self.height, self.width = rows + rows % 2, columns + columns % 2
        self.threads, self.in_pairs = threads, in_pairs
        self._stages: list[Stage] = []
        self._free: dict[tuple[int, int], list[Array]] = {}
        self._numbers = 0
        self._result: tuple[int, ...] = ()
        self.image = self.map(bands)

    # Maps

    @property
    def kept(self) -> bool:
        """Whether the maps stay from call to call."""
        return self._numbers <= LARGEST_KEPT

    def map(self, channels: int, pixels: int | None = None) -> Array:
        """A map of undefined content, of all pixels unless told."""
        pixels = self.batch * self.height * self.width if pixels is None else pixels
        free = self._free.setdefault((pixels, channels), [])
        if free:
            return free.pop()
        self._numbers += pixels * channels
        return _empty(pixels * channels).reshape(pixels, channels)

    def free(self, *maps: Array) -> None:
        """Let maps be used again by what is written down later."""
        for each in maps:
            self._free[each.shape[0], each.shape[1]].append(each)

    # Passes

    def first_convolution(self, conv: nn.Conv2d, x: Array, edge: Tensor, norm: nn.Module) -> tuple[Array, Array]:
        """conv(x), x in a frame of one pixel of the values `edge`, and its layer normalisation."""
        weight, bias = self._packed(conv, _direct_weights)
        outputs = weight.shape[1]
        result, plain = self.map(outputs), isinstance(norm, nn.Identity)
        affine = (_ones(outputs), _zeros(1, outputs)) if plain else _affine(norm, outputs)
        normalised = _zeros(0, outputs) if plain else self.map(outputs)
        arguments = (x, _row(edge), weight, bias, *affine, result, normalised)
        self._over_rows("first_convolution", outputs, arguments, x.shape[1])
        return result, result if plain else normalised

    def convolution(
        self,
        conv: nn.Conv2d,
        x: Array,
        skip: Array | None = None,
        *,
        norm: nn.Module | None = None,
        edge: Tensor | None = None,
        slope: float = 1.0,
    ) -> Array:
        """conv(norm(x)) + skip, values below zero times the slope; norm(x) in a frame of zeros or of `edge`."""
        result = self.map(self._filters(conv)[0].shape[-1])
        self._convolution(conv, x, skip, norm, edge, slope, (result, _no_image()))
        return result

    def shuffle(self, conv: nn.Conv2d, x: Array, scale: int) -> None:
        """The result of all: conv(x), a pixel's channels as scale x scale pixels."""
        bands = conv.out_channels // scale**2
        self._result = (self.batch, bands, scale * self.height, scale * self.width)
        nothing = _zeros(0, self._filters(conv)[0].shape[-1])
        self._convolution(conv, x, None, None, None, 1.0, (nothing, None))

    def give(self, x: Array) -> None:
        """The result of all: a map."""
        self._result = (self.batch, self.height, self.width, x.shape[1])
        self._given = x

    def rmb(self, module: FoldedRMB, v: Array, beside: Array | None = None, result: Array | None = None) -> Array:
        """A folded RMB, and behind its channels those of `beside`; into `result`, which may be v, where it is given."""
        weights = self._packed(module, _rmb_weights)
        pixels, C = v.shape
        beside = v[:, :0] if beside is None else beside
        if result is None:
            result = self.map(C + beside.shape[1])
        columns = weights["x_proj"].shape[1]
        halves = self.map(C if self.in_pairs else 2 * C)
        pooled, projected = self.map(C, pixels // 4), self.map(columns, pixels // 4)
        scanned = self.map(C, pixels // 2)
        arrays = (v, *(weights[name] for name in FRONT), halves, pooled, projected)
        self._over_rows("front", C, arrays, C)
        y = scanned.reshape(self.batch, 2, pixels // 4 // self.batch, C)
        self._scan(module, pooled, projected, y)
        arrays = (v, *(weights[name] for name in GATE), y, halves, *(weights[name] for name in TAIL), beside, result)
        self._over_rows("tail", C, arrays, C, weights["out_proj"].shape[1])
        self.free(halves, pooled, projected, scanned)
        return result

    def feed_forward(self, ffn: ConvFFN, t: Array, c: Array) -> Array:
        """a + ffn(LN(a)), a = t + c."""
        weights = self._packed(ffn, _ffn_weights)
        C, hidden = t.shape[1], weights[0].shape[1]
        result = self.map(C)
        arrays = (t, c, *_affine(None, C), *weights, _ones(C), result)
        self._over_rows("feed_forward", C, arrays, C, hidden)
        return result

    def _convolution(
        self,
        conv: nn.Conv2d,
        x: Array,
        skip: Array | None,
        norm: nn.Module | None,
        edge: Tensor | None,
        slope: float,
        result: tuple[Array, NDArray[np.float32] | None],
    ) -> None:
        weight, bias = self._filters(conv)
        inputs, outputs = x.shape[1], weight.shape[-1]
        affine = (_ones(inputs), _zeros(1, inputs)) if norm is None else _affine(norm, inputs)
        frame = _zeros(1, inputs) if edge is None else _row(edge)
        added = _everywhere_zero(x.shape[0], outputs) if skip is None else skip
        arguments = (x, int(norm is not None), *affine, frame, weight, bias, added, np.float32(slope), *result)
        name = "convolution" if weight.ndim == 3 else "convolution_by_amx"
        self._over_rows(name, outputs, arguments, inputs, outputs)

    def _filters(self, conv: nn.Conv2d) -> tuple[NDArray[np.float32], Array]:
        by_amx = self.in_pairs and self.kernels.HAS_AMX and self.kernels.fill_pairs(conv.in_channels)
        found: tuple[NDArray[np.float32], Array] = self._packed(conv, _plain_filters if by_amx else _filters)
        return found

    def _packed(self, module: object, pack: "Packing") -> Any:
        return _packed(module, pack, self.in_pairs)

    def _over_rows(self, name: str, channels: int, arguments: tuple[Any, ...], *sizes: int) -> None:
        """A pass over all pairs of rows. sizes: what its scratch depends on, beside the width."""
        scratch: int = getattr(self.kernels, f"{name}_scratch")(self.width, *sizes)
        arguments = (self.height, self.width, *arguments)
        self._add(getattr(self.kernels, name), self.batch * self.height // 2, channels, arguments, scratch)

    def _scan(self, module: FoldedRMB, pooled: Array, projected: Array, y: NDArray[np.float32]) -> None:
        scan = import_module("repmamba.scan.numba_cpu").map_pass
        weights = self._packed(module, _scan_weights)
        kernel, units, arguments, scratch = scan(pooled, projected, self.height // 2, self.width // 2, *weights, y)
        self._add(kernel, units, pooled.shape[1], arguments, scratch)

    def _add(
        self, kernel: Callable[..., None], units: int, channels: int, arguments: tuple[Any, ...], scratch: int
    ) -> None:
        work = self.batch * self.height * self.width * channels
        shares = min(self.threads, units) if work >= WORK_FOR_THREADS else 1
        self._stages.append(Stage(kernel, units, shares, arguments, scratch))

    # All of it

    def run(self, image: Tensor) -> Tensor:
        """The result for an image of the shape that this was written down for."""
        rows, columns = image.shape[2:]
        seen = self.image.reshape(self.batch, self.height, self.width, -1)
        seen[:, :rows, :columns] = image.detach().resolve_neg().permute(0, 2, 3, 1).numpy()
        seen[:, rows:, :columns] = seen[:, rows - 1 : rows, :columns]
        seen[:, :, columns:] = seen[:, :, columns - 1 : columns]
        result = torch.empty(self._result, dtype=image.dtype, device=image.device)
        *stages, last = self._stages
        shuffles = last.arguments[-1] is None
        if shuffles:
            last = replace(last, arguments=(*last.arguments[:-1], result.numpy()))
        run((*stages, last), self.kernels, _scratch)
        if shuffles:
            return result
        result.numpy()[:] = self._given.reshape(self._result)
        return result.permute(0, 3, 1, 2)


FRONT = ("scale", "shift", "in_x", "bias_x", "conv", "conv_bias", "high_conv", "high_bias", "x_proj")
GATE = ("scale", "shift", "in_z", "bias_z")
TAIL = ("out_scale", "out_shift", "out_proj", "out_bias", "gain")


# The weights as the passes read them: (inputs, outputs), outputs added up with zeros to whole registers


def _rmb_weights(module: FoldedRMB, in_pairs: bool) -> dict[str, Array]:
    assert isinstance(module.conv, nn.Conv2d)
    assert isinstance(module.high_conv, nn.Conv2d)
    width = module.gain.numel()
    (scale, shift), (out_scale, out_shift) = _affine(None, width), _affine(module.out_norm, 2 * width)
    return {
        "scale": scale,
        "shift": shift,
        "in_x": _matrix(module.in_x.weight, in_pairs),
        "bias_x": _row(module.in_x.bias),
        "conv": _taps(module.conv),
        "conv_bias": _row(module.conv.bias),
        "high_conv": _taps(module.high_conv),
        "high_bias": _row(module.high_conv.bias),
        "x_proj": _matrix(module.x_proj, in_pairs),
        "in_z": _matrix(module.in_z.weight, in_pairs),
        "bias_z": _row(module.in_z.bias),
        "out_scale": out_scale,
        "out_shift": out_shift,
        "out_proj": _matrix(module.out_proj.weight, in_pairs),
        "out_bias": _whole_registers(_row(module.out_proj.bias)),
        "gain": _row(module.gain),
    }


def _scan_weights(module: FoldedRMB, in_pairs: bool) -> tuple[Tensor, ...]:
    return tuple(weight.detach().clone() for weight in (module.dt_weight, module.dt_bias, module.A, module.D))


def _ffn_weights(ffn: ConvFFN, in_pairs: bool) -> tuple[Array, ...]:
    """Hidden channels added up to whole registers stay zero through both activations."""
    fc1, conv, fc2 = ffn.fc1, ffn.dw5x5, ffn.fc2
    hidden = tuple(_whole_registers(x) for x in (_row(fc1.bias), _taps(conv), _row(conv.bias)))
    back = nn.functional.pad(fc2.weight.detach(), (0, hidden[0].shape[1] - fc1.out_features))
    return _matrix(fc1.weight, in_pairs), *hidden, _matrix(back, in_pairs), _row(fc2.bias)


def _direct_weights(conv: nn.Conv2d, in_pairs: bool) -> tuple[Array, Array]:
    """Of a convolution of few channels, which makes no pairs."""
    return _matrix(conv.weight.permute(0, 2, 3, 1).flatten(1), False), _whole_registers(_bias(conv))


def _filters(conv: nn.Conv2d, in_pairs: bool) -> tuple[NDArray[np.float32], Array]:
    """A 3x3 convolution as the 16 matrices of its pass; a pointwise one is a 3x3 one with a middle alone."""
    kernels = _kernels()
    assert kernels is not None
    elements: NDArray[np.float32] = kernels.convolution_elements(_three_by_three(conv).numpy())
    elements = np.pad(elements, ((0, 0), (0, 0), (0, -elements.shape[2] % _lanes())))
    in_pairs = in_pairs and kernels.fill_pairs(elements.shape[1])
    return _aligned(_pairs(elements) if in_pairs else elements), _whole_registers(_bias(conv))


def _plain_filters(conv: nn.Conv2d, in_pairs: bool) -> tuple[NDArray[np.float32], Array]:
    """A 3x3 convolution, or a pointwise one, as one matrix."""
    matrix = _three_by_three(conv).permute(2, 3, 1, 0).flatten(0, 2).numpy()
    return _aligned(_pairs(_whole_registers(matrix))), _whole_registers(_bias(conv))


def _three_by_three(conv: nn.Conv2d) -> Tensor:
    around = (3 - conv.kernel_size[0]) // 2
    return nn.functional.pad(conv.weight.detach(), (around,) * 4)


def _affine(norm: nn.Module | None, width: int) -> tuple[Array, Array]:
    """Scale and shift of a layer normalisation, or of one that has a shift or nothing. Raises ShapeMismatch."""
    kernels = _kernels()
    assert kernels is not None
    if width not in kernels.WIDTHS:  # the kernel would write nothing
        raise ShapeMismatch(
            f"A layer normalisation has {width} channels, and the compiled passes know those of our networks, "
            f"{', '.join(map(str, kernels.WIDTHS))}: choose another scan than '{SCAN}', and torch computes all."
        )
    if isinstance(norm, nn.LayerNorm):
        return _row(norm.weight), _row(norm.bias)
    shift = None if norm is None else norm.shift
    return _ones(width), _row(shift) if isinstance(shift, Tensor) else _zeros(1, width)


def _matrix(weight: Tensor, in_pairs: bool) -> Array:
    kernels = _kernels()
    assert kernels is not None
    matrix = _whole_registers(weight.detach().numpy().T)
    return _aligned(_pairs(matrix)) if in_pairs and kernels.fill_pairs(len(matrix)) else matrix


def _pairs(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., inputs, outputs) -> (..., inputs / 2, outputs): two inputs, rounded to bfloat16, are one number's bits."""
    inputs, outputs = matrices.shape[-2:]
    rounded = torch.from_numpy(np.ascontiguousarray(matrices)).to(torch.bfloat16).view(torch.int16).numpy()
    side_by_side = np.swapaxes(rounded.reshape(-1, inputs // 2, 2, outputs), 2, 3)
    return np.ascontiguousarray(side_by_side).view(np.float32).reshape(*matrices.shape[:-2], inputs // 2, outputs)


def _taps(conv: nn.Conv2d) -> Array:
    return _aligned(conv.weight.detach().flatten(1).numpy().T)


def _whole_registers(matrix: Array) -> Array:
    return _aligned(np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % _lanes()))))


def _bias(conv: nn.Conv2d) -> Array:
    return _zeros(1, conv.out_channels) if conv.bias is None else _row(conv.bias)


def _row(values: Tensor | None) -> Array:
    assert values is not None, "every folded layer has its bias"
    return _aligned(values.detach().numpy().reshape(1, -1))


@cache
def _ones(width: int) -> Array:
    return np.ones((1, width), np.float32)


@cache
def _zeros(rows: int, width: int) -> Array:
    return np.zeros((rows, width), np.float32)


@cache
def _no_image() -> NDArray[np.float32]:
    return np.zeros((0, 0, 0, 0), np.float32)


def _everywhere_zero(pixels: int, channels: int) -> Array:
    """A map of zeros that is one row in memory."""
    return np.lib.stride_tricks.as_strided(np.zeros((1, channels), np.float32), (pixels, channels), (0, 4))


Packing = Callable[[Any, bool], Any]
_packings: "WeakKeyDictionary[nn.Module, dict[Packing, tuple[tuple[bool, int], Any]]]" = WeakKeyDictionary()


def _packed(module: object, pack: Packing, in_pairs: bool) -> Any:
    """The weights of a module for its passes, all of them copies, made again when one of them has changed."""
    assert isinstance(module, nn.Module)
    state = in_pairs, _digest([*module.parameters(), *module.buffers()])
    packings = _packings.setdefault(module, {})
    known = packings.get(pack)
    if known is None or known[0] != state:
        known = packings[pack] = state, pack(module, in_pairs)
    return known[1]


# Memory

ALIGNMENT = 64
"""Bytes: a register of AVX-512 and a line of the cache; a load across two lines takes twice the time."""


def _empty(count: int) -> Array:
    memory = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count * 4].view(np.float32)


def _aligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
    copy = _empty(array.size).reshape(array.shape)
    copy[...] = array
    return copy


class _Memory(threading.local):
    """Of a thread: the passes of the network that it called last, which go with the network; scratch for any."""

    def __init__(self) -> None:
        self.passes: WeakKeyDictionary[nn.Module, tuple[object, Passes]] = WeakKeyDictionary()
        self.scratch = _empty(0)
        self.threads = 0  # that share its passes; 0: as many as share torch's operations


_memory = _Memory()


def _scratch(count: int) -> Array:
    """Uninitialised memory of the calling thread, the same at every call that it suffices for."""
    if _memory.scratch.size < count:
        _memory.scratch = _empty(count)
    return _memory.scratch[:count]


def _lanes() -> int:
    kernels = _kernels()
    assert kernels is not None
    lanes: int = kernels.LANES
    return lanes


def _kernels() -> ModuleType | None:
    return started("repmamba.network.inference_numba", "inference")
