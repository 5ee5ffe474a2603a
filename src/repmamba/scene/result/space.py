"""Disk space: what a run may take at its worst moment. Runs are refused by it, and dry runs tell
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from repmamba.durable import free_bytes, readable
from repmamba.errors import NoSpace
from repmamba.scene.result.formats import FORMATS, raw_bytes
from repmamba.scene.result.output import OutputProfile

SLACK = 1 << 20  # bytes beside the pixels: headers, the receipt, the folder


def bytes_to_begin(profile: OutputProfile, folder: Path) -> int:
    """What a result may still take: the tiles that its working folder lacks, and all that is made
    of them.

    Nothing where it is whole, and all that a stopped run had left to do is to tidy up.
    """
    if (folder / "receipt.json").exists():
        return 0
    raw = raw_bytes(profile)
    kept = sum(path.stat().st_size for path in folder.glob("*.tile")) if folder.is_dir() else 0
    return max(0, raw - kept) + int(FORMATS[profile.format].room * raw) + SLACK


def check_space(needs: Iterable[tuple[Path, int]], what: str = "tiles and result") -> None:
    """Raise NoSpace where a filesystem has less room than all targets on it may take together.

    needs: targets, and bytes beside each.  what: is to be written, for the error's text.
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
                "take "
                f"{readable(needed)}. Make room, or choose another place."
            )
