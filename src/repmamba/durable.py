"""Files that survive a crash: how every room writes files, and the errors if that fails.

`write_durable` and `move_durable` write a file under a temporary name, sync it, rename it and sync
the folder: after a power failure the name has either all of its bytes or does not exist.
`whole_file` does the same without syncing, which protects readers and survives kills; it is for
many files that can be made again. Python's file objects and shutil hide the calls that can fail;
here each is one call of `os` that a test can make fail.
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

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})  # disk full, quota used up
FULL = NO_ROOM | {errno.EFBIG}  # and a limit on file sizes, where freeing space does not help

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
PIECE = 1 << 20  # bytes read at once from a large file
_BINARY = getattr(os, "O_BINARY", 0)
# s3://bucket/, also as a Path; /vsigs/bucket/
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|/vsi(?!mem/)\w+/")


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for a URL or an object store: only local files are written."""
    text = os.fspath(path)
    if _ADDRESS.match(text):
        # a Path has lost one of the slashes
        address = re.sub(r"^(\w[\w+.-]*:)/(?!/)", r"\1//", text)
        raise UsageError(
            f"{address} is not a local path, and only local files are written: name a local file "
            "or folder, then copy the result there."
        )


@contextmanager
def write_errors(path: Path, after: str = "") -> Iterator[None]:
    """Turn an OSError while path is written into NoSpace or TargetError, in one line.

    after: a sentence for the end of that line. Raises UsageError for a path that is not local.
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
    """Write the parts as the content of path and sync it. Raises OSError."""
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
    """Write the parts to path so that it appears, or changes, at once. Raises OSError."""
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
    """A temporary name to write to, which becomes path if the block succeeds; not synced.

    Parent folders are created. If the block fails, the file is removed. Raises as write_errors.
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
    """Sync a file that another library wrote."""
    descriptor = os.open(path, os.O_RDWR | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder. Windows cannot do that and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_durable(source: Path, target: Path, *, replace: bool) -> None:
    """Give a synced file its final name on the same filesystem.

    Raises FileExistsError if the name is taken, unless replace.
    """
    if replace:
        os.replace(source, target)
    else:
        _move_to_free_name(source, target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists; leave what cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except OSError:
        return


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write into a folder."""
    return shutil.disk_usage(folder).free


def readable(size: float) -> str:
    """A size in bytes for people: 812 bytes, 3.1 MB, 12.0 GB (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _draft(path: Path) -> Path:
    """A hidden name beside the path that no other thread or process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _move_to_free_name(source: Path, target: Path) -> None:
    # Linking fails if the name is taken, atomically; renaming would silently replace a file created
    # in the meantime.
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():  # a filesystem without links (FAT, some network drives)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(source, target)
    else:
        os.unlink(source)
