"""Files that survive a crash: the one place from which the scene room writes, syncs and renames.

A file is written under a temporary name, synced, given its name, and then the folder is synced, so that after a power
cut a name either leads to all of its bytes or is not there. Python's own file objects and shutil hide the moments at
which that can fail; here each is one call of `os` that a test can make fail.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repmamba.errors import NoSpace, RepmambaError, TargetError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # a full disk, a used-up quota, a limit on file size
PIECE = 1 << 20  # bytes read at once where a whole file passes through
_BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says while path is written into NoSpace or TargetError, each one line."""
    try:
        yield
    except RepmambaError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(
                f"No space left while {path} was written ({error.strerror}; {readable(free_bytes(path.parent))} free). "
                "What is finished is kept: make room and run the same command again."
            ) from error
        raise TargetError(
            f"{path} cannot be written: {error.strerror or error}. "
            "What is finished is kept: the same command continues once this is mended."
        ) from error


def write_synced(path: Path, *parts: bytes) -> None:
    """The parts, one after the other, as the content of path, on the disk when this returns; OSError if not."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, *parts: bytes) -> None:
    """The parts as the content of path, which appears (or changes) at once and for good; OSError if it does not."""
    draft = path.with_name(path.name + ".part")
    try:
        write_synced(draft, *parts)
        os.replace(draft, path)
    except OSError:
        remove(draft)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Bring a file that someone else wrote to the disk."""
    descriptor = os.open(path, os.O_RDWR | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Windows cannot and need not be asked to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_durable(source: Path, target: Path, *, replace: bool) -> None:
    """Give a synced file its final name, on the same filesystem; FileExistsError if taken, unless replace."""
    if replace:
        os.replace(source, target)
    else:
        _move_to_free_name(source, target)
    sync_folder(target.parent)


def _move_to_free_name(source: Path, target: Path) -> None:
    # A link fails where the name is taken, in one step; a rename would silently replace what came there meanwhile.
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        if target.exists():  # a filesystem without links (FAT, some network drives)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
    else:
        os.unlink(source)


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it is there; what cannot be removed stays, for the next run to see."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except OSError:
        return


def free_bytes(folder: Path) -> int:
    """What a user without special rights may still write into a folder."""
    return shutil.disk_usage(folder).free


def readable(size: float) -> str:
    """A size in bytes as people say it: 812 bytes, 3.1 MB, 12.0 GB (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
