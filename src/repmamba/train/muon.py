"""Muon: steps along orthogonalised momentum for the body's matrices, AdamW for all else.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. A step's
length, for which AdamW's learning rate and weight decay fit: J. Liu et al., "Muon is Scalable for
LLM Training", 2025. torch.optim.Muon takes single matrices only; here a convolution's kernel counts
as one matrix and a three-dimensional weight as a stack, and all of one shape go in one call.
"""

from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Newton-Schulz: coefficients of the quintic that brings singular values near 1, and its repetitions
QUINTIC, REPETITIONS = (3.4445, -4.7750, 2.0315), 5
# root mean square of AdamW's usual update, which an orthogonal matrix is scaled to
UPDATE_RMS = 0.2


def is_body_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter of the network is a matrix, or matrices, between hidden features.

    Not the first and last layers, depthwise kernels, time constants and steps of the scan.
    """
    if parameter.dim() < 2 or not name.startswith(("groups.", "conv_after_body.")):
        return False
    if name.endswith(("A_log", "dt_weight", "dt_bias")):
        return False
    return parameter.dim() != 4 or parameter.shape[1] > 1


class Muon(torch.optim.AdamW):
    """AdamW, with Muon for the parameter groups that have `"matrices": True`."""

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], **adamw)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(matrix_shape(parameter), []).append(parameter)
        for shape, parameters in shapes.items():
            gradients = torch.cat([one.grad.reshape(-1, *shape) for one in parameters])  # type: ignore[union-attr]
            momentum = torch.cat([self._momentum(one).reshape(-1, *shape) for one in parameters])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalised(gradients.lerp(momentum, MOMENTUM))  # Nesterov's
            length = rate * UPDATE_RMS * max(shape) ** 0.5
            counts = [one.numel() // (shape[0] * shape[1]) for one in parameters]
            for one, kept, update in zip(
                parameters, torch.split(momentum, counts), torch.split(updates, counts), strict=True
            ):
                self._momentum(one).copy_(kept.reshape(one.shape))
                one.mul_(1 - rate * decay).sub_(update.reshape(one.shape), alpha=length)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW expects one when a state is loaded
        momentum: Tensor = state["momentum"]
        return momentum


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter's matrices: of a stack its last two dimensions."""
    if parameter.dim() == 3:
        return parameter.shape[1], parameter.shape[2]
    return parameter.shape[0], parameter[0].numel()


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) with singular values near 1 (0.7 to 1.2); zero stays zero."""
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if tall else matrices
    found = found / found.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    a, b, c = QUINTIC
    for _ in range(REPETITIONS):
        gram = found @ found.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, polynomial, found, beta=a)
    return found.mT if tall else found
