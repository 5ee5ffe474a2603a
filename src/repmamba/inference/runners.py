"""Runner: the interface to a network in any form: torch, compiled passes or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class Runner(Protocol):
    """Runs a network on tiles. Called from several threads at once."""

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        ...

    @property
    def bands(self) -> int:
        """How many bands the network takes and returns."""
        ...

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """The network itself: (B, bands, h, w) -> (B, bands, scale h, scale w), not clamped."""
        ...

    def run(self, unit: Tensor) -> Tensor:
        """unit: (B, bands, h, w), float32 on the CPU -> (B, bands, scale h, scale w), the same.

        The result is not clamped.
        """
        ...


@dataclass(frozen=True, slots=True)
class TorchRunner:
    """A torch network on its device."""

    network: nn.Module = field(repr=False)
    scale: int
    bands: int
    device: torch.device
    precision: torch.dtype  # float32, or bfloat16 for the layers that autocast covers

    def run(self, unit: Tensor) -> Tensor:
        """See Runner."""
        reduced = self.precision != torch.float32
        cast = torch.autocast(self.device.type, self.precision) if reduced else nullcontext()
        with torch.inference_mode(), cast:
            result: Tensor = self.network(unit.to(self.device))
        return result.to("cpu", torch.float32)
