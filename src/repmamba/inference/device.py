"""Where a network computes, and in which type of number: from what was asked and the kinds of
device that are there.

Never from free memory or from how busy a machine is: what can change a pixel must not depend on the
moment.
"""

from __future__ import annotations

import torch

from repmamba.errors import UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


def choose_device(asked: str | torch.device | None = None) -> torch.device:
    """The device asked for, or a CUDA one where there is one, or the CPU. Raises UsageError where
    it is not there.
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
        raise UsageError(
            f"The device '{asked}' is not in this machine; leave it out, or choose cpu."
        )
    return device


def choose_precision(asked: str | None = None) -> torch.dtype:
    """float32 unless bfloat16 is asked for. Raises UsageError for other names."""
    name = asked or "float32"
    if name not in PRECISIONS:
        raise UsageError(f"There is no precision '{asked}'; choose float32 or bfloat16.")
    return PRECISIONS[name]
