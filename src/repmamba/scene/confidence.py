"""The second raster: how far each pixel of a result can be trusted, on the result's grid, written with it as one.

Its numbers are errors to expect, in the result's own numbers; what they are worth is inference/confidence.py's. Here is
what the file says of itself, and in which order two files are put in place, so that a stop at any moment leaves each
absent or whole, and the same command ends with both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repmamba.errors import UsageError
from repmamba.inference.confidence import Calibration
from repmamba.inference.upscaler import Upscaler
from repmamba.scene.formats import check_fit, format_of
from repmamba.scene.job import JobIdentity, digest
from repmamba.scene.journal import work_folder
from repmamba.scene.output import OutputProfile
from repmamba.scene.plan import ScenePlan
from repmamba.scene.space import bytes_to_begin, check_space
from repmamba.scene.tile_step import TileResult
from repmamba.scene.writer import SceneWriter

PRECISION = "float32"  # of the network by which calibrations are measured; in others, rounding looks like doubt


@dataclass(frozen=True, slots=True)
class ConfidencePlan:
    """Everything that decides the second raster, beside the plan of the first."""

    target: Path
    profile: OutputProfile  # one band for each group of bands that go through the network together
    job: JobIdentity


def with_confidence(
    plan: ScenePlan, result: Path, target: Path, upscaler: Upscaler
) -> tuple[ScenePlan, ConfidencePlan]:
    """The plan of a result with errors to expect, and that of the raster at target that holds them.

    Raises UsageError where nobody has measured them, TargetError where target cannot hold them.
    """
    calibration = upscaler.calibration
    if calibration is None:
        raise UsageError(
            f"How far results of {upscaler.name} can be trusted has not been measured, so --confidence has nothing to "
            "say; benchmarks/how_far_can_a_result_be_trusted.py measures it."
        )
    if upscaler.precision != PRECISION:
        raise UsageError(f"--confidence was measured in {PRECISION}, and says nothing of {upscaler.precision}.")
    settings = {**plan.job.settings, "confidence": digest(calibration.as_text().encode())}
    profile = confidence_profile(format_of(target, None).name, result, plan, calibration)
    check_fit(profile)
    job = JobIdentity(plan.job.source, plan.job.weights, settings, plan.job.version)
    return replace(plan, calibration=calibration), ConfidencePlan(target, profile, job)


def confidence_profile(format_name: str, result: Path, plan: ScenePlan, calibration: Calibration) -> OutputProfile:
    """What the raster says of itself: each band names the bands of the result that it is about."""
    told = plan.profile.tags.get("", {})
    kept = {name: told[name] for name in told if name == "AREA_OR_POINT" or name.startswith("SUPER_RESOL")}
    said = {
        "CONFIDENCE_OF": result.name,
        "CONFIDENCE_IS": "the absolute error to expect of each pixel, mean over the bands named, in their own numbers",
        "CONFIDENCE_MEASURED_ON": calibration.measured_on,
    }
    firsts = [group[0] for group in plan.groups]
    return OutputProfile(
        format=format_name,
        grid=plan.profile.grid,
        count=len(plan.groups),
        dtype="float32",
        nodata=math.nan,
        colorinterp=("gray", *("undefined",) * (len(plan.groups) - 1)),
        descriptions=tuple(_described(group) for group in plan.groups),
        scales=tuple(plan.profile.scales[band] for band in firsts),
        units=tuple(plan.profile.units[band] for band in firsts),
        tags={"": kept | said},
        gcps=plan.profile.gcps,
        rpcs=plan.profile.rpcs,
    )


def _described(group: Sequence[int]) -> str:
    numbers = ", ".join(str(band + 1) for band in group)
    return f"expected absolute error of band{'s' * (len(group) > 1)} {numbers}"


def files_written(
    target: Path, plan: ScenePlan, confidence: ConfidencePlan | None
) -> list[tuple[Path, OutputProfile, JobIdentity]]:
    """What a plan puts in place, links followed: the result, then its confidence where one is wanted."""
    files = [(Path(os.path.realpath(target)), plan.profile, plan.job)]
    if confidence is not None:
        files.append((Path(os.path.realpath(confidence.target)), confidence.profile, confidence.job))
    return files


def disk_needs(target: Path, plan: ScenePlan, confidence: ConfidencePlan | None) -> list[tuple[Path, int]]:
    """The files that a plan puts in place, and the bytes that each may still take on the disk."""
    return [
        (file, bytes_to_begin(profile, work_folder(file, job.id)))
        for file, profile, job in files_written(target, plan, confidence)
    ]


class SceneWriters:
    """The writer of a result, and that of its confidence where one is wanted, as one."""

    def __init__(
        self,
        target: Path,
        plan: ScenePlan,
        confidence: ConfidencePlan | None,
        *,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        windows = [tile.write for tile in plan.tiles]
        if confidence is not None:  # each writer looks for its own room alone
            check_space(disk_needs(target, plan, confidence))
        self._writers = [SceneWriter(target, plan.profile, plan.job, windows, overwrite=overwrite, restart=restart)]
        if confidence is not None:
            try:
                self._writers.append(
                    SceneWriter(
                        confidence.target,
                        confidence.profile,
                        confidence.job,
                        windows,
                        overwrite=overwrite,
                        restart=restart,
                        keep_finished=True,
                    )
                )
            except BaseException:
                self.abandon()
                raise
        self._lacking = [set(writer.remaining()) for writer in self._writers]

    @property
    def folder(self) -> Path:
        """The working folder of the result, which is the last to go."""
        return self._writers[0].folder

    def remaining(self) -> list[int]:
        """The indices of the tiles that either lacked when it was opened."""
        return sorted(set().union(*self._lacking))

    def put(self, index: int, tile: TileResult) -> None:
        """Make a tile durable wherever it was lacking. See SceneWriter.put."""
        planes = [tile.numbers] if tile.expected_error is None else [tile.numbers, tile.expected_error]
        for writer, lacking, data in zip(self._writers, self._lacking, planes, strict=True):
            if index in lacking:
                writer.put(index, data, tile.valid)

    def finish(self, progress: Callable[[float], None] | None = None) -> None:
        """Put both in place, then tidy up, the result's folder last: while it is there, the same call ends the job."""
        for place, writer in enumerate(self._writers):
            writer.land(None if progress is None else _part(progress, place, len(self._writers)))
        for writer in reversed(self._writers):
            writer.clear()

    def abandon(self) -> None:
        """Leave everything for a later run of the same job. Harmless twice."""
        for writer in self._writers:
            writer.abandon()


def _part(progress: Callable[[float], None], place: int, parts: int) -> Callable[[float], None]:
    """The progress of one of some equal parts, told as that of the whole."""
    return lambda done: progress((place + done) / parts)
