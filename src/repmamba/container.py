"""CPU quota and memory limit of this process's container or scheduler job, on Linux.

Both versions of control groups are read. A limit may be set on the group of the process or on any
group above it, so all of them are read. Inside a container, its own group is usually the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

MOUNTED = Path("/sys/fs/cgroup")

OWN = Path("/proc/self/cgroup")  # lines of "number:controllers:/path"; no controllers for version 2


def cpu_quota() -> float | None:
    """The CPU quota in cores, 1.5 for one and a half; None without a limit."""
    return _least("cpu", _quota)


def memory_left() -> int | None:
    """Bytes that the control groups of the process may still allocate; None without a limit.

    Cached files count as used memory, but the kernel frees them when memory is needed: they do not
    count here.
    """
    left = _least("memory", _left)
    return None if left is None else max(0, int(left))


def _least(controller: str, read: Callable[[Path], float | None]) -> float | None:
    limits = map(read, _folders(controller))
    return min((limit for limit in limits if limit is not None), default=None)


def _folders(controller: str) -> Iterator[Path]:
    """The folders of all control groups, of both versions, that may limit this process."""
    try:
        lines = [line.split(":", 2) for line in OWN.read_text().splitlines()]
    except OSError:
        lines = []
    inside = {line[1]: line[2] for line in lines if len(line) == 3}
    own = {names: path for names, path in inside.items() if controller in names.split(",")}
    for folder, path in (
        (MOUNTED, inside.get("", "/")),
        (MOUNTED / controller, next(iter(own.values()), "/")),
        *((MOUNTED / names, path) for names, path in own.items() if names != controller),
    ):
        group = PurePosixPath(path)
        for part in (group, *group.parents):
            yield folder / str(part).lstrip("/")


def _quota(folder: Path) -> float | None:
    numbers = _words(folder / "cpu.max") or (
        _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    )
    try:
        quota, period = (float(number) for number in numbers)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _left(folder: Path) -> float | None:
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            (most,), (now,) = _words(folder / limit), _words(folder / used)
            left = int(most) - int(now)
        except ValueError:  # "max", or no such files
            continue
        kinds = _words(folder / "memory.stat")
        files = dict(zip(kinds[::2], kinds[1::2], strict=False)).get(dropped, "0")
        return left + (int(files) if files.isdecimal() else 0)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
