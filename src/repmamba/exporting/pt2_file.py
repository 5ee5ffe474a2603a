"""A network as a torch.export program (.pt2), for PyTorch without repmamba.

Its scan is that of scan/chunked.py, in torch operations only.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repmamba.network.fusion import FusedRepMamba

# pixels on a side: with fewer, the pooled map has sides of 1, which torch.export specialises
LEAST = 3


class AnySize(nn.Module):
    """The network with padding to even sizes written without a condition."""

    def __init__(self, network: FusedRepMamba) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W)."""
        height, width = image.shape[-2:]
        result: Tensor = self.network(_picked(image, _evened(height), _evened(width)))
        # By indices, as torch.export specialises a slice to one that crops or one that does not.
        scale = self.network.scale
        return _picked(result, torch.arange(height * scale), torch.arange(width * scale))


def _picked(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return image.index_select(2, rows).index_select(3, columns)


def _evened(length: int) -> Tensor:
    """Indices of this many rows, the last one twice if the number is odd."""
    return torch.arange((length + 1) // 2 * 2).clamp(max=length - 1)


def program_of(network: FusedRepMamba, size: tuple[int, int] | None) -> Any:
    """The exported program of a network whose scan is plain torch. size: height and width."""
    module = AnySize(network).eval()
    dynamic = None
    shape = (1, *size) if size else (2, 34, 50)
    batch, height, width = shape
    example = torch.zeros(batch, network.config.in_chans, height, width)
    if size is None:
        any_length = torch.export.Dim.DYNAMIC
        dynamic = {"image": {0: any_length, 2: any_length, 3: any_length}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's, about its own code
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)


def runner_of(program: Any) -> Callable[[Any], Any]:
    """A function that runs a program on arrays."""
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
