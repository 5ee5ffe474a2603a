"""Choosing the device and the precision, from the request and from the devices there are.

Never from free memory or load: nothing that can change a pixel may depend on the moment.
"""

from __future__ import annotations

import torch

from repmamba.errors import UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


def choose_device(asked: str | torch.device | None = None) -> torch.device:
    """The requested device, or by default a CUDA GPU or the CPU.

    Raises UsageError if this machine does not have it.
    """
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as unknown:
        raise UsageError(
            f"There is no device '{asked}'; choose cpu, cuda, cuda:1 or mps."
        ) from unknown
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"This machine has no device '{asked}'; leave it out, or choose cpu.")
    return device


def choose_precision(asked: str | None = None) -> torch.dtype:
    """float32 unless bfloat16 is requested. Raises UsageError for other names."""
    name = asked or "float32"
    if name not in PRECISIONS:
        raise UsageError(f"There is no precision '{asked}'; choose float32 or bfloat16.")
    return PRECISIONS[name]
