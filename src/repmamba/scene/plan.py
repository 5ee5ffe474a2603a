"""The plan of a scene: what will be read, computed and written, fixed before the first pixel.

What can change a pixel (tiles, range, bands, consistency) comes from the weights, the options and
the whole scene, never from the machine or the window that is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba import __version__
from repmamba.errors import OutsideTraining, warn
from repmamba.inference.bands import Groups
from repmamba.inference.confidence import Calibration
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.histogram import warn_of_fills
from repmamba.pixels.radiometry import Radiometry
from repmamba.scene.band_selection import BandSelection, describe_grey_bands, select_bands
from repmamba.scene.choice import WeightsChoice
from repmamba.scene.options import SceneOptions
from repmamba.scene.result.formats import format_of
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.profile import Wanted, fitting_profile
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.bbox import window_of_bbox
from repmamba.scene.source.describe import describe_alpha, describe_colours, describe_missing
from repmamba.scene.source.origin import source_identity
from repmamba.scene.source.raster import Raster, RasterFacts
from repmamba.scene.source.sampling import PixelProgress
from repmamba.scene.value_range import find_range
from repmamba.tiles.plan import TilePlan, plan_tiles

logger = logging.getLogger(__name__)

RADAR_SIGNS = (
    *("sentinel-1", "s1a_", "s1b_", "s1c_", "radarsat", "terrasar", "cosmo-skymed"),
    *("gamma0", "sigma0", "alos palsar"),
)


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """Everything that decides the result."""

    tiles: TilePlan
    radiometry: Radiometry  # of the bands in `places`
    places: tuple[int, ...]  # of the bands that the network upscales, in what the raster reads
    groups: Groups  # of those bands, counted from 0 among them
    consistent: bool
    nodata: float | None  # value of missing pixels and of no others; None: they keep their values
    band_nodata: tuple[float | None, ...]  # each band's own nodata, in the order of `places`
    alpha: int | None  # index of the alpha band, upscaled by nearest neighbour
    alpha_at: int  # its place in the output
    # alpha is 0 where a pixel is missing; added as the last band if the raster has none
    alpha_marks_missing: bool
    profile: OutputProfile
    decisions: Mapping[str, str]  # what was decided about the source, for the log
    job: JobIdentity
    choice: WeightsChoice | None = None  # of the weights, if the scene decided
    calibration: Calibration | None = None  # for expected errors, if they are wanted

    @property
    def scale(self) -> int:
        """The scale: 2, 3 or 4."""
        return self.tiles.scale


def plan_scene(
    raster: Raster,
    target: Path,
    upscaler: Upscaler,
    options: SceneOptions,
    how: ReadOptions | None = None,
    measuring: PixelProgress | None = None,
    choice: WeightsChoice | None = None,
) -> ScenePlan:
    """The plan for a raster, an output and an upscaler.

    Reads the scene, or a sample of a large one, if its value range has to be found.
    measuring: called with the pixels read for that and their total, where it takes long.
    choice: why this upscaler was chosen, if the scene decided.
    Raises UsageError and TargetError for what cannot be done, before any pixel is computed.
    """
    how = how or ReadOptions()
    chosen = format_of(target, options.format)
    bands = select_bands(
        raster.facts, options, is_picture=chosen.is_picture, network_bands=upscaler.bands
    )
    facts = bands.facts
    tiles = _tiles(raster, upscaler, options)
    wanted = Wanted(
        format=chosen.name,
        scale=upscaler.scale,
        window=tiles.window,
        places=bands.places,
        alpha_at=bands.alpha_at,
        weights=f"{upscaler.name} {upscaler.digest}",
        chosen="" if choice is None else choice.why,
        creation=options.creation or {},
    )
    # Blocks that cannot be read make pixels missing, also in a scene that declares no nodata.
    profile, way = fitting_profile(
        facts, wanted, facts.missing or ("mask" if how.fill_corrupt else "")
    )
    _warn_of_radar(facts)
    found = find_range(raster, bands, options.value_range, measuring)
    if how.nodata != "none":
        warn_of_fills(facts.name, found.fills)
    consistent = options.consistent
    if consistent is None:
        consistent = facts.has_place and not upscaler.denoises
    settings = _pixel_settings(bands, tiles, found.radiometry, upscaler, how) | {
        "consistent": consistent,
        "missing": way,
    }
    if choice is not None:
        settings["chosen"] = choice.as_json()
    plan = ScenePlan(
        tiles=tiles,
        radiometry=found.radiometry,
        places=bands.places,
        groups=bands.groups,
        consistent=consistent,
        nodata=profile.nodata,
        band_nodata=bands.band_nodata,
        alpha=facts.alpha,
        alpha_at=bands.alpha_at,
        alpha_marks_missing=way == "alpha",
        profile=profile,
        decisions={
            "missing": describe_missing(facts),
            "alpha": describe_alpha(facts),
            "colours": describe_colours(bands.together),
            "range": found.describe(),
        },
        job=JobIdentity(
            source_identity(facts.name, facts.read_from), upscaler.digest, settings, __version__
        ),
        choice=choice,
    )
    _log_decisions(plan, facts, upscaler, options)
    return plan


def _tiles(raster: Raster, upscaler: Upscaler, options: SceneOptions) -> TilePlan:
    """The tiles of the part that was asked for."""
    window = options.window
    if options.bbox is not None:
        window = window_of_bbox(raster.facts.name, raster.grid, options.bbox)
    return plan_tiles(
        raster.grid.height,
        raster.grid.width,
        upscaler.scale,
        tile=options.tile or upscaler.tile,
        halo=upscaler.halo if options.halo is None else options.halo,
        window=window,
    )


def _pixel_settings(
    bands: BandSelection,
    tiles: TilePlan,
    radiometry: Radiometry,
    upscaler: Upscaler,
    how: ReadOptions,
) -> dict[str, Any]:
    """What decides the pixels besides source and weights, as job and receipt keep it."""
    facts, window = bands.facts, tiles.window
    alpha = facts.alpha
    return {
        "scale": upscaler.scale,
        "tile": tiles.tile,
        "halo": tiles.halo,
        "window": [window.col, window.row, window.width, window.height],
        "bands": [facts.numbers[place] for place in bands.places],
        "together": bands.together,
        "low": list(radiometry.low),
        "high": list(radiometry.high),
        "nodata": list(bands.band_nodata),
        **({} if alpha is None else {"alpha": facts.numbers[alpha], "alpha_at": bands.alpha_at}),
        "fill_corrupt": how.fill_corrupt,
        "expand_palette": how.expand_palette,
        "device": upscaler.device.type,
        "precision": upscaler.precision,
        "scan": upscaler.backend,
        "ensemble": upscaler.ensemble,
        "compute_threads_of_a_tile": 1,
        "tiles_in_one_pass": 1,
    }


def _log_decisions(
    plan: ScenePlan, facts: RasterFacts, upscaler: Upscaler, options: SceneOptions
) -> None:
    """Log what a user should know of the plan."""
    alone = describe_grey_bands(plan.job.settings["together"], facts)
    if alone is not None:
        logger.info("%s: through the network: %s.", facts.name, alone)
    note = describe_consistency(plan.consistent, options.consistent, upscaler, facts.has_place)
    logger.info("%s: %s", facts.name, note)
    if facts.alpha is not None:
        logger.info("%s: alpha: %s.", facts.name, plan.decisions["alpha"])


def describe_consistency(
    consistent: bool, asked: bool | None, upscaler: Upscaler, has_place: bool
) -> str:
    """Whether the result will be made consistent with its input, and why."""
    if asked is not None:
        why = "as asked"
    elif has_place and upscaler.denoises:
        why = (
            f"because that would restore the noise that {upscaler.name} removes (consistent=True "
            "turns it on)"
        )
    elif has_place:
        why = "because the scene is georeferenced (consistent=False keeps the network's result)"
    else:
        why = "because the picture is not georeferenced (consistent=True turns it on)"
    return f"{'' if consistent else 'not '}made consistent with its input, {why}."


def _warn_of_radar(facts: RasterFacts) -> None:
    """Warn if the metadata say that a scene is radar, which the weights were not trained on."""
    words = " ".join([*facts.texts, *filter(None, facts.descriptions)]).lower()
    sign = next((sign for sign in RADAR_SIGNS if sign in words), None)
    if sign is not None:
        warn(
            f"{facts.name} looks like radar (its metadata contain '{sign}'). The weights were only "
            "trained on optical imagery: do not trust the details they add.",
            OutsideTraining,
        )
