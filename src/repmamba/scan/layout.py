"""Between channels-first tensors and channels-last memory, which the compiled scans walk."""

import torch
from torch import Tensor


def pixels(maps: Tensor) -> Tensor:
    """(batch, n, h, w) -> (batch, h w, n); a channels_last map is not copied."""
    return maps.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def image(pixels: Tensor, height: int, width: int) -> Tensor:
    """(batch, h w, n) -> (batch, n, h, w) in channels_last."""
    batch, _, n = pixels.shape
    return pixels.contiguous().view(batch, height, width, n).permute(0, 3, 1, 2)


def steps_first(sequences: Tensor, groups: int) -> Tensor:
    """(batch, groups * channel, length) -> (batch, groups, length, channel), contiguous."""
    batch, _, length = sequences.shape
    return sequences.reshape(batch, groups, -1, length).transpose(2, 3).contiguous()


def channels_first(steps: Tensor) -> Tensor:
    """(batch, groups, length, channel) -> (batch, groups * channel, length)."""
    return own(steps.transpose(2, 3)).flatten(1, 2)


def own(view: Tensor) -> Tensor:
    """A copy that shares no memory, as an operator has to return."""
    return view.clone(memory_format=torch.contiguous_format)
