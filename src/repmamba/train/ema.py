"""A running mean of a network's weights and buffers (EMA): the network that is validated and
shipped.
"""

import copy

import torch
from torch import Tensor, nn

from repmamba.network.repmamba import RepMamba

Pairs = tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]


class ExponentialMovingAverage:
    """The exponential moving average of a network.

    decay: share of the old mean kept at each update, from 0 to below 1. The first updates keep
    less, (1 + n) / (10 + n) after n of them, so that a long mean does not remember the start for
    thousands of steps. network: the mean, in evaluation mode, of the same class as the original and
    on its device.
    """

    def __init__(self, network: RepMamba, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._found: tuple[nn.Module, Pairs] | None = None
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the mean towards the network: weights and buffers alike, counts copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        means, values, counts = self._pairs(network)
        for count, value in counts:
            count.copy_(value)
        torch._foreach_lerp_(means, values, 1 - decay)

    def _pairs(self, network: nn.Module) -> Pairs:
        """The means and the network's own numbers, and its counts; gathered once, since that takes
        as long again.
        """
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
