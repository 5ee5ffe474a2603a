"""Order: what a job's process is asked to do.

The server imports this module, not `work`, so that only the processes of jobs load torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba.service.references import Allowed
from repmamba.service.settings import Limits


@dataclass(frozen=True, slots=True)
class Order:
    """One job. folder: its own, absolute."""

    folder: Path
    keywords: Mapping[str, Any]  # of upscale_file
    reference: str | None  # a URL or file:///path, instead of the input in the folder
    name: str  # of the input, in messages
    allowed: tuple[Allowed, ...]
    limits: Limits
    workers: int | None
