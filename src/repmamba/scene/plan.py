"""The plan of a scene: what will be read, computed and written, fixed before the first pixel.

What can change a pixel (tiles, range, bands, consistency) comes from the weights, the options and
the scene as a whole, never from the machine or from the window that is asked for. A plan is a
value: it can be printed, compared and refused.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from repmamba import __version__
from repmamba.errors import CorruptSource, OutsideTraining, UsageError
from repmamba.inference.bands import Groups, group_bands
from repmamba.inference.confidence import Calibration
from repmamba.inference.options import check_cut
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.histogram import ValueHistogram, said_of_fills, warn_of_fills
from repmamba.pixels.nodata import usable
from repmamba.pixels.radiometry import Radiometry
from repmamba.scene.choice import Choice
from repmamba.scene.result.formats import format_of
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.profile import Wanted, fitting_profile
from repmamba.scene.source.admission import Reading
from repmamba.scene.source.bbox import window_of_bbox
from repmamba.scene.source.colours import has_names, known_colours, numbers_of
from repmamba.scene.source.describe import said_of_alpha, said_of_colours, said_of_missing
from repmamba.scene.source.origin import source_identity
from repmamba.scene.source.raster import Raster, RasterFacts
from repmamba.scene.source.sampling import TellPixels, value_histograms
from repmamba.tiles.plan import TilePlan, plan_tiles
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

LOOKED_AT = 64  # lr pixels, edge of the windows that are looked at where a scene is not
QUICKLY_READ = 1 << 26  # pixels
EIGHT_BITS = ("uint8", "int8")  # types whose whole range is what scenes use of it
ValueRange: TypeAlias = tuple[float, float] | Literal["robust", "type"]
RADAR_SIGNS = (
    "sentinel-1",
    "s1a_",
    "s1b_",
    "s1c_",
    "radarsat",
    "terrasar",
    "cosmo-skymed",
    "gamma0",
    "sigma0",
    "alos palsar",
)


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What a user may ask of a scene's enlargement; None leaves it to the weights and the scene."""

    tile: int | None = None  # lr pixels, even
    halo: int | None = None  # lr pixels, even
    window: Window | None = None  # lr
    # left, bottom, right, top in the scene's CRS
    bbox: tuple[float, float, float, float] | None = None
    bands: Iterable[int | str] | None = None  # numbers in the file, from 1, or names
    # numbers in the file, or names, of red, green and blue
    rgb: tuple[int | str, ...] | None = None
    value_range: ValueRange | None = None
    consistent: bool | None = None
    format: str | None = None
    creation: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(self.bands))
        if self.bbox is not None and not all(map(math.isfinite, self.bbox)):
            raise UsageError(
                f"The bbox {' '.join(map(str, self.bbox))} is no box: give four finite numbers."
            )
        if self.window is not None and self.bbox is not None:
            raise UsageError("A window and a bbox say the same in two ways; give one of them.")
        check_cut(self.tile, self.halo)


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """Everything that decides the result."""

    tiles: TilePlan
    radiometry: Radiometry  # of the bands in `places`
    places: tuple[int, ...]  # of the bands that the network enlarges, in what the raster reads
    groups: Groups  # of those bands, counted from 0 among them
    consistent: bool
    # stands in missing pixels, and no valid result may equal it; None: what lies there stays
    nodata: float | None
    # of the bands in `places`; what equals it is missing there alone
    band_nodata: tuple[float | None, ...]
    alpha: int | None  # the band that the raster reads for alpha, which is enlarged by nearest
    alpha_at: int  # its place in the output
    # alpha is 0 where a pixel is missing; the last band of the output, if the raster has none
    alpha_tells: bool
    profile: OutputProfile
    said: Mapping[str, str]  # what was decided of the source, for people
    job: JobIdentity
    choice: Choice | None = None  # of the weights, where the scene decided
    calibration: Calibration | None = None  # gives the errors to expect, which are wanted as well

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        return self.tiles.scale


def plan_scene(
    raster: Raster,
    target: Path,
    upscaler: Upscaler,
    options: SceneOptions,
    how: Reading | None = None,
    measuring: TellPixels | None = None,
    choice: Choice | None = None,
) -> ScenePlan:
    """The plan for a raster, an output and an upscaler.

    Reads the scene, or a sample of a large one, if its range has to be found.
    measuring: called with the pixels read for that, and of how many, where it takes long.  choice:
    why it is this
    upscaler, where the scene decided.
    Raises UsageError and TargetError for what cannot be done, before any pixel is computed.
    """
    facts = raster.facts
    how = how or Reading()
    places = _places(
        facts, None if options.bands is None else numbers_of(facts, tuple(options.bands))
    )
    rgb = _rgb(facts, places, None if options.rgb is None else numbers_of(facts, options.rgb))
    if options.rgb is not None and rgb is not None:
        facts = _with_colours(facts, [places[band] for band in rgb])
    chosen = format_of(target, options.format)
    if chosen.is_picture and options.bands is None and rgb is not None and len(places) == 3:
        # it shows its first band as red, whatever that is
        places, rgb = tuple(places[band] for band in rgb), (0, 1, 2)
    in_order = options.bands is None and not chosen.is_picture and facts.alpha is not None
    alpha_at = facts.alpha if in_order and facts.alpha is not None else len(places)
    groups = group_bands(len(places), rgb, upscaler.bands)
    halo = upscaler.halo if options.halo is None else options.halo
    tiles = plan_tiles(
        raster.grid.height,
        raster.grid.width,
        upscaler.scale,
        tile=options.tile or upscaler.tile,
        halo=halo,
        window=options.window
        if options.bbox is None
        else window_of_bbox(facts.name, facts.grid, options.bbox),
    )
    wanted = Wanted(
        format=chosen.name,
        scale=upscaler.scale,
        window=tiles.window,
        places=places,
        alpha_at=alpha_at,
        weights=f"{upscaler.name} {upscaler.digest}",
        terms=upscaler.terms,
        chosen="" if choice is None else choice.why,
        creation=options.creation or {},
    )
    # Blocks that cannot be read may make a pixel missing in a scene that has no way yet to say so.
    profile, told = fitting_profile(
        facts, wanted, facts.missing or ("mask" if how.fill_corrupt else "")
    )
    _warn_of_radar(facts)
    radiometry, range_found, fills = _radiometry(
        raster, places, groups, options.value_range, measuring
    )
    warn_of_fills(facts.name, fills, stacklevel=3)
    consistent = facts.has_place if options.consistent is None else options.consistent
    if upscaler.terms:
        logger.info(
            "%s: terms of the weights %s: %s.",
            facts.name,
            upscaler.name,
            upscaler.terms.rstrip("."),
        )
    together = _numbered(facts, places, groups)
    if (alone := said_of_bands_alone(together, facts)) is not None:
        logger.info("%s: through the network: %s.", facts.name, alone)
    settings = {
        "scale": upscaler.scale,
        "tile": tiles.tile,
        "halo": tiles.halo,
        "window": [tiles.window.col, tiles.window.row, tiles.window.width, tiles.window.height],
        "bands": [facts.numbers[place] for place in places],
        "together": together,
        "low": list(radiometry.low),
        "high": list(radiometry.high),
        "consistent": consistent,
        "missing": told,
        "nodata": [facts.band_nodata[place] for place in places],
        **(
            {}
            if facts.alpha is None
            else {"alpha": facts.numbers[facts.alpha], "alpha_at": alpha_at}
        ),
        "fill_corrupt": how.fill_corrupt,
        "expand_palette": how.expand_palette,
        "device": upscaler.device.type,
        "precision": upscaler.precision,
        "scan": upscaler.backend,
        "ensemble": upscaler.ensemble,
        "compute_threads_of_a_tile": 1,
        "tiles_in_one_pass": 1,
    }
    if choice is not None:
        settings["chosen"] = choice.as_json()
    return ScenePlan(
        tiles=tiles,
        radiometry=radiometry,
        places=places,
        groups=groups,
        consistent=consistent,
        nodata=profile.nodata,
        band_nodata=tuple(facts.band_nodata[place] for place in places),
        alpha=facts.alpha,
        alpha_at=alpha_at,
        alpha_tells=told == "alpha",
        profile=profile,
        said={
            "missing": said_of_missing(facts),
            "alpha": said_of_alpha(facts),
            "colours": said_of_colours(together),
            "range": _said_of_range(radiometry, range_found),
        },
        job=JobIdentity(
            source_identity(facts.name, facts.read_from), upscaler.digest, settings, __version__
        ),
        choice=choice,
    )


def usual_groups(facts: RasterFacts, network_bands: int = 3) -> list[list[int]]:
    """The numbers of the bands that go through a network together, where nothing else is asked
    for.
    """
    places = _places(facts, None)
    return _numbered(
        facts, places, group_bands(len(places), _rgb(facts, places, None), network_bands)
    )


def usual_range(raster: Raster) -> str:
    """The value range where no other is asked for, and how it is found; of large scenes the second
    alone.
    """
    if (
        raster.facts.dtype not in EIGHT_BITS
        and raster.grid.width * raster.grid.height > QUICKLY_READ
    ):
        return (
            "that of nearly all numbers of the scene, which a pass over all of it finds "
            "(upscale --dry-run)"
        )
    places = _places(raster.facts, None)
    groups = group_bands(len(places), _rgb(raster.facts, places, None), 3)
    try:
        radiometry, found, fills = _radiometry(raster, places, groups, None)
    except CorruptSource as damage:
        return f"not to be found: {damage}"
    return _said_of_range(radiometry, found) + (
        f"; nodata that is not declared, maybe: {fills}" if fills else ""
    )


def said_of_bands_alone(together: Sequence[Sequence[int]], facts: RasterFacts) -> str | None:
    """What a user should know where three bands or more go through a network alone, and may be
    colours for all that.

    together: the numbers of bands that go through it together.
    """
    alone = [numbers[0] for numbers in together if len(numbers) == 1]
    if len(alone) < 3:
        return None
    said = f"bands {_listed(alone)} each alone as grey ({len(alone)} passes)"
    if len(alone) < len(together):  # the colours are known
        return said
    known = known_colours(facts)
    if known is not None and set(known) <= set(alone):
        return (
            f"{said}; bands {_listed(known)} are red, green and blue by their names: "
            f"rgb=({_joined(known)})"
        )
    if has_names(facts):
        return f"{said}; if some are red, green and blue: rgb=(R, G, B), by number or name"
    who = "they" if len(alone) == 3 else "the first three"
    return f"{said}; if {who} are colours: rgb=({_joined(alone[:3])})"


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _with_colours(facts: RasterFacts, rgb: Sequence[int]) -> RasterFacts:
    """The facts with these places as red, green and blue, as the result says; others that said so
    say nothing.
    """
    colours = [
        "undefined" if colour in ("red", "green", "blue", "gray") else colour
        for colour in facts.colorinterp
    ]
    for place, colour in zip(rgb, ("red", "green", "blue"), strict=True):
        colours[place] = colour
    return replace(facts, colorinterp=tuple(colours))


def _numbered(facts: RasterFacts, places: Sequence[int], groups: Groups) -> list[list[int]]:
    return [[facts.numbers[places[band]] for band in group] for group in groups]


def _places(facts: RasterFacts, bands: Sequence[int] | None) -> tuple[int, ...]:
    """Where the bands asked for (all unless asked) stand in what the raster reads; alpha comes
    along by itself.
    """
    if bands is None:
        return facts.colours
    for band in bands:
        if band not in facts.numbers:
            raise UsageError(
                f"{facts.name} has no band {band} to enlarge; it has {_listed(facts.numbers)}."
            )
    if len(set(bands)) != len(bands) or not bands:
        raise UsageError("Name each band once, and at least one.")
    return tuple(facts.numbers.index(band) for band in bands)


def _rgb(
    facts: RasterFacts, places: Sequence[int], asked: Sequence[int] | None
) -> tuple[int, ...] | None:
    """Where red, green and blue stand among the chosen places; None where the scene has no such
    bands.
    """
    if asked is None:
        colours = [facts.colorinterp[place] for place in places]
        if all(colours.count(colour) == 1 for colour in ("red", "green", "blue")):
            return tuple(colours.index(colour) for colour in ("red", "green", "blue"))
        return None
    numbers = [facts.numbers[place] for place in places]
    if len(asked) != 3 or len(set(asked)) != 3 or any(band not in numbers for band in asked):
        raise UsageError(f"rgb= takes three of the bands {_listed(numbers)}: red, green, blue.")
    return tuple(numbers.index(band) for band in asked)


def _said_of_range(radiometry: Radiometry, found: str) -> str:
    """What is black and white of each band, once where it is the same for all, and how it was
    found.
    """
    ends = zip(radiometry.low, radiometry.high, strict=True)
    return f"{'; '.join(dict.fromkeys(f'{low:.6g} to {high:.6g}' for low, high in ends))}, {found}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]}"


def _radiometry(
    raster: Raster,
    places: tuple[int, ...],
    groups: Groups,
    asked: ValueRange | None,
    measuring: TellPixels | None = None,
) -> tuple[Radiometry, str, str]:
    """The linear map of each band, how it was found, and what looks like nodata that nobody
    declared.

    Bands that go through the network together share theirs, or colours would shift.
    """
    dtype = raster.facts.dtype
    usual = Radiometry.of_type(dtype, len(places), raster.facts.largest)
    found = "as asked" if asked is not None else "as usual of this type"
    if asked is None:
        asked = "type" if dtype in EIGHT_BITS else "robust"
    histograms = _histograms(raster, places, groups, measuring, whole=asked == "robust")
    fills = said_of_fills(histograms, dtype)
    if asked != "robust" and fills:
        fills = f"of a sample, {fills}"
    if asked == "type":
        return usual, f"the ends of {dtype}, {found}", fills
    if asked == "robust":
        ranges = [histogram.range() for histogram in histograms]
        spikes = sum(
            each.spikes(*ends)
            for each, ends in zip(histograms, ranges, strict=True)
            if ends is not None
        )
        if spikes:
            logger.info(
                "%s: spikes, enlarged smoothly and left out of consistency: %d.",
                raster.facts.name,
                spikes,
            )
        low, high = list(usual.low), list(usual.high)
        for group, between in zip(groups, ranges, strict=True):
            if between is not None:
                for band in group:
                    low[band], high[band] = between
        found = f"which holds nearly all numbers of the scene, {found}"
        return replace(usual, low=tuple(low), high=tuple(high)), found, fills
    return (
        replace(usual, low=(asked[0],) * len(places), high=(asked[1],) * len(places)),
        found,
        fills,
    )


def _histograms(
    raster: Raster,
    places: tuple[int, ...],
    groups: Groups,
    measuring: TellPixels | None,
    *,
    whole: bool,
) -> list[ValueHistogram]:
    """The values of each group of bands, of all of a scene (or a sample that gives its range) or of
    a few windows.
    """

    def count(window: Window, histograms: Sequence[ValueHistogram]) -> None:
        raw, valid = raster.read(window)
        known = usable(raw, valid, raster.facts.band_nodata)
        for histogram, group in zip(histograms, groups, strict=True):
            for band in group:
                histogram.add(raw[places[band]][known[places[band]]])

    if whole:
        return value_histograms(raster, count, len(groups), measuring)
    found = [ValueHistogram() for _ in groups]
    with suppress(CorruptSource):  # what needs to be read will be, and said then
        for window in _corners_and_middle(raster):
            count(window, found)
    return found


def _corners_and_middle(raster: Raster) -> Iterator[Window]:
    """Where a scene is looked at whose range needs no pass over it; nowhere in a picture, or where
    that takes long.
    """
    if not raster.facts.has_place or not raster.reads_anywhere:
        return
    height, width = raster.grid.height, raster.grid.width
    for row in sorted({0, max(0, height - LOOKED_AT) // 2, max(0, height - LOOKED_AT)}):
        for col in sorted({0, max(0, width - LOOKED_AT) // 2, max(0, width - LOOKED_AT)}):
            yield Window(row, col, LOOKED_AT, LOOKED_AT).clipped(raster.whole)


def said_of_consistency(consistent: bool, asked: bool | None, has_place: bool) -> str:
    """Whether a result will be its input when it is made small again, and why, as one line of the
    log.
    """
    said = "made consistent with its input" if consistent else "not made consistent with its input"
    if asked is not None:
        return f"{said}, as asked."
    if has_place:
        return (
            f"{said}, since it has a place on the map (consistent=False leaves what the "
            "network "
            "gave)."
        )
    return (
        f"{said}, since it is a picture without a place on the map (consistent=True asks for it)."
    )


def _warn_of_radar(facts: RasterFacts) -> None:
    """Warn where the metadata say that a scene is radar, which no weights of ours have seen."""
    texts = [
        text
        for spaces in (facts.tags, *facts.band_tags)
        for tags in spaces.values()
        for text in tags.values()
    ]
    said = " ".join([*texts, *(name for name in facts.descriptions if name)]).lower()
    sign = next((sign for sign in RADAR_SIGNS if sign in said), None)
    if sign is not None:
        warnings.warn(
            f"{facts.name} looks like radar (its metadata say '{sign}'); the weights know optical "
            "imagery alone, "
            "so do not trust what they add.",
            OutsideTraining,
            stacklevel=3,
        )
