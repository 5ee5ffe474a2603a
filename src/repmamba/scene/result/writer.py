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
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from repmamba import durable
from repmamba.errors import TargetError, TargetExists, UsageError, VerificationError
from repmamba.scene.result.assembly import Assembled, assemble, clear_drafts
from repmamba.scene.result.formats import FORMATS, check_fit, is_lossless
from repmamba.scene.result.job import JobIdentity, differences
from repmamba.scene.result.journal import (
    Journal,
    other_jobs,
    refuse_changed_job,
    storage_errors,
    work_folder,
)
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import TellPart
from repmamba.scene.result.receipt import (
    Receipt,
    check_cover,
    file_sha256,
    read_receipt,
    receipt_path,
)
from repmamba.scene.result.space import SLACK, bytes_to_begin, check_space
from repmamba.scene.result.tile_file import Layout, tile_pixels
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

# what GDAL would read as part of the result, added to its name
_GDAL_SIDECARS = (".aux.xml", ".ovr", ".msk")


def read_beside(target: Path, profile: OutputProfile) -> list[Path]:
    """The files that a reader takes for parts of the result: a writer puts them in place, replaces
    or removes them.
    """
    world = FORMATS[profile.format].world
    names = [target.with_name(target.name + suffix) for suffix in _GDAL_SIDECARS]
    return names if world is None else [*names, target.with_suffix(world)]


def finished_receipt(target: Path, job: JobIdentity) -> Receipt | None:
    """The receipt of a target that is the whole result of this very job; None where it is not.

    target: links followed. The receipt may still be where a run was stopped in its last step.
    """
    for path in (work_folder(target, job.id) / "receipt.json", receipt_path(target)):
        try:
            receipt = read_receipt(path)
            size = target.stat().st_size
        except (VerificationError, OSError):
            continue
        ours = receipt.job == job.as_json() and size == receipt.bytes
        if ours and file_sha256(target) == receipt.sha256:
            return receipt
    return None


def refuse_other_result(target: Path, job: JobIdentity) -> None:
    """Raise TargetExists for a target that is there, and say how it was made otherwise, where a
    receipt tells.
    """
    try:
        unlike = differences(dict(read_receipt(receipt_path(target)).job), job.as_json())
    except VerificationError:
        unlike = []
    made = f", made otherwise ({unlike[0]}{' and more' * (len(unlike) > 1)})" if unlike else ""
    raise TargetExists(
        f"{target} is there already{made}: choose another name, or replace it with overwrite=True."
    )


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
        self.target = _whole_path(target)
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
        resumed = self.folder.is_dir()
        # The lock is the last to go: a run killed just before that has left it alone.
        ours = resumed or self._lock.was_left or keep_finished
        if ours and not restart and (receipt := self._already_landed()) is not None:
            return receipt
        if not self._overwrite:
            self._refuse_existing(sidecars=not resumed)
        others = other_jobs(self.target, self.job.id)
        if others and not resumed and not restart:
            refuse_changed_job(self.target, self.job, others)
        for other in others:
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

    def finish(self, progress: TellPart | None = None) -> Receipt:
        """Put the whole result in place and tidy up: land, then clear."""
        receipt = self.land(progress)
        self.clear()
        return receipt

    def land(self, progress: TellPart | None = None) -> Receipt:
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def _already_landed(self) -> Receipt | None:
        """The receipt of a result that a run put in place before it was stopped in its last
        step.
        """
        return finished_receipt(self.target, self.job)

    def _refuse_existing(self, *, sidecars: bool) -> None:
        if self.target.exists():
            refuse_other_result(self.target, self.job)
        if sidecars:  # in a resumed run they may be ours, and are compared when they are replaced
            for path in read_beside(self.target, self.profile):
                if path.exists():
                    raise TargetExists(
                        f"{path} is of another file and would be read as part of the result; "
                        "remove it, or give "
                        "overwrite=True."
                    )

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
        for path in read_beside(self.target, self.profile):
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
            raise TargetExists(
                f"{path} exists already and says something else; remove it, or give overwrite=True."
            )
        durable.move_durable(source, path, replace=True)

    def _discard_sidecar(self, path: Path) -> None:
        if not self._overwrite:
            raise TargetExists(
                f"{path} would be read as part of the result; remove it, or give overwrite=True."
            )
        durable.remove(path)

    def _clear(self) -> None:
        kept = self.folder / "receipt.json"
        if kept.exists():
            durable.move_durable(kept, receipt_path(self.target), replace=True)
        durable.remove(self.folder)
        self._lock.release()


def _whole_path(target: Path) -> Path:
    """The target with its folder spelt out; a link is followed, so that it stays one. Raises
    TargetError.
    """
    path = Path(os.path.realpath(target))
    if path.is_dir():
        raise TargetError(f"{target} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise TargetError(
            f"There is no folder {path.parent} to write {path.name} into; make it first."
        )
    return path
