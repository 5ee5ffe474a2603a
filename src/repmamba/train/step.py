"""One training step: forward, loss, gradients, clipping, update. Needs only torch."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step: lr (B, C, h, w) and hr (B, C, s h, s w), unit.

    weight: factor of the loss, for a process whose share is larger or smaller than the mean.
    """

    lr: Tensor
    hr: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Loss, norm of all gradients before clipping, and learning rate of a step.

    The first two are scalars on the device: reading one waits for the step.
    """

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


def training_step(
    network: nn.Module,
    optimiser: Optimizer,
    batch: Batch,
    loss: LossFunction,
    *,
    clip: float | None = None,
    precision: torch.dtype = torch.float32,
    parts: int = 1,
) -> StepResult:
    """Update the network's parameters, all of which the optimiser has.

    clip: largest norm of all gradients together; longer ones are scaled to it.
    precision: bfloat16 runs the forward pass under autocast; the loss, the scan and the weights
    stay float32.
    parts: pieces that the batch is computed in, one after another, for one update. The loss is a
    mean over images, so the gradient stays the same, except for BatchNorm statistics, which each
    piece has of its own.
    """
    optimiser.zero_grad(set_to_none=True)
    count = len(batch.lr)
    pieces = list(zip(batch.lr.chunk(parts), batch.hr.chunk(parts), strict=True))
    total = batch.hr.new_zeros(())
    for number, (lr, hr) in enumerate(pieces, 1):
        with nullcontext() if number == len(pieces) else _without_exchange(network):
            with torch.autocast(lr.device.type, precision, enabled=precision != torch.float32):
                sr = network(lr)
            value = loss(sr.float(), hr) * (batch.weight * len(lr) / count)
            value.backward()  # type: ignore[no-untyped-call]
        total += value.detach()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, torch.inf if clip is None else clip)
    optimiser.step()
    return StepResult(total, norm, optimiser.param_groups[0]["lr"])


def _without_exchange(network: nn.Module) -> "nullcontext[None]":
    """Without the exchange of gradients between processes, which only the last piece needs."""
    no_sync = getattr(network, "no_sync", nullcontext)
    context: nullcontext[None] = no_sync()
    return context
