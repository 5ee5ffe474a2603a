"""How many CPU cores this process may use; often fewer than the machine has."""

import math
import os

from repmamba.container import cpu_quota


def available_cores() -> int:
    """CPU cores that this process may run on, within the quota of its container; at least 1."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
