"""Disk space: the most that a run may need. Runs check it, and dry runs report it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from repmamba.durable import free_bytes, readable
from repmamba.errors import NoSpace
from repmamba.scene.result.formats import FORMATS, raw_bytes
from repmamba.scene.result.output import OutputProfile

SLACK = 1 << 20  # bytes besides the pixels: headers, receipt, folder


def bytes_to_begin(profile: OutputProfile, folder: Path) -> int:
    """Bytes that a result may still need: the missing tiles and everything made from the tiles.

    0 if the result is complete and only cleaning up is left.
    """
    if (folder / "receipt.json").exists():
        return 0
    raw = raw_bytes(profile)
    kept = sum(path.stat().st_size for path in folder.glob("*.tile")) if folder.is_dir() else 0
    return max(0, raw - kept) + int(FORMATS[profile.format].room * raw) + SLACK


def check_space(needs: Iterable[tuple[Path, int]], what: str = "tiles and result") -> None:
    """Raise NoSpace if a filesystem has less space than all targets on it need together.

    needs: targets, and the bytes of each.
    what: is to be written, for the error message.
    """
    by_filesystem: dict[int, list[tuple[Path, int]]] = {}
    for target, needed in needs:
        by_filesystem.setdefault(target.parent.stat().st_dev, []).append((target, needed))
    for together in by_filesystem.values():
        free, needed = free_bytes(together[0][0].parent), sum(needed for _, needed in together)
        if free < needed:
            names = " and ".join(target.name for target, _ in together)
            raise NoSpace(
                f"{together[0][0].parent} has {readable(free)} free, and {what} of {names} may "
                f"need {readable(needed)}: free space, or choose another folder."
            )
