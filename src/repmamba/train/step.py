"""One training step: forward, loss, gradients, clipping, update.

Needs torch alone; what a batch is and when a step is taken is the loop's matter.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from: lr (B, C, h, w) and hr (B, C, s h, s w), unit.

    weight: factor of the loss and so of the gradient, for a process whose share is larger or
    smaller than the mean.
    """

    lr: Tensor
    hr: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step saw: the loss, the norm of all gradients before clipping, the learning rate.

    The first two are scalars still on the device: to read one is to wait for the step, and the loop
    need not each time.
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
    """One update of the network's parameters, all of which the optimiser has.

    clip: largest norm of all gradients together; longer ones are scaled to it.
    precision: bfloat16 runs the forward pass under autocast; the loss, the scan and the weights
    stay float32. parts: pieces that the batch is computed in, one after another, for one update;
    the loss is a mean over images, so the gradient is the same but for BatchNorm's statistics,
    which each piece has of its own.
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
    """Several processes exchange gradients once, after a batch's last piece."""
    no_sync = getattr(network, "no_sync", nullcontext)
    context: nullcontext[None] = no_sync()
    return context
