"""What the file at the target will say of itself: bands, tags, place, and how it tells of missing
pixels.

All of it follows from the source: what a change of resolution changes is changed, the rest is kept,
and a few tags say what was done. Nothing is read here, and nothing written to a disk.
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

# to tell of missing pixels, where a format lacks one
OTHER_WAYS = {"nodata": ("mask", "alpha"), "mask": ("alpha",)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a profile is made for, besides the source."""

    format: str  # a name of scene.result.formats.FORMATS
    scale: int
    window: Window  # of the source that is enlarged, lr
    places: tuple[int, ...]  # of the bands that are enlarged, in what the raster reads
    alpha_at: int  # place of the raster's alpha among the bands of the output, if it has one
    weights: str  # name and digest
    terms: str = ""  # of the weights
    chosen: str = ""  # what the weights were chosen by, where the scene decided
    # GDAL's creation options that the user asked for
    creation: Mapping[str, str] = field(default_factory=dict)


def fitting_profile(facts: RasterFacts, wanted: Wanted, told: str) -> tuple[OutputProfile, str]:
    """The output's profile, and how it tells of missing pixels: as `told` if the format can, else
    as it can.

    Raises TargetError with the formats that can hold it where this one cannot, UsageError for its
    creation options.
    """
    free = [way for way in OTHER_WAYS.get(told, ()) if way != "alpha" or facts.alpha is None]
    ways = [(told, facts.nodata_given), (told, False), *((way, False) for way in free)]
    for way, kept in ways:
        profile = profile_of(facts, wanted, way, with_nodata=kept)
        if FORMATS[wanted.format].holds(profile) is None:
            break
    else:
        profile, way = profile_of(facts, wanted, told), told
    check_fit(profile)
    check_options(profile)
    return profile, way


def profile_of(
    facts: RasterFacts, wanted: Wanted, told: str, *, with_nodata: bool = False
) -> OutputProfile:
    """The output's profile with missing pixels told by "nodata", "mask", "alpha" or "" for not at
    all.

    with_nodata: the raster's nodata is declared also beside a mask or alpha.
    """
    scale, window = wanted.scale, wanted.window
    copied = list(wanted.places)
    if facts.alpha is not None:
        copied.insert(wanted.alpha_at, facts.alpha)
    made = told == "alpha" and facts.alpha is None

    def each(values: Sequence[Any], of_made_alpha: Any) -> tuple[Any, ...]:
        return tuple(values[place] for place in copied) + ((of_made_alpha,) if made else ())

    return OutputProfile(
        format=wanted.format,
        grid=facts.grid.cut(window).refined(scale),
        count=len(copied) + made,
        dtype=facts.dtype,
        nodata=facts.nodata if told == "nodata" or with_nodata else None,
        band_nodata=each(facts.band_nodata, None),
        mask=told == "mask",
        colorinterp=each(facts.colorinterp, "alpha"),
        descriptions=each(facts.descriptions, None),
        scales=each(facts.scales, 1.0),
        offsets=each(facts.offsets, 0.0),
        units=each(facts.units, None),
        tags=_tags(facts, wanted),
        band_tags=each(facts.band_tags, {}),
        gcps=None
        if facts.gcps is None
        else (tuple(refined_gcps(facts.gcps[0], scale, window)), facts.gcps[1]),
        rpcs=None if facts.rpcs is None else refined_rpcs(facts.rpcs, scale, window),
        creation=tuple(wanted.creation.items()),
    )


def _tags(facts: RasterFacts, wanted: Wanted) -> dict[str, Mapping[str, str]]:
    """The source's tags, and what every reader should know of the result."""
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
    if terms := dict.fromkeys(filter(None, (own.get("SUPER_RESOLUTION_TERMS"), wanted.terms))):
        # those of a source that was enlarged before hold on
        own["SUPER_RESOLUTION_TERMS"] = "; ".join(terms)
    if wanted.chosen:
        own["SUPER_RESOLUTION_CHOSEN_FOR"] = wanted.chosen
    spaces = {**facts.tags, "": own}
    if "GEOLOCATION" in spaces:
        spaces["GEOLOCATION"] = refined_geolocation(
            spaces["GEOLOCATION"], wanted.scale, wanted.window
        )
    return spaces


def _times(number: str, scale: int) -> str:
    """A number in a tag, times scale; the tag as it is where that is no number."""
    try:
        return f"{scale * float(number.split()[0]):g}"
    except (ValueError, IndexError):
        return number
