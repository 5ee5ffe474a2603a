"""Depthwise convolutions for training on a CPU: their gradient costs twice their forward pass, not twenty times.

The library's gradient of a depthwise convolution and the passes of RepConv's two batch normalisations over memory were
most of a training step. Here RepConv in training mode is two passes forward (its statistics, then the one convolution
that it equals with them) and four backward, written as loops that Numba compiles (depthwise_numba.py). Where Numba is
not installed, or off the CPU, the network takes the library's operations: the numbers are the same.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
WORK_FOR_THREADS = 1 << 16
"""Elements of a map below which handing a share to another thread costs more than it saves."""


def available(x: Tensor) -> bool:
    """Whether the compiled form serves this map: on a CPU, with Numba, and not while a program is being traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and _kernels() is not None


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise convolution of 3x3 or 5x5 with zero padding, by the library forward and compiled loops backward.

    x: (B, C, H, W), best channels-last.  weight: (C, 1, k, k).  bias: (C,). Result (B, C, H, W) in x's dtype.
    """
    result: Tensor = _Depthwise.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def repconv(x: Tensor, dw3x3: nn.Conv2d, inner: nn.BatchNorm2d, dw1x1: nn.Conv2d, outer: nn.BatchNorm2d) -> Tensor:
    """outer(inner(dw3x3(x)) + dw1x1(x) + x) with the statistics of this batch; updates both running statistics.

    x: (B, C, H, W), best channels-last. Result (B, C, H, W), float32 (float64 for float64), under autocast too.
    """
    with torch.autocast("cpu", enabled=False):
        result: Tensor
        result, moments = _RepConv.apply(  # type: ignore[no-untyped-call]
            x.to(dw3x3.weight.dtype),
            dw3x3.weight,
            dw1x1.weight,
            dw1x1.bias,
            inner.weight,
            inner.bias,
            outer.weight,
            outer.bias,
            (inner.eps, outer.eps),
        )
        count = x.numel() // x.shape[1]
        _track(inner, moments[0], moments[1], count)
        _track(outer, moments[2], moments[3], count)
    return result


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        margin = weight.shape[-1] // 2
        turned = weight.to(gradient.dtype).flip(2, 3)
        dx = F.conv2d(gradient, turned, padding=margin, groups=x.shape[1])
        sums = np.empty((len(x), weight.shape[-1] ** 2, x.shape[1]))
        padded = _padded(_tokens(x.to(weight.dtype)), margin)
        _over_batch("weight_gradient", padded, _tokens(gradient.to(weight.dtype)), sums)
        dweight = torch.from_numpy(sums.sum(0).T.copy()).view(weight.shape).to(weight.dtype)
        return dx, dweight, gradient.sum((0, 2, 3), dtype=weight.dtype)


class _RepConv(torch.autograd.Function):
    """With y = dw3x3(x), m and v means and variances, a = gamma_inner / sqrt(v_y + eps), k = 1 + dw1x1:

    u = a (y - m_y) + k (x - m_x) is what the outer normalisation sees, less its mean, and v_u follows from the
    variances of y and x and their covariance; the result is gamma_outer u / sqrt(v_u + eps) + beta_outer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dw3x3: Tensor,
        dw1x1: Tensor,
        dw1x1_bias: Tensor,
        inner_weight: Tensor,
        inner_bias: Tensor,
        outer_weight: Tensor,
        outer_bias: Tensor,
        eps: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        padded = _padded(_tokens(x), 1)
        kernel = np.ascontiguousarray(_array(dw3x3).reshape(channels, 9).T)
        sums = np.empty((batch, 5, channels))
        _over_batch("moments", padded, kernel, sums)
        mean_y, square_y, mean_x, square_x, product = sums.sum(0) / (batch * height * width)
        var_y, var_x = np.maximum(square_y - mean_y**2, 0), np.maximum(square_x - mean_x**2, 0)
        covariance = product - mean_x * mean_y

        k = 1 + _array(dw1x1).reshape(-1).astype(np.float64)
        inverse_y = 1 / np.sqrt(var_y + eps[0])
        a = _array(inner_weight) * inverse_y
        var_u = np.maximum(a**2 * var_y + k**2 * var_x + 2 * a * k * covariance, 0)
        inverse_u = 1 / np.sqrt(var_u + eps[1])
        gain = _array(outer_weight) * inverse_u

        folded = kernel * (gain * a)
        folded[4] += gain * k
        bias = _array(outer_bias) - gain * (a * mean_y + k * mean_x)
        result = torch.empty((batch, height, width, channels), dtype=x.dtype)
        _over_batch("convolve3", padded, folded.astype(kernel.dtype), bias.astype(kernel.dtype), _array(result))

        ctx.save_for_backward(dw3x3, dw1x1, inner_weight, outer_weight)
        ctx.padded, ctx.kernel = padded, kernel
        ctx.moments = mean_y, mean_x, var_y, var_x, covariance, inverse_y, inverse_u
        mean_u = _array(inner_bias) + k * mean_x + _array(dw1x1_bias)
        moments = torch.from_numpy(np.stack([mean_y, var_y, mean_u, var_u])).to(x.dtype)
        ctx.mark_non_differentiable(moments)
        return result.permute(0, 3, 1, 2), moments

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dw3x3, dw1x1, inner_weight, outer_weight = ctx.saved_tensors
        padded, kernel = ctx.padded, ctx.kernel
        mean_y, mean_x, var_y, var_x, covariance, inverse_y, inverse_u = ctx.moments
        g = _tokens(gradient)
        batch, height, width, channels = g.shape
        count = batch * height * width
        k = 1 + _array(dw1x1).reshape(-1).astype(np.float64)
        a = _array(inner_weight) * inverse_y
        gain = _array(outer_weight) * inverse_u

        sums = np.empty((batch, 3, channels))
        _over_batch("gradient_sums", padded, kernel, g, sums)
        sum_g, sum_gy, sum_gx = sums.sum(0)
        sum_gy, sum_gx = sum_gy - mean_y * sum_g, sum_gx - mean_x * sum_g
        sum_gz = inverse_u * (a * sum_gy + k * sum_gx)  # z: u normalised; also the gradient of gamma_outer
        # du = gain (g - mean(g) - z mean(g z)), z = inverse_u (a (y - m_y) + k (x - m_x))
        pull = gain * inverse_u * sum_gz / count
        sum_duy = gain * sum_gy - pull * count * (a * var_y + k * covariance)
        sum_dux = gain * sum_gx - pull * count * (a * covariance + k * var_x)
        du = np.stack([gain, -pull * a, -pull * k, -gain * sum_g / count + pull * (a * mean_y + k * mean_x)])
        dy = a * du
        back = a * inverse_y**2 * sum_duy / count
        dy[1] -= back
        dy[3] += back * mean_y

        padded_dy = np.empty_like(padded)
        dx = torch.empty((batch, height, width, channels), dtype=gradient.dtype)
        mix = np.stack([dy, k * du]).astype(kernel.dtype)
        _over_batch("branch_gradients", padded, kernel, g, mix, padded_dy, _array(dx))
        _over_batch("transpose3", padded_dy, kernel, _array(dx))
        taps = np.empty((batch, 9, channels))
        _over_batch("weight_gradient", padded, padded_dy, taps)

        def parameter(values: Array, like: Tensor) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).view(like.shape)

        nothing = torch.zeros_like(inner_weight)  # the outer normalisation takes both biases out with the mean
        return (
            dx.permute(0, 3, 1, 2),
            parameter(taps.sum(0).T, dw3x3),
            parameter(sum_dux, dw1x1),
            nothing,
            parameter(inverse_y * sum_duy, inner_weight),
            nothing,
            parameter(sum_gz, outer_weight),
            parameter(sum_g, outer_weight),
            None,
        )


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _tokens(image: Tensor) -> Array:
    """(B, C, H, W) -> (B, H, W, C), contiguous."""
    return _array(image.permute(0, 2, 3, 1).contiguous())


def _padded(tokens: Array, margin: int) -> Array:
    batch, height, width, channels = tokens.shape
    padded = np.empty((batch, height + 2 * margin, width + 2 * margin, channels), tokens.dtype)
    _over_batch("pad", tokens, padded)
    return padded


def _over_batch(kernel: str, *arrays: Array) -> None:
    """All samples of a batch through a kernel, shared among as many threads as torch may use."""
    kernels = _kernels()
    assert kernels is not None, "available() is asked first"
    run: Callable[..., None] = getattr(kernels, kernel)
    inputs, outputs = arrays[: -OUTPUTS.get(kernel, 1)], arrays[-OUTPUTS.get(kernel, 1) :]
    batch = len(arrays[0])
    threads = min(torch.get_num_threads(), batch) if arrays[0].size >= WORK_FOR_THREADS else 1
    bounds = [batch * thread // threads for thread in range(threads + 1)]
    others = [_pool(os.getpid()).submit(run, *inputs, *span, *outputs) for span in pairwise(bounds[1:])]
    run(*inputs, *bounds[:2], *outputs)
    for other in others:
        other.result()


OUTPUTS = {"branch_gradients": 2}
"""Kernels that fill more than one array."""


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked one does not inherit them and starts its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="repmamba-depthwise")


@cache
def _kernels() -> ModuleType | None:
    try:
        return import_module("repmamba.network.depthwise_numba")
    except ImportError:
        return None
