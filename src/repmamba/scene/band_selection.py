"""Which bands of a scene the network upscales, and which of them go through it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repmamba.errors import UsageError
from repmamba.inference.bands import Groups, group_bands
from repmamba.scene.options import SceneOptions
from repmamba.scene.source.colours import has_names, known_colours, numbers_of
from repmamba.scene.source.raster import RasterFacts


@dataclass(frozen=True, slots=True)
class BandSelection:
    """The bands to upscale. Places count from 0 in what the raster reads."""

    facts: RasterFacts  # with the colours that were asked for
    places: tuple[int, ...]
    groups: Groups  # of those that go through the network together, counted from 0 among `places`
    alpha_at: int  # place of the raster's alpha band among the bands of the output

    @property
    def together(self) -> list[list[int]]:
        """The groups, as numbers of bands in the file."""
        return [[self.facts.numbers[self.places[band]] for band in group] for group in self.groups]

    @property
    def band_nodata(self) -> tuple[float | None, ...]:
        """The nodata of each band."""
        return tuple(self.facts.band_nodata[place] for place in self.places)


def select_bands(
    facts: RasterFacts, options: SceneOptions, *, is_picture: bool, network_bands: int
) -> BandSelection:
    """The bands that the options ask for, all by default. Raises UsageError.

    is_picture: the output format shows its first three bands as red, green and blue.
    """
    places = _places(facts, None if options.bands is None else numbers_of(facts, options.bands))
    rgb = _rgb(facts, places, None if options.rgb is None else numbers_of(facts, options.rgb))
    if options.rgb is not None and rgb is not None:
        facts = _with_colours(facts, [places[band] for band in rgb])
    if is_picture and options.bands is None and rgb is not None and len(places) == 3:
        places, rgb = tuple(places[band] for band in rgb), (0, 1, 2)
    alpha_keeps_place = options.bands is None and not is_picture and facts.alpha is not None
    return BandSelection(
        facts=facts,
        places=places,
        groups=group_bands(len(places), rgb, network_bands),
        alpha_at=facts.alpha if alpha_keeps_place and facts.alpha is not None else len(places),
    )


def usual_bands(facts: RasterFacts) -> BandSelection:
    """The bands that a network of three bands upscales where no option says otherwise."""
    return select_bands(facts, SceneOptions(), is_picture=False, network_bands=3)


def describe_grey_bands(together: Sequence[Sequence[int]], facts: RasterFacts) -> str | None:
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


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]}"
