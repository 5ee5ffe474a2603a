"""The lock of a target: one process writes it at a time. The system releases it when that exits."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from repmamba import durable
from repmamba.errors import TargetError
from repmamba.scene.result.journal import SUFFIX

logger = logging.getLogger(__name__)


class TargetLock:
    """A lock on a target, held by at most one process and released when that process ends.

    was_left: whether acquire() found the file of a killed process, which could not remove it.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name}.lock{SUFFIX}")
        self.was_left = False
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Acquire the lock, or raise TargetError that names the holder."""
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _lock(descriptor):
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                raise TargetError(
                    f"Another repmamba ({holder or 'just started'}) is writing the same file "
                    f"({self.path} is locked): wait for it, or stop it and run this again."
                )
            if _is_at(descriptor, self.path):
                self._descriptor = descriptor
            else:  # the previous holder removed the file between our open and our lock
                os.close(descriptor)
        try:
            self.was_left = os.fstat(self._descriptor).st_size > 0
            note = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
            os.ftruncate(self._descriptor, os.write(self._descriptor, note))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._descriptor is not None:
            durable.remove(self.path)
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning(
            "This filesystem does not support locks (%s): do not run two jobs on one target.",
            error.strerror,
        )
    return True


def _lock_on_windows(descriptor: int) -> bool:
    import msvcrt

    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
