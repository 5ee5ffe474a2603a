"""The confidence raster: the expected error of each pixel, on the grid of the result.

inference/confidence.py computes the errors, writers.py writes the file; this module decides what it
declares.
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

# precision of calibrations; with another one, rounding looks like uncertainty
PRECISION = "float32"


@dataclass(frozen=True, slots=True)
class ConfidencePlan:
    """Everything that decides the confidence raster, besides the plan of the result."""

    target: Path
    profile: OutputProfile  # one band per group of bands that go through the network together
    job: JobIdentity


def with_confidence(
    plan: ScenePlan, result: Path, target: Path, upscaler: Upscaler
) -> tuple[ScenePlan, ConfidencePlan]:
    """The plan of a result with expected errors, and the plan of their raster at target.

    Raises UsageError if they were never measured for these weights, TargetError if target cannot
    hold them.
    """
    calibration = upscaler.calibration
    if calibration is None:
        raise UsageError(
            f"confidence= needs expected errors, which were not measured for {upscaler.name}: "
            "benchmarks/how_far_can_a_result_be_trusted.py measures them."
        )
    if upscaler.precision != PRECISION:
        raise UsageError(
            f"confidence= is only available with precision={PRECISION}, not {upscaler.precision}."
        )
    settings = {**plan.job.settings, "confidence": digest128(calibration.as_text().encode())}
    profile = confidence_profile(format_of(target, None).name, result, plan, calibration)
    check_fit(profile)
    job = JobIdentity(plan.job.source, plan.job.weights, settings, plan.job.version)
    return replace(plan, calibration=calibration), ConfidencePlan(target, profile, job)


def confidence_profile(
    format_name: str, result: Path, plan: ScenePlan, calibration: Calibration
) -> OutputProfile:
    """What the raster declares: each band names the bands of the result that it describes."""
    tags = plan.profile.tags.get("", {})
    kept = {
        name: tags[name]
        for name in tags
        if name == "AREA_OR_POINT" or name.startswith("SUPER_RESOL")
    }
    described = {
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
        tags={"": kept | described},
        gcps=plan.profile.gcps,
        rpcs=plan.profile.rpcs,
    )


def _described(group: Sequence[int]) -> str:
    numbers = ", ".join(str(band + 1) for band in group)
    return f"expected absolute error of band{'s' * (len(group) > 1)} {numbers}"
