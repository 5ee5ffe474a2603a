"""Processes that are killed when their work has come to some point, however fast or busy the
machine is.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from repmamba.scene.result.lock import TargetLock

DEADLINE = 600  # seconds after which what is waited for will not come
LONGEST_DELAY = 0.3  # seconds from that point to the kill, in which several more tiles are done


def wait_until(came: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until something has come, or the process has ended without it."""
    end = time.monotonic() + DEADLINE
    while not came() and process.poll() is None:
        assert time.monotonic() < end, "what is waited for does not come"
        time.sleep(0.002)


def writer_of(target: Path) -> str:
    """What the lock of the target says of its holder; empty without one."""
    try:
        return TargetLock(target).path.read_text()
    except FileNotFoundError:
        return ""


def tiles_of(target: Path) -> int:
    """How many tiles of the target wait to be put together."""
    # Path.glob fails where a folder vanishes
    return len(glob(f".{target.name}.*/*.tile", root_dir=target.parent))


def killed_at(command: Sequence[str | Path], target: Path, tiles: int, delay: float) -> bool:
    """Start what writes the target, kill it some seconds after so many tiles are there; False if it
    ended before.
    """
    process = subprocess.Popen(
        [str(part) for part in command], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        wait_until(
            lambda: f"process {process.pid} " in writer_of(target) and tiles_of(target) >= tiles,
            process,
        )
        time.sleep(delay)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == -signal.SIGKILL
