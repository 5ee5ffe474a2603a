"""What the output file declares: bands, tags, georeferencing, and how it marks missing pixels.

Everything follows from the source: what depends on resolution is adapted, the rest is copied, and a
few tags describe the processing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repmamba import __version__
from repmamba.scene.result.creation_trial import check_options
from repmamba.scene.result.formats import FORMATS, check_fit
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.source.grid import refined_gcps, refined_geolocation, refined_rpcs
from repmamba.scene.source.raster import RasterFacts
from repmamba.tiles.window import Window

# other ways to mark missing pixels, where a format lacks one
OTHER_WAYS = {"nodata": ("mask", "alpha"), "mask": ("alpha",)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a profile is made for, besides the source."""

    format: str  # a name of scene.result.formats.FORMATS
    scale: int
    window: Window  # part of the source that is upscaled, lr
    places: tuple[int, ...]  # of the upscaled bands, in what the raster reads
    alpha_at: int  # place of the alpha band among the bands of the output, if any
    weights: str  # name and digest
    chosen: str = ""  # why these weights were chosen, if the scene decided
    creation: Mapping[str, str] = field(default_factory=dict)  # creation options from the user


def fitting_profile(facts: RasterFacts, wanted: Wanted, missing: str) -> tuple[OutputProfile, str]:
    """The output's profile, and how it marks missing pixels: as the source does, if the format can.

    missing: "nodata", "mask", "alpha" or "".
    Raises TargetError, naming the formats that can hold the result, and UsageError for its creation
    options.
    """
    free = [way for way in OTHER_WAYS.get(missing, ()) if way != "alpha" or facts.alpha is None]
    ways = [(missing, facts.nodata_given), (missing, False), *((way, False) for way in free)]
    for way, kept in ways:
        profile = profile_of(facts, wanted, way, with_nodata=kept)
        if FORMATS[wanted.format].holds(profile) is None:
            break
    else:
        profile, way = profile_of(facts, wanted, missing), missing
    check_fit(profile)
    check_options(profile)
    return profile, way


def profile_of(
    facts: RasterFacts, wanted: Wanted, missing: str, *, with_nodata: bool = False
) -> OutputProfile:
    """The output's profile, with missing pixels marked by "nodata", "mask", "alpha" or "" for not.

    with_nodata: also declare the raster's nodata beside a mask or alpha.
    """
    scale, window = wanted.scale, wanted.window
    copied = list(wanted.places)
    if facts.alpha is not None:
        copied.insert(wanted.alpha_at, facts.alpha)
    made = missing == "alpha" and facts.alpha is None
    points, points_crs = facts.gcps or ((), None)

    def each(values: Sequence[Any], of_made_alpha: Any) -> tuple[Any, ...]:
        return tuple(values[place] for place in copied) + ((of_made_alpha,) if made else ())

    return OutputProfile(
        format=wanted.format,
        grid=facts.grid.cut(window).refined(scale),
        count=len(copied) + made,
        dtype=facts.dtype,
        nodata=facts.nodata if missing == "nodata" or with_nodata else None,
        band_nodata=each(facts.band_nodata, None),
        mask=missing == "mask",
        colorinterp=each(facts.colorinterp, "alpha"),
        descriptions=each(facts.descriptions, None),
        scales=each(facts.scales, 1.0),
        offsets=each(facts.offsets, 0.0),
        units=each(facts.units, None),
        tags=_tags(facts, wanted),
        band_tags=each(facts.band_tags, {}),
        gcps=(tuple(refined_gcps(points, scale, window)), points_crs) if facts.gcps else None,
        rpcs=None if facts.rpcs is None else refined_rpcs(facts.rpcs, scale, window),
        creation=tuple(wanted.creation.items()),
    )


def _tags(facts: RasterFacts, wanted: Wanted) -> dict[str, Mapping[str, str]]:
    """The source's tags, and those that describe the result."""
    own = dict(facts.tags.get("", {}))
    for name in ("TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION"):
        if name in own:
            own[name] = _times(own[name], wanted.scale)
    own |= {
        "SUPER_RESOLVED": "YES",
        "SUPER_RESOLUTION_SCALE": str(wanted.scale),
        "SUPER_RESOLUTION_WEIGHTS": wanted.weights,
        "SUPER_RESOLUTION_SOFTWARE": f"repmamba {__version__}",
    }
    if wanted.chosen:
        own["SUPER_RESOLUTION_CHOSEN_FOR"] = wanted.chosen
    spaces = {**facts.tags, "": own}
    if (place := spaces.get("GEOLOCATION")) is not None:
        spaces["GEOLOCATION"] = refined_geolocation(place, wanted.scale, wanted.window)
    return spaces


def _times(number: str, scale: int) -> str:
    """A number in a tag multiplied by scale; unchanged if it is not a number."""
    try:
        return f"{scale * float(number.split()[0]):g}"
    except (ValueError, IndexError):
        return number
