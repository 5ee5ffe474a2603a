"""The red, green and blue bands of a raster, found by wavelength or name, and bands by name.

This does not decide which bands go through the network together: options and the colour
interpretation do. Some band names differ between sensors: B3 is red on Landsat 7 and green on
Sentinel-2. Such names only count if the raster names its sensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from repmamba.errors import UsageError
from repmamba.scene.source.raster import RasterFacts

COLOURS = ("red", "green", "blue")
# wavelengths of each colour
NANOMETRES = {"red": (620, 700), "green": (510, 590), "blue": (440, 515)}
# the nearest band counts where several have the colour
CENTRES = {"red": 660, "green": 558, "blue": 485}
# red, green, blue: Sentinel-2, Landsat 8 and 9, HLS; Landsat 4, 5 and 7
OLI, TM = (4, 3, 2), (3, 2, 1)
SENSORS = (  # words in tags and names that identify a sensor
    (
        re.compile(
            r"sentinel.?2|\bs2[abc]_|\bmsi\b|landsat.?[89]|\bl[co]0[89]_|\boli\b|\bhls\b",
            re.IGNORECASE,
        ),
        OLI,
    ),
    (re.compile(r"landsat.?[457]|\bl[et]0[457]_|\betm\b|\btm\b", re.IGNORECASE), TM),
)
# B4, B04, B8A, SR_B4, Band 4
_NUMBERED = re.compile(r"(?:sr_)?(?:band[ _-]?|b)(0?\d{1,2})(a?)\b", re.IGNORECASE)
_WAVELENGTH = re.compile(
    r"(\d+(?:\.\d+)?)\s*(nm|nanomet\w*|um|µm|μm|micromet\w*|microns?)\b", re.IGNORECASE
)


def known_colours(facts: RasterFacts) -> tuple[int, int, int] | None:
    """The numbers of red, green and blue, by wavelength or else by name; None if unknown."""
    bands = {place: facts.numbers[place] for place in facts.colours}
    lengths = {number: _wavelength(facts, place) for place, number in bands.items()}
    by_length = [_nearest(lengths, colour) for colour in COLOURS]
    names = {number: facts.descriptions[place] or "" for place, number in bands.items()}
    by_word = [
        _only([number for number, name in names.items() if _says(name, colour)])
        for colour in COLOURS
    ]
    for found in (by_length, by_word, _by_number(facts, names)):
        red, green, blue = found
        if red is not None and green is not None and blue is not None and len(set(found)) == 3:
            return red, green, blue
    return None


def has_names(facts: RasterFacts) -> bool:
    """Whether bands have names, even if these name no colour."""
    return any(facts.descriptions)


def numbers_of(facts: RasterFacts, asked: Sequence[int | str]) -> tuple[int, ...]:
    """The numbers of bands given by number or name (B04, red). Raises UsageError."""
    return tuple(one if isinstance(one, int) else _number_of(facts, one) for one in asked)


def _number_of(facts: RasterFacts, name: str) -> int:
    if name.strip().isdecimal():
        return int(name)
    wanted = _plain(name)
    bands = list(zip(facts.numbers, facts.descriptions, strict=True))
    for matches in (
        [number for number, text in bands if text and _plain(text) == wanted],
        # "B4, central wavelength 665 nm", and "B04 (red)"
        [
            number
            for number, text in bands
            if text and _plain(re.split(r"[\s,;:(\[]", text.strip())[0]) == wanted
        ],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(
                f"{facts.name} has {len(matches)} bands named {name}: give their numbers."
            )
    if wanted in COLOURS and (known := known_colours(facts)) is not None:
        return known[COLOURS.index(wanted)]
    there = ", ".join(f"{number} {text}" if text else str(number) for number, text in bands[:12])
    raise UsageError(
        f"{facts.name} has no band named {name}; it has {there}{', ...' * (len(bands) > 12)}."
    )


def _plain(name: str) -> str:
    """A name in one spelling: B04 and b4 are the same."""
    return re.sub(r"(?<=[a-z])0+(?=\d)", "", name.strip().lower())


def _says(name: str, colour: str) -> bool:
    """Whether a name contains a colour as a word; red edge and near infrared do not count."""
    words = set(re.findall(r"[a-z]+", name.lower()))
    others = {"edge", "rededge", "near", "infrared", "nir", "minus"}
    return colour in words and words.isdisjoint(others)


def _nearest(lengths: dict[int, float | None], colour: str) -> int | None:
    low, high = NANOMETRES[colour]
    distances = {
        number: abs(length - CENTRES[colour])
        for number, length in lengths.items()
        if length is not None and low <= length <= high
    }
    return min(distances, key=distances.__getitem__, default=None)


def _by_number(facts: RasterFacts, names: dict[int, str]) -> Sequence[int | None]:
    """By the numbers in the names: those of Sentinel-2, or of the sensor that is named."""
    parts = {
        number: (match[1], match[2].lower())
        for number, name in names.items()
        if (match := _NUMBERED.match(name.strip())) is not None
    }
    words = " ".join([facts.name, *facts.texts, *names.values()])
    order = next((order for sign, order in SENSORS if sign.search(words)), None)
    two_digits = any(digits.startswith("0") for digits, _ in parts.values())
    if order is None and (two_digits or ("8", "a") in parts.values()):
        order = OLI
    if order is None:
        return (None, None, None)
    plain = {number: int(digits) for number, (digits, letter) in parts.items() if not letter}
    return [_only([number for number in plain if plain[number] == wanted]) for wanted in order]


def _only(found: Sequence[int]) -> int | None:
    return found[0] if len(found) == 1 else None


def _wavelength(facts: RasterFacts, place: int) -> float | None:
    """The wavelength of a band in nanometres, from its tags or name; None if unknown."""
    spaces = facts.band_tags[place]
    for tags in spaces.values():
        by_name = {name.lower(): text for name, text in tags.items()}
        for name, unit in (
            ("central_wavelength_um", "um"),
            ("wavelength", by_name.get("wavelength_units") or by_name.get("wavelength_unit") or ""),
        ):
            if (length := _in_nanometres(by_name.get(name, ""), unit)) is not None:
                return length
    match = _WAVELENGTH.search(facts.descriptions[place] or "")
    return None if match is None else _in_nanometres(match[1], match[2])


def _in_nanometres(number: str, unit: str) -> float | None:
    try:
        length = float(number)
    except ValueError:
        return None
    if unit.lower().startswith(("n", "na")):
        return length
    if unit.lower().startswith(("u", "µ", "μ", "mic")):
        return 1000 * length
    # without a unit: no imagery has 20 nm, or 20 µm of this kind
    return 1000 * length if length < 20 else length
