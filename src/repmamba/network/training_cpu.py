"""Training on a CPU in few passes over memory: an RMB is two functions with the scan between them.

In torch each operation of a block reads and writes a whole map, and again on the way back; most of a training step was
that. Here what lies between two matrix products, or between a product and the scan, is one compiled pass
(training_numba.py), and the gradient of each function is written out beside it. The network asks `serves` and takes
torch's own operations where that says no: off the CPU, in other types than float32 and bfloat16 under autocast, in
evaluation mode, with statistics that are frozen, with hooks, with parts of somebody else, and without Numba. The
numbers are the same.

A working map is one that enters or leaves a matrix product: bfloat16 under autocast, float32 otherwise. All other maps
are float32, and the coefficients of the normalisations float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repmamba.network.onlookers import plain, watched
from repmamba.network.repconv import RepConv, to_map, to_tokens
from repmamba.scan.compiled import started
from repmamba.scan.threads import side_by_side

Array = NDArray[Any]
Gradients = tuple[Tensor | None, ...]
WORK_FOR_THREADS = 1 << 16
"""Elements of a map below which handing a share to another thread costs more than it saves."""

LANES = 8
"""The passes take maps with a multiple of so many channels."""


def serves(x: Tensor, *modules: nn.Module, unbiased: tuple[nn.Module, ...] = ()) -> bool:
    """Whether the passes below may compute modules of the network on this map (B, C, H, W), C that of the modules.

    unbiased: parts whose weight is all that the passes read.
    """
    if watched() or not all(module.training for module in modules):
        return False
    parts = [part for module in modules for part in module.modules()]
    return (
        x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _working() == torch.bfloat16))
        and (not torch.is_autocast_enabled("cpu") or _working() == torch.bfloat16)
        and x.shape[1] % LANES == 0
        and all(parameter.dtype == torch.float32 for module in modules for parameter in module.parameters())
        and all(plain(part) for part in parts)
        and all(part.bias is None for part in unbiased)
        and all(
            norm.training and norm.track_running_stats and norm.affine
            for norm in parts
            if isinstance(norm, nn.BatchNorm2d)
        )
        and _kernels() is not None
    )


def enter(v: Tensor, norm: nn.LayerNorm, in_proj: nn.Linear, conv: RepConv) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An RMB up to its scan: x, z = in_proj(norm(v)), s = SiLU(conv(x)). Updates the statistics of `conv`.

    v: (B, C, H, W), even H and W. Results: v, for `leave`; s (B, H, W, 2 C); the mean of its first C channels over two
    by two, (B, C, H/2, W/2); z (B, H, W, 2 C), a working map.
    """
    results: tuple[Tensor, Tensor, Tensor, Tensor] = _Enter.apply(  # type: ignore[no-untyped-call]
        v.float(), norm.weight, norm.bias, in_proj.weight, conv, *_parameters(conv)
    )
    return results


def leave(
    v: Tensor,
    s: Tensor,
    pooled: Tensor,
    scanned: Tensor,
    z: Tensor,
    high_conv: RepConv,
    out_norm: nn.LayerNorm,
    out_proj: nn.Linear,
    dw1x1: nn.Conv2d,
    bn: nn.BatchNorm2d,
) -> Tensor:
    """An RMB from its scan on: the result (B, C, H, W). Updates the statistics of `high_conv` and `bn`.

    v, s, pooled, z: as `enter` gives them.  scanned: (B, C, H/2, W/2).
    """
    result: Tensor = _Leave.apply(  # type: ignore[no-untyped-call]
        *(v, s, pooled, scanned, z),
        *(out_norm.weight, out_norm.bias, out_proj.weight, dw1x1.weight, bn.weight, bn.bias),
        *(bn, high_conv),
        *_parameters(high_conv),
    )
    return result


def feed_forward(a: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, dw5x5: nn.Conv2d, fc2: nn.Linear) -> Tensor:
    """a + fc2(h + GELU(dw5x5(h))) with h = GELU(fc1(norm(a))); a and result: (B, C, H, W)."""
    result: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        *(a.float(), norm.weight, norm.bias, fc1.weight, fc1.bias, dw5x5.weight, dw5x5.bias, fc2.weight, fc2.bias)
    )
    return result


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, scale: Tensor, shift: Tensor, in_proj: Tensor, conv: RepConv, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens = _tokens(v)
        *shape, width = tokens.shape
        n = tokens.new_empty(tokens.shape, dtype=_working())
        _run("normalise", tokens, _rows(scale, shift), n)
        xz = _product(n, in_proj.t())
        x, z = xz.tensor_split(2, dim=-1)
        branches = _Branches.of(x, conv)
        s = tokens.new_empty(*shape, 2 * width)
        _run("convolve_silu", x, _nothing(x), *branches.folded(), s)
        pooled = tokens.new_empty(shape[0], shape[1] // 2, shape[2] // 2, width)
        _run("pool", s[..., :width], pooled)
        ctx.save_for_backward(v, scale, shift, in_proj, n, xz)
        ctx.branches = branches
        return v, s, to_map(pooled), z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        v, scale, shift, in_proj, n, xz = ctx.saved_tensors
        branches: _Branches = ctx.branches
        direct, ds, dpooled, dz = gradients
        width = v.shape[1]
        x, dxz = xz[..., : 2 * width], torch.empty_like(xz)

        # ds comes from `leave` alone, so its memory can hold what the SiLU makes of it.
        sums = branches.sums("silu_gradient_sums", x, branches.before_activation(), ds, _tokens(dpooled), ds)
        dconv = branches.gradients(x, ds, sums, dxz[..., : 2 * width])
        dxz[..., 2 * width :] = dz

        dn = _product(dxz, in_proj)
        dv = v.new_empty(n.shape)
        found = np.empty((len(v), 2, width))
        _run("normalise_back", _tokens(v), _rows(scale, shift), dn, _tokens(direct), dv, found)
        dscale, dshift = found.sum(0)
        return to_map(dv), _parameter(dscale), _parameter(dshift), _weight_gradient(dxz, n), None, *dconv


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        s: Tensor,
        pooled: Tensor,
        scanned: Tensor,
        z: Tensor,
        scale: Tensor,
        shift: Tensor,
        out_proj: Tensor,
        dw1x1: Tensor,
        bn_weight: Tensor,
        bn_bias: Tensor,
        bn: nn.BatchNorm2d,
        high_conv: RepConv,
        *parameters: Tensor,
    ) -> Tensor:
        width = v.shape[1]
        low, high = s.tensor_split(2, dim=-1)
        merged = torch.empty_like(s)
        _run("merge", _tokens(scanned), _tokens(pooled), low, merged[..., :width])
        branches = _Branches.of(high, high_conv)
        _run("convolve", high, _nothing(high), *branches.folded(), merged[..., width:])
        gated = torch.empty_like(s, dtype=z.dtype)
        _run("gate", merged, _rows(scale, shift), z, gated)
        projected = _product(gated, out_proj.t())

        outlet = _Outlet.of(_tokens(v), projected, dw1x1, bn)
        result = v.new_empty(projected.shape)
        _run("sum_scale", _tokens(v), projected, outlet.affine(bn_bias), result)
        ctx.save_for_backward(v, s, z, scale, shift, out_proj, merged, gated, projected)
        ctx.branches, ctx.outlet = branches, outlet
        return to_map(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        v, s, z, scale, shift, out_proj, merged, gated, projected = ctx.saved_tensors
        branches: _Branches = ctx.branches
        outlet: _Outlet = ctx.outlet
        batch, width, height, columns = v.shape
        dv, dprojected = v.new_empty(projected.shape), torch.empty_like(projected)
        dgain, dbn_weight, dbn_bias = outlet.gradients(_tokens(v), projected, _tokens(gradient), dv, dprojected)

        dgated = _product(dprojected, out_proj)
        dz, ds = torch.empty_like(gated), torch.empty_like(s)
        found = np.empty((batch, 2, 2 * width))
        _run("gate_back", merged, _rows(scale, shift), z, dgated, dz, ds, found)
        dscale, dshift = found.sum(0)

        dscanned, dpooled = (v.new_empty(batch, height // 2, columns // 2, width) for _ in range(2))
        _run("merge_back", ds[..., :width], dscanned, dpooled)
        high, dhigh = s[..., width:], ds[..., width:]
        sums = branches.sums("gradient_sums", high, dhigh)
        dconv = branches.gradients(high, dhigh, sums, dhigh)
        return (
            *(to_map(dv), ds, to_map(dpooled), to_map(dscanned), dz),
            *(_parameter(dscale), _parameter(dshift), _weight_gradient(dprojected, gated), dgain, dbn_weight, dbn_bias),
            *(None, None),
            *dconv,
        )


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight5: Tensor,
        bias5: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        tokens = _tokens(a)
        n = tokens.new_empty(tokens.shape, dtype=_working())
        _run("normalise", tokens, _rows(scale, shift), n)
        x = _product(n, weight1.t())
        convolved, h = torch.empty_like(x), torch.empty_like(x)
        _run("feed", x, _rows(bias1), _taps(weight5), _rows(bias5), convolved, h)
        added = _product(h, weight2.t())
        result = tokens.new_empty(tokens.shape)
        _run("sum_scale", tokens, added, _rows(torch.ones_like(bias2), bias2), result)
        ctx.save_for_backward(a, scale, shift, weight1, bias1, weight5, weight2, n, x, convolved, h)
        return to_map(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        a, scale, shift, weight1, bias1, weight5, weight2, n, x, convolved, h = ctx.saved_tensors
        direct = _tokens(gradient)
        dadded = direct.to(h.dtype)
        dh, dx = _product(dadded, weight2), torch.empty_like(x)
        batch, *_, hidden = x.shape
        taps, biases = np.empty((batch, 25, hidden)), np.empty((batch, 2, hidden))
        _run("feed_back", x, _rows(bias1), _taps(weight5), convolved, dh, dx, taps, biases)
        dbias5, dbias1 = biases.sum(0)

        da, found = a.new_empty(n.shape), np.empty((batch, 2, n.shape[3]))
        _run("normalise_back", _tokens(a), _rows(scale, shift), _product(dx, weight1), direct, da, found)
        dscale, dshift = found.sum(0)
        return (
            *(to_map(da), _parameter(dscale), _parameter(dshift)),
            *(_weight_gradient(dx, n), _parameter(dbias1)),
            *(_parameter(taps.sum(0).T).view(weight5.shape), _parameter(dbias5)),
            *(_weight_gradient(dadded, h), direct.sum((0, 1, 2))),
        )


def _parameters(conv: RepConv) -> list[Tensor | None]:
    """Of a RepConv, in the order in which _Branches gives their gradients."""
    inner, outer = conv.inner_bn, conv.outer_bn
    return [conv.dw3x3.weight, conv.dw1x1.weight, conv.dw1x1.bias, inner.weight, inner.bias, outer.weight, outer.bias]


@dataclass(frozen=True, slots=True)
class _Branches:
    """A RepConv on one batch. With y = dw3x3(x), a = gamma_inner / sqrt(var_y + eps) and k = 1 + dw1x1:

    u = a (y - mean_y) + k (x - mean_x) is what the outer normalisation sees, less its mean, and its variance follows
    from the variances of y and x and their covariance; the result is gain u + beta_outer, gain = gamma_outer / sqrt(
    var_u + eps).
    """

    weight: Array  # (9, C)
    count: int  # values of a channel
    mean_y: Array  # (C), as all that follow
    mean_x: Array
    var_y: Array
    var_x: Array
    covariance: Array
    inverse_y: Array  # 1 / sqrt(var_y + eps)
    inverse_u: Array
    a: Array
    k: Array
    gain: Array
    shift: Array  # beta_outer

    @classmethod
    def of(cls, x: Tensor, conv: RepConv) -> "_Branches":
        """On a map (B, H, W, C); updates the running statistics."""
        batch, height, width, channels = x.shape
        weight = _taps(conv.dw3x3.weight)
        count = batch * height * width
        sums = np.empty((batch, 5, channels))
        _run("moments", x, _nothing(x), weight, sums)
        mean_y, square_y, mean_x, square_x, product = sums.sum(0) / count
        var_y, var_x = np.maximum(square_y - mean_y**2, 0), np.maximum(square_x - mean_x**2, 0)
        covariance = product - mean_x * mean_y

        inner, outer = conv.inner_bn, conv.outer_bn
        k = 1 + _array(conv.dw1x1.weight).reshape(-1).astype(np.float64)
        inverse_y = 1 / np.sqrt(var_y + inner.eps)
        a = _array(inner.weight) * inverse_y
        var_u = np.maximum(a**2 * var_y + k**2 * var_x + 2 * a * k * covariance, 0)
        inverse_u = 1 / np.sqrt(var_u + outer.eps)
        assert conv.dw1x1.bias is not None
        _track(inner, mean_y, var_y, count)
        _track(outer, _array(inner.bias) + k * mean_x + _array(conv.dw1x1.bias), var_u, count)
        return cls(
            *(weight, count, mean_y, mean_x, var_y, var_x, covariance, inverse_y, inverse_u),
            *(a, k, _array(outer.weight) * inverse_u, _array(outer.bias)),
        )

    def before_activation(self) -> Array:
        """(3, C): what y, x and 1 have to be multiplied by to give the result."""
        of_y, of_x = self.gain * self.a, self.gain * self.k
        return _float32(of_y, of_x, self.shift - of_y * self.mean_y - of_x * self.mean_x)

    def folded(self) -> tuple[Array, Array]:
        """The one convolution that gives the result, weight (9, C), and its bias (1, C)."""
        of_y, of_x, bias = self.before_activation()
        weight = self.weight * of_y
        weight[4] += of_x
        return weight, bias[None]

    def sums(self, kernel: str, x: Tensor, *arrays: Tensor | Array) -> Array:
        """The sums of a kernel over the batch: of g, g y and g x, g the gradient of the result."""
        sums = np.empty((len(x), 3, x.shape[3]))
        _run(kernel, x, _nothing(x), self.weight, *arrays, sums)
        total: Array = sums.sum(0)
        return total

    def gradients(self, x: Tensor, gradient: Tensor, sums: Array, dx: Tensor) -> Gradients:
        """Of the parameters; fills dx, which may lie where the gradient does."""
        a, k, gain, inverse_u, count = self.a, self.k, self.gain, self.inverse_u, self.count
        sum_g, sum_gy, sum_gx = sums
        sum_gy, sum_gx = sum_gy - self.mean_y * sum_g, sum_gx - self.mean_x * sum_g
        sum_gz = inverse_u * (a * sum_gy + k * sum_gx)  # z: u normalised; also the gradient of gamma_outer
        # du = gain (g - mean(g) - z mean(g z)), z = inverse_u (a (y - mean_y) + k (x - mean_x))
        pull = gain * inverse_u * sum_gz / count
        sum_duy = gain * sum_gy - pull * count * (a * self.var_y + k * self.covariance)
        sum_dux = gain * sum_gx - pull * count * (a * self.covariance + k * self.var_x)
        constant = -gain * sum_g / count + pull * (a * self.mean_y + k * self.mean_x)
        du = np.stack([gain, -pull * a, -pull * k, constant])  # of g, y, x and 1
        dy = a * du
        back = a * self.inverse_y**2 * sum_duy / count
        dy[1] -= back
        dy[3] += back * self.mean_y

        taps = np.empty((len(x), 9, x.shape[3]))
        _run("branches_back", x, _nothing(x), self.weight, gradient, _float32(*dy, *(k * du)), dx, taps)
        nothing = _parameter(np.zeros(len(k)))  # the outer normalisation takes both biases out with the mean
        return (
            _parameter(taps.sum(0).T).view(-1, 1, 3, 3),
            _parameter(sum_dux).view(-1, 1, 1, 1),
            nothing,
            _parameter(self.inverse_y * sum_duy),
            nothing.clone(),
            _parameter(sum_gz),
            _parameter(sum_g),
        )


@dataclass(frozen=True, slots=True)
class _Outlet:
    """The end of an RMB on one batch, BN(w r) with r = v + projected: the result is slope (r - mean) + beta."""

    count: int  # values of a channel
    mean: Array  # (C), as all that follow
    inverse: Array  # 1 / sqrt(w^2 var + eps)
    w: Array
    gamma: Array
    eps: float

    @classmethod
    def of(cls, v: Tensor, projected: Tensor, w: Tensor, bn: nn.BatchNorm2d) -> "_Outlet":
        """On maps (B, H, W, C); updates the running statistics."""
        count = v.shape[0] * v.shape[1] * v.shape[2]
        sums = np.empty((len(v), 2, v.shape[3]))
        _run("sum_moments", v, projected, sums)
        mean, square = sums.sum(0) / count
        gain = _array(w).reshape(-1).astype(np.float64)
        variance = gain**2 * np.maximum(square - mean**2, 0)
        _track(bn, gain * mean, variance, count)
        return cls(count, mean, 1 / np.sqrt(variance + bn.eps), gain, _array(bn.weight), bn.eps)

    def affine(self, beta: Tensor) -> Array:
        """(2, C), what r is multiplied by and what is added."""
        slope = self.gamma * self.w * self.inverse
        return _float32(slope, _array(beta) - slope * self.mean)

    def gradients(
        self, v: Tensor, projected: Tensor, gradient: Tensor, dr: Tensor, working: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of w, gamma and beta; fills dr, and the same once more as a working map."""
        sums = np.empty((len(v), 2, v.shape[3]))
        _run("sum_gradient_sums", v, projected, gradient, sums)
        sum_g, sum_gr = sums.sum(0)
        sum_gr = sum_gr - self.mean * sum_g
        slope = self.gamma * self.w * self.inverse
        of_r = -slope * (self.w * self.inverse) ** 2 * sum_gr / self.count
        _run(
            "sum_back",
            *(v, projected, gradient),
            _float32(slope, of_r, -slope * sum_g / self.count - of_r * self.mean),
            *(dr, working),
        )
        # The normalisation takes the size of w out again, all but what eps leaves of it.
        dw = self.gamma * self.inverse**3 * self.eps * sum_gr
        return _parameter(dw).view(-1, 1, 1, 1), _parameter(self.w * self.inverse * sum_gr), _parameter(sum_g)


def _track(norm: nn.BatchNorm2d, mean: Array, variance: Array, count: int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(_parameter(mean), momentum)
    norm.running_var.lerp_(_parameter(variance * (count / max(count - 1, 1))), momentum)


def _working() -> torch.dtype:
    """The type of working maps."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """x (..., K), a working map, times a matrix (K, N): a working map (..., N)."""
    return (x.flatten(0, -2) @ matrix.to(x.dtype)).view(*x.shape[:-1], -1)


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Of the weight (N, K) of y = x weight^T."""
    return (dy.flatten(0, -2).t() @ x.flatten(0, -2)).float()


def _tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), channels side by side; copied only where they are not."""
    tokens = to_tokens(image)
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()


def _taps(weight: Tensor) -> Array:
    """The weights of a depthwise convolution, (C, 1, k, k), as (k k, C)."""
    return np.ascontiguousarray(_array(weight).reshape(len(weight), -1).T)


def _rows(*vectors: Tensor) -> Array:
    """Vectors (C) as the rows of an array."""
    return np.stack([_array(vector) for vector in vectors])


def _float32(*vectors: Array) -> Array:
    return np.stack(vectors).astype(np.float32)


def _parameter(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


@cache
def _zeros(columns: int, channels: int, dtype: torch.dtype) -> Array:
    return _seen(torch.zeros(columns, channels, dtype=dtype, device="cpu"))


def _nothing(x: Tensor) -> Array:
    """A row of zeros as wide as a map (B, H, W, C)."""
    return _zeros(x.shape[2], x.shape[3], x.dtype)


def _seen(tensor: Tensor | Array) -> Array:
    """As the kernels take it: bfloat16 as uint16."""
    if isinstance(tensor, np.ndarray):
        return tensor
    return _array(tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor)


def _run(kernel: str, *arrays: Tensor | Array) -> None:
    """All samples of a batch through a kernel, shared among as many threads as torch may use."""
    kernels = _kernels()
    assert kernels is not None, "serves() is asked first"
    seen = [_seen(array) for array in arrays]
    run: Callable[..., None] = kernels.kernel(kernel, any(array.dtype == np.uint16 for array in seen))
    batch = len(seen[0])
    threads = min(torch.get_num_threads(), batch) if seen[0].size >= WORK_FOR_THREADS else 1
    side_by_side(lambda first, last: run(first, last, *seen), batch, threads)


def _kernels() -> ModuleType | None:
    return started("repmamba.network.training_numba", "training")
