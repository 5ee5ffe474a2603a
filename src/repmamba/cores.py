"""How many CPU cores this process may use: a scheduler or a container often gives it fewer than the machine has."""

import os


def available_cores() -> int:
    """CPU cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
