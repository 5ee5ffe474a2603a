"""SceneWriter: finished tiles beside the target, assembled, read back, renamed. Never half a
result.

Whatever ends a run, the target's name is absent, or leads to the file that was there before, or to
a whole result; and the same command continues with the tiles that are done. Where each promise is
kept: durable.py (bytes on the disk), journal.py (what is done), lock.py (one process at a time),
assembly.py (the file), readback.py (the second reader).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from repmamba import durable
from repmamba.errors import TargetExists, UsageError
from repmamba.scene.result.assembly import Assembled, assemble, clear_drafts
from repmamba.scene.result.formats import FORMATS, check_fit, is_lossless
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.journal import (
    Journal,
    other_jobs,
    storage_errors,
    work_folder,
)
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import PartProgress
from repmamba.scene.result.receipt import (
    Receipt,
    check_cover,
    file_sha256,
    receipt_path,
)
from repmamba.scene.result.space import SLACK, bytes_to_begin, check_space
from repmamba.scene.result.target import (
    check_place,
    refuse_sidecar,
    sidecars,
    standing_result,
)
from repmamba.scene.result.tile_file import Layout, tile_pixels
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)


class SceneWriter:
    """A result in the making. put() tiles in any order from any threads, then finish(), or
    abandon() to continue later.

    tiles: hr windows, disjoint, covering the profile's grid. overwrite: an existing target is
    replaced, in the last step. restart: what a stopped run of this job left is not continued, and
    one of another job is no obstacle. keep_finished: a target that is the whole result of this very
    job is not in the way, and nothing is left to do. Raises TargetExists, TargetError, NoSpace,
    JobChanged, UsageError; nothing at the target was touched then.
    """

    def __init__(
        self,
        target: Path,
        profile: OutputProfile,
        job: JobIdentity,
        tiles: Sequence[Window],
        *,
        overwrite: bool = False,
        restart: bool = False,
        keep_finished: bool = False,
    ) -> None:
        check_fit(profile)
        check_cover(tiles, profile.grid.width, profile.grid.height)
        check_place(target)
        self.target = Path(os.path.realpath(target))
        self.profile, self.job, self._overwrite = profile, job, overwrite
        self.folder = work_folder(self.target, job.id)
        layout = Layout(job.id, tuple(tiles), profile.count, profile.dtype, profile.mask)
        self._journal = Journal(self.folder, layout)
        self._lock = TargetLock(self.target)
        with storage_errors(self.target):
            self._lock.acquire()
        try:
            self._landed = self._open(restart, keep_finished)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, restart: bool, keep_finished: bool) -> Receipt | None:
        """Take up or begin the working folder; the receipt if a run was stopped after its result
        was in place.
        """
        landed = standing_result(
            self.target,
            self.profile,
            self.job,
            lock_was_left=self._lock.was_left,
            overwrite=self._overwrite,
            restart=restart,
            keep_finished=keep_finished,
        )
        if landed is not None:
            return landed
        for other in other_jobs(self.target, self.job.id):
            logger.warning(
                "%s is left from a stopped run of another job; delete it if it is not needed.",
                other,
            )
        if restart:
            durable.remove(self.folder)
        clear_drafts(self.folder)
        self._check_space(bytes_to_begin(self.profile, self.folder), "tiles and result")
        self._journal.open(self.job)
        done = len(self._journal.layout.tiles) - len(self._journal.remaining())
        if done:
            logger.info("%d of %d tiles are done already.", done, len(self._journal.layout.tiles))
        return None

    @property
    def landed(self) -> bool:
        """Whether the whole result is in place."""
        return self._landed is not None

    def remaining(self) -> list[int]:
        """The indices of the tiles that are not on the disk yet."""
        return [] if self._landed is not None else self._journal.remaining()

    def put(self, index: int, data: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Make a tile durable: on the disk when this returns. Thread-safe.

        data: (count, h, w) of the profile's dtype. valid: (h, w), True where there is data, kept
        where the profile has a mask. A second arrival must bring the same pixels: VerificationError
        if not. Raises NoSpace, TargetError.
        """
        self._journal.record(index, tile_pixels(self._journal.layout, index, data, valid))

    def finish(self, progress: PartProgress | None = None) -> Receipt:
        """Put the whole result in place and tidy up: land, then clear."""
        receipt = self.land(progress)
        self.clear()
        return receipt

    def land(self, progress: PartProgress | None = None) -> Receipt:
        """Assemble, check every pixel, put the result in place; harmless twice.

        progress is called with the part done, 0 to 1. Raises NoSpace, TargetError, TargetExists,
        VerificationError; the finished tiles then stay.
        """
        if self._landed is None:
            if missing := self.remaining():
                raise UsageError(
                    f"{len(missing)} of the tiles are not done yet (the first is {missing[0]})."
                )
            with storage_errors(self.target):
                self._check_space_to_assemble()
                whole = assemble(
                    self.folder,
                    self.target.name,
                    self.profile,
                    self._journal,
                    progress or (lambda done: None),
                )
                receipt = self._receipt(whole)
                self._land(whole, receipt)
            self._landed = receipt
        return self._landed

    def clear(self) -> None:
        """Put the receipt of the landed result beside it, remove the working folder. Raises
        NoSpace, TargetError.
        """
        with storage_errors(self.target):
            self._clear()

    def abandon(self) -> None:
        """Leave everything for a later run of the same job, and let others work on the target.
        Harmless twice.

        Where no tile is done there is nothing to leave, and nothing that would keep another job
        from beginning.
        """
        if self._lock.is_held and self._landed is None and self._journal.is_empty():
            durable.remove(self.folder)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.abandon()

    def _check_space_to_assemble(self) -> None:
        stored = self._journal.stored_bytes()
        self._check_space(int(FORMATS[self.profile.format].room * stored) + SLACK, "the result")

    def _check_space(self, needed: int, what: str) -> None:
        check_space([(self.target, needed)], what)

    def _receipt(self, whole: Assembled) -> Receipt:
        return Receipt(
            file=self.target.name,
            format=self.profile.format,
            bytes=whole.path.stat().st_size,
            sha256=file_sha256(whole.path),
            count=self.profile.count,
            dtype=self.profile.dtype,
            mask=self.profile.mask,
            lossless=is_lossless(self.profile),
            levels=whole.levels,
            job=self.job.as_json(),
            sidecars={path.name: file_sha256(path) for path in whole.sidecars},
        )

    def _land(self, whole: Assembled, receipt: Receipt) -> None:
        """The last steps, in an order in which a stop between any two leaves nothing half and can
        be continued.
        """
        durable.write_durable(self.folder / "receipt.json", receipt.as_text().encode())
        new = {path.name: path for path in whole.sidecars}
        for path in sidecars(self.target, self.profile):
            if path.name in new:
                self._place_sidecar(new.pop(path.name), path)
            elif path.exists():
                self._discard_sidecar(path)
        for name, path in new.items():
            self._place_sidecar(path, self.target.with_name(name))
        try:
            durable.move_durable(whole.path, self.target, replace=self._overwrite)
        except FileExistsError as taken:
            raise TargetExists(
                f"{self.target} appeared meanwhile. All tiles are kept: move it away, or give "
                "overwrite=True."
            ) from taken

    def _place_sidecar(self, source: Path, path: Path) -> None:
        if not self._overwrite and path.exists() and path.read_bytes() != source.read_bytes():
            refuse_sidecar(path)
        durable.move_durable(source, path, replace=True)

    def _discard_sidecar(self, path: Path) -> None:
        if not self._overwrite:
            refuse_sidecar(path)
        durable.remove(path)

    def _clear(self) -> None:
        kept = self.folder / "receipt.json"
        if kept.exists():
            durable.move_durable(kept, receipt_path(self.target), replace=True)
        durable.remove(self.folder)
        self._lock.release()
