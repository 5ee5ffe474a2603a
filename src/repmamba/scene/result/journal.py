"""The working folder of a job: it holds the finished tiles, so that a stopped run can continue.

The folder lies beside the target and is named after the hash of the job. Each finished tile is a
file in it. lock.py decides which process may write there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from repmamba import durable
from repmamba.errors import JobChanged, TargetError, VerificationError
from repmamba.scene.result.job import JobIdentity, Json, canonical_json, differences
from repmamba.scene.result.tile_file import (
    Layout,
    TilePixels,
    decode_tile,
    encode_tile,
    read_header,
)

logger = logging.getLogger(__name__)

FORMAT = 1  # version of the working folder; a folder of another version belongs to another job
SUFFIX = ".repmamba"
LONGEST_NAME = 255  # bytes, on common filesystems


class Journal:
    """The finished tiles of a job. Thread-safe."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._guard = threading.Lock()
        self._done: set[int] = set()

    def open(self, job: JobIdentity) -> None:
        """Create the folder, or continue with one of the same job. Raises JobChanged."""
        with storage_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            durable.sync_folder(self.folder.parent)
            for draft in self.folder.glob("*.part"):
                durable.remove(draft)
            note = self.folder / "job.json"
            now = {"format": FORMAT, "job": job.as_json(), "layout": self.layout.as_json()}
            before = read_note(note)
            if before is None:
                durable.write_durable(note, (canonical_json(now) + "\n").encode())
            elif unlike := differences(before, now):
                raise JobChanged(_changed(self.folder, unlike))
        self._done = {index for index in range(len(self.layout.tiles)) if self._is_done(index)}

    def remaining(self) -> list[int]:
        """The indices of the tiles that are not on disk yet, in order."""
        with self._guard:
            return [index for index in range(len(self.layout.tiles)) if index not in self._done]

    def is_empty(self) -> bool:
        """Whether the folder has no finished tile, counting files that were never registered."""
        return not any(self.folder.glob("*.tile"))

    def stored_bytes(self) -> int:
        """Size of the finished tiles on disk."""
        return sum(self.path(index).stat().st_size for index in sorted(self._done))

    def path(self, index: int) -> Path:
        """The file of a finished tile."""
        return self.folder / f"{index:06d}.tile"

    def record(self, index: int, pixels: TilePixels) -> None:
        """Write a tile durably. Raises VerificationError if it differs from an earlier one."""
        header, payload = encode_tile(self.layout, index, pixels)
        path = self.path(index)
        draft = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        with storage_errors(path):
            try:
                durable.write_synced(draft, header, payload)
                with self._guard:
                    if index in self._done:
                        self._compare(path, header + payload)
                        durable.remove(draft)
                    else:
                        os.replace(draft, path)
            except BaseException:
                durable.remove(draft)
                raise
            durable.sync_folder(self.folder)
        with self._guard:
            self._done.add(index)

    def read(self, index: int) -> TilePixels:
        """A finished tile, verified. A damaged tile is removed, and the next run recomputes it."""
        try:
            return decode_tile(self.path(index), self.layout, index)
        except VerificationError as damage:
            durable.remove(self.path(index))
            with self._guard:
                self._done.discard(index)
            raise VerificationError(
                f"{damage} The tile was removed: run the same command again to recompute it."
            ) from damage

    def _compare(self, path: Path, content: bytes) -> None:
        if path.read_bytes() != content:
            raise VerificationError(
                f"{path.name} was computed twice with different results, which must not happen. "
                "The first one was kept. Please report this."
            )

    def _is_done(self, index: int) -> bool:
        path = self.path(index)
        if not path.is_file():
            return False
        try:
            read_header(path, self.layout, index)
        except VerificationError as damage:
            logger.warning("%s It will be recomputed.", damage)
            durable.remove(path)
            return False
        return True


def storage_errors(path: Path) -> AbstractContextManager[None]:
    """Turn system errors while files of a run are written into NoSpace or TargetError."""
    return durable.write_errors(
        path, "Finished tiles are kept: the same command continues once this is fixed."
    )


def work_folder(target: Path, job_id: str) -> Path:
    """The working folder of a job: hidden, beside the target, on the same filesystem."""
    return target.with_name(f".{target.name}.{job_id[:16]}{SUFFIX}")


def check_name(target: Path) -> None:
    """Raise TargetError if the name is not valid or too long for the working folder."""
    try:
        path = Path(os.path.realpath(target))
        longest = len(work_folder(path, "0" * 16).name.encode())
        os.fspath(path).encode()
    except ValueError as error:
        raise TargetError(
            f"{target} is not valid UTF-8, which GDAL requires ({error}): choose another name."
        ) from error
    if longest > LONGEST_NAME:
        length = len(path.name.encode())
        raise TargetError(
            f"The output name {path.name} has {length} bytes; at most "
            f"{LONGEST_NAME - longest + length} leave room for the name of its working folder: "
            "choose a shorter one."
        )


def other_jobs(target: Path, job_id: str) -> list[Path]:
    """Working folders that runs of other jobs left at this target, sorted by name."""
    name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(SUFFIX))
    folders = [
        path for path in target.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(folder for folder in folders if folder != work_folder(target, job_id))


def read_note(path: Path) -> Json | None:
    """The content of a JSON file in a working folder; None if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def refuse_changed_job(target: Path, job: JobIdentity, others: Sequence[Path]) -> None:
    """Raise JobChanged: a stopped run at this target had other input or settings."""
    latest = max(others, key=lambda folder: folder.stat().st_mtime)
    note = read_note(latest / "job.json") or {}
    raise JobChanged(_changed(latest, differences(note.get("job", {}), job.as_json())))


def _changed(folder: Path, unlike: Sequence[str]) -> str:
    return (
        f"A stopped run left {folder}, and since then this changed: {'; '.join(unlike)}. "
        "Repeat the earlier command to continue it, or start again with restart=True (the folder "
        "stays and may be deleted)."
    )
