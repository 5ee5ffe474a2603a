"""Which bands of a scene the network upscales, and which of them go through it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repmamba.errors import UsageError
from repmamba.inference.bands import Groups, group_bands
from repmamba.scene.options import SceneOptions
from repmamba.scene.source.colours import COLOURS, has_names, known_colours, numbers_of
from repmamba.scene.source.raster import RasterFacts


@dataclass(frozen=True, slots=True)
class BandSelection:
    """The bands to upscale. Places count from 0 in what the raster reads."""

    facts: RasterFacts  # with the colours from the options
    places: tuple[int, ...]
    groups: Groups  # bands that go through the network together, as indices into `places`
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
    """The bands that a network of three bands upscales by default."""
    return select_bands(facts, SceneOptions(), is_picture=False, network_bands=3)


def describe_grey_bands(together: Sequence[Sequence[int]], facts: RasterFacts) -> str | None:
    """What to report if three or more bands go through the network as grey; None otherwise.

    together: numbers of the bands, in groups that go through the network together.
    """
    alone = [numbers[0] for numbers in together if len(numbers) == 1]
    if len(alone) < 3:
        return None
    note = f"bands {_listed(alone)} one by one as grey ({len(alone)} passes)"
    if len(alone) < len(together):  # the colours are known
        return note
    known = known_colours(facts)
    if known is not None and set(known) <= set(alone):
        return (
            f"{note}; bands {_listed(known)} are red, green and blue by name: give "
            f"rgb=({_joined(known)})"
        )
    if has_names(facts):
        return f"{note}; if some are red, green and blue, give rgb=(R, G, B), by number or name"
    who = "they" if len(alone) == 3 else "the first three"
    return f"{note}; if {who} are colours, give rgb=({_joined(alone[:3])})"


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _with_colours(facts: RasterFacts, rgb: Sequence[int]) -> RasterFacts:
    """The facts with red, green and blue at these places; other bands lose these colours."""
    colours = [
        "undefined" if colour in (*COLOURS, "gray") else colour for colour in facts.colorinterp
    ]
    for place, colour in zip(rgb, COLOURS, strict=True):
        colours[place] = colour
    return replace(facts, colorinterp=tuple(colours))


def _places(facts: RasterFacts, bands: Sequence[int] | None) -> tuple[int, ...]:
    """The places of the bands (default all) in what the raster reads; without alpha."""
    if bands is None:
        return facts.colours
    for band in bands:
        if band not in facts.numbers:
            raise UsageError(
                f"{facts.name} has no band {band} to upscale; it has {_listed(facts.numbers)}."
            )
    if len(set(bands)) != len(bands) or not bands:
        raise UsageError("Give each band once, and at least one.")
    return tuple(facts.numbers.index(band) for band in bands)


def _rgb(
    facts: RasterFacts, places: Sequence[int], asked: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The places of red, green and blue among the chosen bands; None if there are none."""
    if asked is None:
        colours = [facts.colorinterp[place] for place in places]
        if all(colours.count(colour) == 1 for colour in COLOURS):
            return tuple(map(colours.index, COLOURS))
        return None
    numbers = [facts.numbers[place] for place in places]
    if len(asked) != 3 or len(set(asked)) != 3 or any(band not in numbers for band in asked):
        raise UsageError(f"rgb= takes three of the bands {_listed(numbers)}: red, green, blue.")
    return tuple(numbers.index(band) for band in asked)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]}"
