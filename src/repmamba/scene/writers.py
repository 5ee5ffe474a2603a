"""SceneWriters: a result and its confidence raster, if one is wanted, written together.

The order of the last steps leaves each of them absent or complete, and the same command finishes
both.
"""

from __future__ import annotations

import os
from pathlib import Path

from repmamba.scene.confidence import ConfidencePlan
from repmamba.scene.options import RunOptions
from repmamba.scene.plan import ScenePlan
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.journal import work_folder
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import PartProgress
from repmamba.scene.result.receipt import Receipt
from repmamba.scene.result.space import bytes_to_begin, check_space
from repmamba.scene.result.target import standing_result
from repmamba.scene.result.writer import SceneWriter
from repmamba.scene.tile_step import TileResult


def files_written(
    target: Path, plan: ScenePlan, confidence: ConfidencePlan | None
) -> list[tuple[Path, OutputProfile, JobIdentity]]:
    """The files of a plan, links resolved: the result, then its confidence raster if wanted."""
    files = [(Path(os.path.realpath(target)), plan.profile, plan.job)]
    if confidence is not None:
        files.append(
            (Path(os.path.realpath(confidence.target)), confidence.profile, confidence.job)
        )
    return files


def disk_needs(
    target: Path, plan: ScenePlan, confidence: ConfidencePlan | None
) -> list[tuple[Path, int]]:
    """The files of a plan, and the bytes of disk space that each may still need."""
    return [
        (file, bytes_to_begin(profile, work_folder(file, job.id)))
        for file, profile, job in files_written(target, plan, confidence)
    ]


def standing_results(
    target: Path, plan: ScenePlan, confidence: ConfidencePlan | None, run: RunOptions
) -> list[Receipt | None]:
    """The receipt of each file that is already in place, None for the others.

    Raises TargetExists and JobChanged for files that are in the way, as the writers would.
    """
    return [
        standing_result(
            file,
            profile,
            job,
            lock_was_left=TargetLock(file).path.exists(),
            overwrite=run.overwrite,
            restart=run.restart,
            keep_finished=_keeps_finished(place, run),
        )
        for place, (file, profile, job) in enumerate(files_written(target, plan, confidence))
    ]


def _keeps_finished(place: int, run: RunOptions) -> bool:
    """Whether a finished file is kept: the confidence raster, the second file, always is."""
    return run.keep_finished or place > 0


class SceneWriters:
    """The writers of a result and of its confidence raster, if one is wanted."""

    def __init__(
        self, target: Path, plan: ScenePlan, confidence: ConfidencePlan | None, run: RunOptions
    ) -> None:
        windows = [tile.write for tile in plan.tiles]
        if confidence is not None:  # each writer only checks its own space
            check_space(disk_needs(target, plan, confidence))
        self._writers: list[SceneWriter] = []
        try:
            for file, profile, job in files_written(target, plan, confidence):
                self._writers.append(
                    SceneWriter(
                        file,
                        profile,
                        job,
                        windows,
                        overwrite=run.overwrite,
                        restart=run.restart,
                        keep_finished=_keeps_finished(len(self._writers), run),
                    )
                )
        except BaseException:
            self.abandon()
            raise
        self._lacking = [set(writer.remaining()) for writer in self._writers]

    @property
    def folder(self) -> Path:
        """The working folder of the result, which is removed last."""
        return self._writers[0].folder

    @property
    def landed(self) -> bool:
        """Whether all files are in place."""
        return all(writer.landed for writer in self._writers)

    def remaining(self) -> list[int]:
        """The indices of the tiles that any of the files lacks."""
        return sorted(set().union(*self._lacking))

    def put(self, index: int, tile: TileResult) -> None:
        """Write a tile durably to the files that lack it. See SceneWriter.put."""
        planes = (
            [tile.numbers] if tile.expected_error is None else [tile.numbers, tile.expected_error]
        )
        for writer, lacking, data in zip(self._writers, self._lacking, planes, strict=True):
            if index in lacking:
                writer.put(index, data, tile.valid)

    def finish(self, progress: PartProgress | None = None) -> None:
        """Put all files in place, then clean up; the folder of the result is removed last."""
        for place, writer in enumerate(self._writers):
            writer.land(None if progress is None else _part(progress, place, len(self._writers)))
        for writer in reversed(self._writers):
            writer.clear()

    def abandon(self) -> None:
        """Release the targets and leave finished tiles for a later run; may be called again."""
        for writer in self._writers:
            writer.abandon()


def _part(progress: PartProgress, place: int, parts: int) -> PartProgress:
    """A callback for the fraction of one of `parts` equal parts that reports that of the whole."""
    return lambda done: progress((place + done) / parts)
