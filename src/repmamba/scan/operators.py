"""What the compiled scans share as operators of torch."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from repmamba.errors import UsageError


def wants_gradients(backend: str, *tensors: Tensor) -> bool:
    """Whether the backward pass may come, for which states are kept. Raises UsageError where tangents would be lost."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        # torch would drop the tangents without a word.
        raise UsageError(
            f"The scan '{backend}' has no derivatives in forward mode: choose the scan 'definition' for them."
        )
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
