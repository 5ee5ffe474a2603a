"""Files that survive a crash: how every room writes what others rely on, and what it says when that
fails.

There are two promises. `write_durable` and `move_durable`: a file is written under a temporary
name, synced, given its name, and then the folder is synced, so that after a power cut a name either
leads to all of its bytes or is not there. `whole_file`: the same without syncing, which holds for
readers and kills alone; for files that are many and can be made again. Python's own file objects
and shutil hide the moments at which syncing can fail; here each is one call of `os` that a test can
make fail.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repmamba.errors import NoSpace, RepmambaError, TargetError, UsageError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})  # a full disk, a used-up quota
FULL = NO_ROOM | {errno.EFBIG}  # and a limit on file sizes, where room does not help
PIECE = 1 << 20  # bytes read at once where a whole file passes through
_BINARY = getattr(os, "O_BINARY", 0)
# s3://bucket/, also as a Path; /vsigs/bucket/
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|/vsi(?!mem/)\w+/")


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for an output at an address or in an object store: only local files are
    written.
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        address = re.sub(r"^(\w[\w+.-]*:)/(?!/)", r"\1//", text)  # a Path has one of the slashes
        raise UsageError(
            f"{address} is not on this machine, and only local files are written: name a local "
            "file or folder, "
            "then copy the result there."
        )


@contextmanager
def write_errors(path: Path, after: str = "") -> Iterator[None]:
    """Turn what the system says while path is written into NoSpace or TargetError, each one line.

    after: a sentence for the end of that line. Raises UsageError for a path that is not on this
    machine.
    """
    check_local(path)
    try:
        yield
    except RepmambaError:
        raise
    except OSError as error:
        kind = NoSpace if error.errno in FULL else TargetError
        found = f"{path} cannot be written: {error.strerror or error}."
        advice = "Free some space." if error.errno in NO_ROOM else ""
        raise kind(" ".join(filter(None, (found, advice, after)))) from error


def write_synced(path: Path, *parts: bytes) -> None:
    """The parts, one after the other, as the content of path, on the disk when this returns;
    OSError if not.
    """
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
    """The parts as the content of path, which appears (or changes) at once and for good; OSError if
    it does not.
    """
    draft = _draft(path)
    try:
        write_synced(draft, *parts)
        os.replace(draft, path)
    except BaseException:
        remove(draft)
        raise
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name to write to, which becomes path when the block ends well and goes when it does
    not; not synced.

    Folders above it are made. Raises as write_errors.
    """
    draft = _draft(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        except BaseException:
            remove(draft)
            raise


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
    """Give a synced file its final name, on the same filesystem; FileExistsError if taken, unless
    replace.
    """
    if replace:
        os.replace(source, target)
    else:
        _move_to_free_name(source, target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it is there; what cannot be removed stays, for the next
    run to see.
    """
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


def _draft(path: Path) -> Path:
    """A hidden name beside the path that no other thread or process takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _move_to_free_name(source: Path, target: Path) -> None:
    # A link fails where the name is taken, in one step; a rename would silently replace what came
    # there meanwhile.
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (
            errno.EPERM,
            errno.ENOTSUP,
            errno.EOPNOTSUPP,
            errno.EMLINK,
            errno.ENOSYS,
        ):
            raise
        if target.exists():  # a filesystem without links (FAT, some network drives)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
    else:
        os.unlink(source)
