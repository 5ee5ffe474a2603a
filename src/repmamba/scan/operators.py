"""Torch operators of a compiled scan, with gradients, for torch.compile and torch.export.

A backend describes in a `Scan` how it lays out its arguments and runs its kernels; `register` makes
two operators of it, each with a backward operator. They take the arguments of `selective.scan_map`
and of `definition.scan_by_definition`, and then whether to keep states for the backward pass; they
return the result and these states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from repmamba.errors import UsageError
from repmamba.scan.layout import channels_first, image, own, pixels, steps_first
from repmamba.scan.sizes import DIRECTIONS

# partial sums of a map's result: directions 0 and 2 add to the first, 1 and 3 to the second
MAP_SLABS = 2

Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# of a backward operator: (dy, kept, the six arguments of the forward one) -> their gradients
OF_SIX = "({}) -> ({})".format(
    ", ".join(f"Tensor {name}" for name in ("dy", "kept", *"abcdef")), ", ".join(["Tensor"] * 6)
)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of what the kernels read. Channels may be padded."""

    u: Tensor  # (batch, slabs, length, channels)
    dt: Tensor  # (batch, groups, length, channels); of sequences
    rows: Tensor  # of a map (batch, length, 4 (R + 32)), of sequences (batch, groups, length, 32)
    dt_weight: Tensor  # shaped as the argument, as the following
    dt_bias: Tensor
    A: Tensor
    D: Tensor


@dataclass(frozen=True, slots=True)
class Scan:
    """A backend's part; a problem is whatever it makes of the arguments."""

    map_problem: Callable[..., Any]
    sequence_problem: Callable[..., Any]
    # (problem, keep) -> y of each slab, (batch, slabs, length, channels), and the kept states
    forward: Callable[[Any, bool], tuple[Tensor, Tensor]]
    # (problem, kept, dy) -> gradients; dy of a map is (batch, length, channel), of sequences
    # (batch, groups, length, channel)
    backward: Callable[[Any, Tensor, Tensor], Gradients]
    # (batch, groups, length, channel, dtype) -> shape of the kept states; length 0 for none
    kept_shape: Callable[..., tuple[int, ...]]


def wants_gradients(backend: str, *tensors: Tensor) -> bool:
    """Whether a backward pass may follow. Raises UsageError for forward-mode derivatives."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        # torch would silently drop the tangents.
        raise UsageError(
            f"The scan '{backend}' has no forward-mode derivatives: choose the scan 'definition' "
            "for them."
        )
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def register(scan: Scan, suffix: str = "", device: str | None = None) -> None:
    """Register scan_map and scan_sequences, and each with _backward, in torch.ops.repmamba.

    suffix: appended to the two names.  device: type of device, or None for any.
    """
    _register_map(scan, f"repmamba::scan_map{suffix}", device)
    _register_sequences(scan, f"repmamba::scan_sequences{suffix}", device)


def _register_map(scan: Scan, name: str, device: str | None) -> None:
    @torch.library.custom_op(name, mutates_args=(), device_types=device)
    def forward(
        p: Tensor,
        projected: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        y, kept = scan.forward(scan.map_problem(p, projected, dt_weight, dt_bias, A, D), keep)
        return image((y[:, 0] + y[:, 1])[..., : p.shape[1]], *p.shape[2:]), kept

    @forward.register_fake
    def _(p: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        *_, A, _, keep = others
        batch, channel, height, width = p.shape
        kept = scan.kept_shape(batch, DIRECTIONS, height * width if keep else 0, channel, A.dtype)
        return A.new_empty(batch, height, width, channel).permute(0, 3, 1, 2), A.new_empty(kept)

    @torch.library.custom_op(
        f"{name}_backward", mutates_args=(), device_types=device, schema=OF_SIX
    )
    def backward(dy: Tensor, kept: Tensor, *tensors: Tensor) -> Six:
        p, projected = tensors[:2]
        gradients = scan.backward(scan.map_problem(*tensors), kept, pixels(dy))
        u = (gradients.u[:, 0] + gradients.u[:, 1])[..., : p.shape[1]]
        dp = image(u.to(p.dtype), *p.shape[2:])
        dprojected = image(gradients.rows.to(projected.dtype), *p.shape[2:])
        return dp, dprojected, gradients.dt_weight, gradients.dt_bias, gradients.A, gradients.D

    @backward.register_fake
    def _(dy: Tensor, kept: Tensor, *tensors: Tensor) -> Six:
        dp, dprojected = (
            x.new_empty(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) for x in tensors[:2]
        )
        dweight, dbias, dA, dD = (x.new_empty(x.shape) for x in tensors[2:])
        return dp, dprojected, dweight, dbias, dA, dD

    _differentiate(forward, backward)


def _register_sequences(scan: Scan, name: str, device: str | None) -> None:
    @torch.library.custom_op(name, mutates_args=(), device_types=device)
    def forward(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor]:
        y, kept = scan.forward(scan.sequence_problem(u, dt, A, B, C, D), keep)
        return channels_first(y[..., : u.shape[1] // B.shape[1]]), kept

    @forward.register_fake
    def _(u: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        _, A, B, _, _, keep = others
        batch, rows, length = u.shape
        groups = B.shape[1]
        kept = scan.kept_shape(batch, groups, length if keep else 0, rows // groups, A.dtype)
        return A.new_empty(u.shape), A.new_empty(kept)

    @torch.library.custom_op(
        f"{name}_backward", mutates_args=(), device_types=device, schema=OF_SIX
    )
    def backward(dy: Tensor, kept: Tensor, *tensors: Tensor) -> Six:
        u, groups = tensors[0], tensors[3].shape[1]
        channel = u.shape[1] // groups
        gradients = scan.backward(scan.sequence_problem(*tensors), kept, steps_first(dy, groups))
        du, ddt = (channels_first(steps[..., :channel]) for steps in (gradients.u, gradients.dt))
        dB, dC = (own(rows.transpose(2, 3)) for rows in gradients.rows.chunk(2, dim=-1))
        return du, ddt, gradients.A, dB, dC, gradients.D

    @backward.register_fake
    def _(dy: Tensor, kept: Tensor, *tensors: Tensor) -> Six:
        du, ddt, dA, dB, dC, dD = (x.new_empty(x.shape) for x in tensors)
        return du, ddt, dA, dB, dC, dD

    _differentiate(forward, backward)


def _differentiate(forward: CustomOpDef, backward: CustomOpDef) -> None:
    """Register the backward operator as the gradient of the forward one."""

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *inputs[:-1])

    def gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(dy, *ctx.saved_tensors), None)

    forward.register_autograd(gradients, setup_context=remember)
