"""The second raster: how far each pixel of a result can be trusted, on the result's grid, written
with it as one.

Its numbers are errors to expect, in the result's own numbers; what they are worth is
inference/confidence.py's. Here is what the file says of itself; writer.py writes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repmamba.errors import UsageError
from repmamba.inference.confidence import Calibration
from repmamba.inference.upscaler import Upscaler
from repmamba.scene.plan import ScenePlan
from repmamba.scene.result.formats import check_fit, format_of
from repmamba.scene.result.job import JobIdentity, digest128
from repmamba.scene.result.output import OutputProfile

# of the network by which calibrations are measured; in others, rounding looks like doubt
PRECISION = "float32"


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
            f"How far results of {upscaler.name} can be trusted has not been measured, so "
            "confidence= has nothing to "
            "say; benchmarks/how_far_can_a_result_be_trusted.py measures it."
        )
    if upscaler.precision != PRECISION:
        raise UsageError(
            f"confidence= was measured in {PRECISION}, and says nothing of {upscaler.precision}."
        )
    settings = {**plan.job.settings, "confidence": digest128(calibration.as_text().encode())}
    profile = confidence_profile(format_of(target, None).name, result, plan, calibration)
    check_fit(profile)
    job = JobIdentity(plan.job.source, plan.job.weights, settings, plan.job.version)
    return replace(plan, calibration=calibration), ConfidencePlan(target, profile, job)


def confidence_profile(
    format_name: str, result: Path, plan: ScenePlan, calibration: Calibration
) -> OutputProfile:
    """What the raster says of itself: each band names the bands of the result that it is about."""
    told = plan.profile.tags.get("", {})
    kept = {
        name: told[name]
        for name in told
        if name == "AREA_OR_POINT" or name.startswith("SUPER_RESOL")
    }
    said = {
        "CONFIDENCE_OF": result.name,
        "CONFIDENCE_IS": "the absolute error to expect of each pixel, mean over the bands named, "
        "in their own numbers",
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
