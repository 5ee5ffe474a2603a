"""SceneWriter: keeps finished tiles beside the target, assembles and verifies them, and renames.

However a run ends, the target is absent, unchanged, or a complete result, and the same command
continues with the finished tiles. The guarantees are in durable.py (bytes on disk), journal.py
(finished tiles), lock.py (one process at a time), assembly.py (the file) and readback.py
(verification).
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
from repmamba.scene.result.formats import FORMATS, check_fit, creation_options, is_lossless
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.journal import Journal, other_jobs, storage_errors, work_folder
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import PartProgress
from repmamba.scene.result.receipt import Receipt, check_cover, file_sha256, receipt_path
from repmamba.scene.result.space import SLACK, bytes_to_begin, check_space
from repmamba.scene.result.target import check_place, refuse_sidecar, sidecars, standing_result
from repmamba.scene.result.tile_file import Layout, tile_pixels
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)


class SceneWriter:
    """A result in progress: put() tiles in any order from any thread, then finish() or abandon().

    tiles: hr windows that cover the profile's grid without overlap.
    overwrite: replace an existing target, in the last step.
    restart: discard what a stopped run of this job left, and ignore those of other jobs.
    keep_finished: accept a target that is already the complete result of this job.
    Raises TargetExists, TargetError, NoSpace, JobChanged, UsageError before anything is written.
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
        """Continue or create the working folder; the receipt if the result is complete."""
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
                "A stopped run of another job left %s; delete it if you do not need it.", other
            )
        if restart:
            durable.remove(self.folder)
        clear_drafts(self.folder)
        needed = bytes_to_begin(self.profile, self.folder)
        check_space([(self.target, needed)], "tiles and result")
        self._journal.open(self.job)
        total = len(self._journal.layout.tiles)
        if done := total - len(self._journal.remaining()):
            logger.info("%d of %d tiles are already finished.", done, total)
        return None

    @property
    def landed(self) -> bool:
        """Whether the complete result is in place."""
        return self._landed is not None

    def remaining(self) -> list[int]:
        """The indices of the tiles that are not on disk yet."""
        return [] if self._landed is not None else self._journal.remaining()

    def put(self, index: int, data: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Write a tile durably: it is on disk when this returns. Thread-safe.

        data: (count, h, w) in the profile's dtype.
        valid: (h, w), True where there is data; kept if the profile has a mask.
        Raises VerificationError if the tile was written before with other pixels, NoSpace,
        TargetError.
        """
        self._journal.record(index, tile_pixels(self._journal.layout, index, data, valid))

    def finish(self, progress: PartProgress | None = None) -> Receipt:
        """Put the complete result in place and clean up: land(), then clear()."""
        receipt = self.land(progress)
        self.clear()
        return receipt

    def land(self, progress: PartProgress | None = None) -> Receipt:
        """Assemble and verify the result and put it in place; may be called again.

        progress: called with the fraction done.
        Raises NoSpace, TargetError, TargetExists, VerificationError; the finished tiles then stay.
        """
        if self._landed is None:
            if missing := self.remaining():
                raise UsageError(
                    f"{len(missing)} tiles are not finished yet (the first is {missing[0]})."
                )
            with storage_errors(self.target):
                room = FORMATS[self.profile.format].room * self._journal.stored_bytes()
                check_space([(self.target, int(room) + SLACK)], "the result")
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
        """Move the receipt beside the result and remove the working folder."""
        kept = self.folder / "receipt.json"
        with storage_errors(self.target):
            if kept.exists():
                durable.move_durable(kept, receipt_path(self.target), replace=True)
            durable.remove(self.folder)
            self._lock.release()

    def abandon(self) -> None:
        """Release the target and leave finished tiles for a later run; may be called again.

        Without finished tiles, the working folder is removed, so that it does not block another
        job.
        """
        if self._lock.is_held and self._landed is None and self._journal.is_empty():
            durable.remove(self.folder)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.abandon()

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
            creation=creation_options(self.profile),
        )

    def _land(self, whole: Assembled, receipt: Receipt) -> None:
        """The last steps, in an order in which a stop at any point can be continued."""
        durable.write_durable(self.folder / "receipt.json", receipt.as_text().encode())
        new = {path.name: path for path in whole.sidecars}
        for path in sidecars(self.target, self.profile):
            if path.name in new:
                self._place_sidecar(new.pop(path.name), path)
            elif path.exists():
                if not self._overwrite:
                    refuse_sidecar(path)
                durable.remove(path)
        for name, path in new.items():
            self._place_sidecar(path, self.target.with_name(name))
        try:
            durable.move_durable(whole.path, self.target, replace=self._overwrite)
        except FileExistsError as taken:
            raise TargetExists(
                f"{self.target} appeared in the meantime. All tiles are kept: move it away, or "
                "give overwrite=True."
            ) from taken

    def _place_sidecar(self, source: Path, path: Path) -> None:
        if not self._overwrite and path.exists() and path.read_bytes() != source.read_bytes():
            refuse_sidecar(path)
        durable.move_durable(source, path, replace=True)
