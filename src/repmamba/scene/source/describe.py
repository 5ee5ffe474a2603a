"""What the log and dry runs report about a scene: missing pixels, alpha and colours, and why."""

from __future__ import annotations

from collections.abc import Sequence

from repmamba.scene.source.raster import RasterFacts


def describe_missing(facts: RasterFacts) -> str:
    """What marks missing pixels, and where that comes from."""
    of_bands = [facts.band_nodata[place] for place in facts.colours]
    numbers = list(
        dict.fromkeys("none" if number is None else f"{number:.9g}" for number in of_bands)
    )
    by = {"mask": ["by a mask"], "alpha": ["where alpha is 0"]}.get(facts.missing_from, [])
    if numbers != ["none"]:
        what = (
            f"where a band is {numbers[0]}"
            if len(numbers) == 1
            else f"where bands are {_listed_of(of_bands)}"
        )
        by.append(f"{what}, as {'given' if facts.nodata_given else 'the file declares'}")
    elif facts.missing_from == "bands":
        by.append("by what the file says of each band")
    return "; ".join(by) or ("none, as given" if facts.nodata_given else "none are declared")


def describe_alpha(facts: RasterFacts) -> str:
    """Which band is alpha, and how to treat it as data instead."""
    if facts.alpha is None:
        return "none"
    return f"band {facts.numbers[facts.alpha]}, as the file says (alpha=False if it is data)"


def describe_colours(together: Sequence[Sequence[int]]) -> str:
    """Which bands are red, green and blue. together: numbers of bands, in groups."""
    colours = next((numbers for numbers in together if len(numbers) == 3), None)
    return (
        "none" if colours is None else f"red, green, blue are bands {', '.join(map(str, colours))}"
    )


def _listed_of(numbers: Sequence[float | None]) -> str:
    return ", ".join("none" if number is None else f"{number:.9g}" for number in numbers)
