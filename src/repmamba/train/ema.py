"""Exponential moving average (EMA) of a network; it is validated and saved."""

import copy

import torch
from torch import Tensor, nn

from repmamba.network.repmamba import RepMamba

Pairs = tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]


class ExponentialMovingAverage:
    """The exponential moving average of a network's weights and buffers.

    decay: share of the old average kept at each update, from 0 to below 1. The first updates keep
    only (1 + n) / (10 + n) after n of them, so that the start is forgotten quickly.
    network: the average, in evaluation mode, of the same class and on the same device as the
    original.
    """

    def __init__(self, network: RepMamba, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._found: tuple[nn.Module, Pairs] | None = None
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average: weights and buffers, counts copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        means, values, counts = self._pairs(network)
        for count, value in counts:
            count.copy_(value)
        torch._foreach_lerp_(means, values, 1 - decay)

    def _pairs(self, network: nn.Module) -> Pairs:
        """Averages with the network's tensors, and counts; gathered only once."""
        if self._found is None or self._found[0] is not network:
            pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            counts = [pair for pair in pairs if not pair[0].is_floating_point()]
            self._found = (
                network,
                ([mean for mean, _ in floats], [value for _, value in floats], counts),
            )
        return self._found[1]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
