"""Runner: the one thing that everything above a network asks of it, so that another form of it can
take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class Runner(Protocol):
    """Computes the enlargement of a tile. Called from several threads at once."""

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        ...

    @property
    def bands(self) -> int:
        """How many bands it takes and gives."""
        ...

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """(B, bands, h, w) -> (B, bands, scale h, scale w), not clamped, as the runner's own form
        computes it.
        """
        ...

    def run(self, unit: Tensor) -> Tensor:
        """unit: (B, bands, h, w), float32, on the CPU -> (B, bands, scale h, scale w), likewise,
        not clamped.
        """
        ...


@dataclass(frozen=True, slots=True)
class TorchRunner:
    """A network of torch on its device."""

    network: nn.Module = field(repr=False)
    scale: int
    bands: int
    device: torch.device
    precision: torch.dtype  # float32, or bfloat16 for the layers that autocast takes to it

    def run(self, unit: Tensor) -> Tensor:
        """See Runner."""
        reduced = self.precision != torch.float32
        cast = torch.autocast(self.device.type, self.precision) if reduced else nullcontext()
        with torch.inference_mode(), cast:
            result: Tensor = self.network(unit.to(self.device))
        return result.to("cpu", torch.float32)
