"""A network as a program of torch.export (.pt2), for PyTorch without repmamba.

The scan is then the one of scan/chunked.py, in operators of torch only.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repmamba.network.fusion import FusedRepMamba


class AnySize(nn.Module):
    """The network with its rule for odd sizes written without a condition.

    image: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W).
    """

    def __init__(self, network: FusedRepMamba) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W)."""
        height, width = image.shape[-2:]
        rows, columns = (_evened(length, image.device) for length in (height, width))
        result = self.network(image[:, :, rows][..., columns])
        scale = self.network.scale
        return result[..., : height * scale, : width * scale]


def _evened(length: int, device: torch.device) -> Tensor:
    """The indices of so many rows, the last one twice where their number is odd."""
    return torch.arange((length + 1) // 2 * 2, device=device).clamp(max=length - 1)


def program_of(network: FusedRepMamba, size: tuple[int, int] | None) -> Any:
    """The exported program of a network, with the scan of plain operators. size: height, width."""
    module = AnySize(network).eval()
    dynamic = None
    example = torch.zeros(1, network.config.in_chans, *(size or (0, 0)))
    if size is None:
        example = torch.zeros(2, network.config.in_chans, 34, 50)
        axes = torch.export.Dim.DYNAMIC
        dynamic = {"image": {0: axes, 2: axes, 3: axes}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # remarks of torch on its own parts
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)


def runner_of(program: Any) -> Callable[[Any], Any]:
    """What runs a program on arrays."""
    module = program.module()

    def run(lr: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(lr)).numpy()

    return run


def content_of(program: Any, metadata: Mapping[str, str]) -> bytes:
    """The file: the program with this metadata as extra files."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files=dict(metadata))
    return stream.getvalue()
