"""The table of output formats: what each can hold, and how it is asked to store it.

To add a raster format that GDAL writes is to add a line to FORMATS. Creation options are a table
too, rather than whatever GDAL lets pass: it only logs what it does not know, and some of its
options would undo what the writer promises (threads that lose errors, blocks left out on purpose).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repmamba.errors import TargetError, UsageError
from repmamba.scene.result.output import OutputProfile

_ANY_TYPE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# bytes of pixels from which a TIFF gets 64-bit offsets: compression can fail to shrink, at worst
# grow
_BIG = 2 << 30


@dataclass(frozen=True, slots=True)
class OneOf:
    """A creation option that takes one of some words."""

    words: tuple[str, ...]

    def explain(self) -> str:
        """What it takes, for an error's text."""
        return "one of " + ", ".join(self.words)

    def takes(self, value: str) -> bool:
        """Whether a value may stand there; upper or lower case."""
        return value.upper() in self.words


@dataclass(frozen=True, slots=True)
class Integer:
    """A creation option that takes a whole number, a multiple of step."""

    least: int
    most: int
    step: int = 1

    def explain(self) -> str:
        """What it takes, for an error's text."""
        return f"a whole number from {self.least} to {self.most}" + (
            f", a multiple of {self.step}" * (self.step > 1)
        )

    def takes(self, value: str) -> bool:
        """Whether a value may stand there."""
        return (
            value.isdecimal()
            and self.least <= int(value) <= self.most
            and int(value) % self.step == 0
        )


@dataclass(frozen=True, slots=True)
class Ignored:
    """A creation option that changes nothing by these words: it is taken, and GDAL does not get
    it.
    """

    words: tuple[str, ...]
    or_number: bool = False

    def explain(self) -> str:
        """What it takes, for an error's text."""
        return "one of " + ", ".join(self.words) + (" or a whole number" * self.or_number)

    def takes(self, value: str) -> bool:
        """Whether a value may stand there; upper or lower case."""
        return value.upper() in self.words or (self.or_number and value.isdecimal())


Option = OneOf | Integer | Ignored
_YES_NO = OneOf(("YES", "NO"))
DEFLATE_LEVEL = "4"  # against GDAL's 6, a file of imagery is 4 % larger and takes half the time
_COMPRESSIONS = OneOf(("NONE", "LZW", "DEFLATE", "ZSTD", "LZMA", "PACKBITS", "JPEG", "WEBP"))
# compressions of uint8 alone -> numbers of bands
_OF_PICTURES = {"JPEG": (1, 3, 4), "WEBP": (3, 4)}


@dataclass(frozen=True, slots=True)
class Format:
    """One output format. Sizes are in pixels; creation options are GDAL's."""

    name: str
    driver: str
    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    colours: range  # numbers of bands, alpha left out
    largest: int  # edge
    lossless: bool  # with the default options
    nodata: bool  # can declare a nodata value; its pixels keep it exactly where nothing is lost
    mask: bool  # can carry a mask beside its bands
    alpha: bool
    # carries transform and CRS inside; else they go into side-car files (.aux.xml and a world file)
    placed: bool
    one_pass: bool  # GDAL writes it from a whole raster only, and reads it from top to bottom only
    world: str | None  # suffix of the world file
    # disk that assembling takes at most, times the finished tiles: intermediates and the file
    # itself
    room: float
    options: Mapping[str, Option]

    @property
    def is_picture(self) -> bool:
        """Whether three bands are red, green and blue by their order alone."""
        return not self.placed

    def holds(self, profile: OutputProfile) -> str | None:
        """None if it can hold the profile, else what it cannot."""
        grid = profile.grid
        if profile.dtype not in self.dtypes:
            return f"{profile.dtype} pixels"
        if profile.count - profile.has_alpha not in self.colours or (
            profile.has_alpha and not self.alpha
        ):
            # PNG takes the second of two bands, and the fourth of four, for alpha, whatever they
            # are.
            return (
                f"{profile.count} bands of which {'one' if profile.has_alpha else 'none'} is alpha"
            )
        if max(grid.width, grid.height) > self.largest:
            return f"{grid.width} x {grid.height} pixels"
        if profile.mask and not self.mask:
            return "a mask beside the bands"
        if profile.nodata is not None and not self.nodata:
            return "a nodata value"
        if profile.nodata is not None and not _keeps_pixels(self, _asked(profile)):
            return "a nodata value in pixels that its compression changes"
        return None


_BOOLEANS = {
    **dict.fromkeys(("TRUE", "ON", "1"), "YES"),
    **dict.fromkeys(("FALSE", "OFF", "0"), "NO"),
}
_IGNORED: dict[str, Option] = {
    # GDAL's threads would lose errors, and change no byte
    "NUM_THREADS": Ignored(("ALL_CPUS",), or_number=True),
    "STATISTICS": Ignored(("AUTO", "NO")),
}
_TIFF_OPTIONS: dict[str, Option] = {
    "COMPRESS": _COMPRESSIONS,
    "PREDICTOR": OneOf(("1", "2", "3")),
    "ZLEVEL": Integer(1, 12),
    "ZSTD_LEVEL": Integer(1, 22),
    "LZMA_PRESET": Integer(0, 9),
    "JPEG_QUALITY": Integer(1, 100),
    "WEBP_LEVEL": Integer(1, 100),
    "WEBP_LOSSLESS": _YES_NO,
    "PHOTOMETRIC": OneOf(("MINISBLACK", "RGB", "YCBCR")),
    "INTERLEAVE": OneOf(("PIXEL", "BAND")),
    "TILED": OneOf(("YES",)),
    "BLOCKXSIZE": Integer(64, 4096, 16),
    "BLOCKYSIZE": Integer(64, 4096, 16),
    "BIGTIFF": OneOf(("YES", "NO", "IF_NEEDED", "IF_SAFER")),
    "ENDIANNESS": OneOf(("NATIVE", "LITTLE", "BIG")),
    "GEOTIFF_VERSION": OneOf(("AUTO", "1.0", "1.1")),
    **_IGNORED,
    "SPARSE_OK": Ignored(("NO",)),
    "TFW": Ignored(("NO",)),
    "PROFILE": Ignored(("GDALGEOTIFF",)),
    # a result is made of tiles, and has no source with overviews
    "COPY_SRC_OVERVIEWS": Ignored(("YES", "NO")),
    "STREAMABLE_OUTPUT": Ignored(("NO",)),
}
_COG_OPTIONS: dict[str, Option] = {
    "COMPRESS": OneOf(("NONE", "LZW", "DEFLATE", "ZSTD", "LZMA", "JPEG", "WEBP")),
    "PREDICTOR": OneOf(("YES", "NO", "STANDARD", "FLOATING_POINT")),
    "LEVEL": Integer(1, 22),
    "QUALITY": Integer(1, 100),
    "BLOCKSIZE": Integer(128, 4096, 16),
    "BIGTIFF": OneOf(("YES", "NO", "IF_NEEDED", "IF_SAFER")),
    "GEOTIFF_VERSION": OneOf(("AUTO", "1.0", "1.1")),
    **_IGNORED,
    "OVERVIEWS": Ignored(("AUTO",)),
    "SPARSE_OK": Ignored(("NO",)),
    "ADD_ALPHA": Ignored(("NO",)),
}

_GTIFF = Format(
    "GTiff",
    "GTiff",
    (".tif", ".tiff"),
    _ANY_TYPE,
    range(1, 65536),
    2**31 - 1,
    lossless=True,
    nodata=True,
    mask=True,
    alpha=True,
    placed=True,
    one_pass=False,
    world=None,
    room=1.05,
    options=_TIFF_OPTIONS,
)
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        _GTIFF,
        replace(
            _GTIFF,
            name="COG",
            driver="COG",
            suffixes=(".cog.tif", ".cog.tiff", ".cog"),
            room=2.8,
            options=_COG_OPTIONS,
        ),
        Format(
            "PNG",
            "PNG",
            (".png",),
            ("uint8", "uint16"),
            range(1, 4, 2),
            1_000_000,
            lossless=True,
            nodata=True,
            mask=False,
            alpha=True,
            placed=False,
            one_pass=True,
            world=".pgw",
            room=2.1,
            options={"ZLEVEL": Integer(1, 9)},
        ),
        Format(
            "JPEG",
            "JPEG",
            (".jpg", ".jpeg"),
            ("uint8",),
            range(1, 4, 2),
            65_500,
            lossless=False,
            nodata=False,
            mask=True,
            alpha=False,
            placed=False,
            one_pass=True,
            world=".jgw",
            room=1.6,
            options={"QUALITY": Integer(1, 100), "PROGRESSIVE": _YES_NO},
        ),
    )
}


def format_of(target: Path, asked: str | None = None) -> Format:
    """The format asked for by name (case does not matter), else the one that the target's name ends
    like.
    """
    if asked is not None:
        for entry in FORMATS.values():
            if entry.name.lower() == asked.lower():
                return entry
        raise UsageError(
            f"There is no output format '{asked}'; choose one of {', '.join(FORMATS)}."
        )
    name = target.name.lower()
    matches = [
        (suffix, entry)
        for entry in FORMATS.values()
        for suffix in entry.suffixes
        if name.endswith(suffix)
    ]
    if not matches:
        known = ", ".join(suffix for entry in FORMATS.values() for suffix in entry.suffixes)
        raise UsageError(
            f"{target.name} does not say its format; end it in one of {known}, or give format=."
        )
    return max(matches, key=lambda match: len(match[0]))[1]


def check_fit(profile: OutputProfile) -> None:
    """Raise TargetError if the profile's format cannot hold it, naming those that can; UsageError
    for its options.
    """
    chosen = FORMATS[profile.format]
    if (misfit := chosen.holds(profile)) is not None:
        others = (replace(profile, format=name, creation=()) for name in FORMATS)
        able = [other.format for other in others if FORMATS[other.format].holds(other) is None]
        raise TargetError(
            f"{chosen.name} cannot hold {misfit}. "
            + (
                f"These can: {', '.join(able)} (choose by the name's ending or format=)."
                if able
                else "No format can."
            )
        )
    creation_options(profile)


def creation_options(profile: OutputProfile) -> dict[str, str]:
    """Every creation option that GDAL gets: defaults for the profile, then what the user asked.
    Raises UsageError.
    """
    chosen = FORMATS[profile.format]
    asked = _asked(profile)
    for name, value in asked.items():
        option = chosen.options.get(name)
        if option is None:
            raise UsageError(
                f"{chosen.name} has no creation option {name} here; it has "
                f"{', '.join(sorted(chosen.options))}."
            )
        if not option.takes(value):
            raise UsageError(
                f"Creation option {name}={value} of {chosen.name}: it takes {option.explain()}."
            )
    used = {
        name: value
        for name, value in asked.items()
        if not isinstance(chosen.options[name], Ignored)
    }
    options = {**_defaults(profile, used), **used}
    compression = options.get("COMPRESS", "")
    if compression in _OF_PICTURES and (
        profile.dtype != "uint8" or profile.count not in _OF_PICTURES[compression]
    ):
        counts = ", ".join(map(str, _OF_PICTURES[compression]))
        raise UsageError(
            f"COMPRESS={compression} takes {counts} bands of uint8, not {profile.count} of "
            f"{profile.dtype}; "
            "DEFLATE and ZSTD take all."
        )
    if compression == "WEBP" and options.get("INTERLEAVE") == "BAND":
        # GDAL warns of it, and then compresses memory that is not the picture's.
        raise UsageError("COMPRESS=WEBP takes bands side by side alone: leave INTERLEAVE=BAND out.")
    if compression == "WEBP" and profile.alpha not in (None, profile.count - 1):
        raise UsageError(
            "COMPRESS=WEBP takes alpha as the last band: choose the order with --bands, or another "
            "one."
        )
    if compression == "JPEG" and profile.has_alpha:
        raise UsageError(
            "COMPRESS=JPEG changes alpha, and with it what is missing; WEBP, DEFLATE and ZSTD keep "
            "it."
        )
    return options


def is_lossless(profile: OutputProfile) -> bool:
    """Whether every pixel comes back as it was given, with the options that were asked for."""
    return _keeps_pixels(FORMATS[profile.format], _asked(profile))


def _asked(profile: OutputProfile) -> dict[str, str]:
    return {
        name.upper(): _usual_word(FORMATS[profile.format].options.get(name.upper()), value.upper())
        for name, value in profile.creation
    }


def _usual_word(option: Option | None, value: str) -> str:
    """YES and NO for what else GDAL takes for them, where an option takes these."""
    takes_yes_or_no = isinstance(option, OneOf | Ignored) and bool(
        {"YES", "NO"} & set(option.words)
    )
    return _BOOLEANS.get(value, value) if takes_yes_or_no else value


def _keeps_pixels(chosen: Format, asked: Mapping[str, str]) -> bool:
    if asked.get("COMPRESS") == "WEBP":
        return asked.get("WEBP_LOSSLESS") == "YES" or (
            chosen.name == "COG" and asked.get("QUALITY") == "100"
        )
    return chosen.lossless and asked.get("COMPRESS") != "JPEG"


def raw_bytes(profile: OutputProfile) -> int:
    """The pixels of the result in memory, mask left out."""
    size = int("".join(filter(str.isdecimal, profile.dtype))) // 8
    return profile.grid.width * profile.grid.height * profile.count * size


def _defaults(profile: OutputProfile, asked: Mapping[str, str]) -> dict[str, str]:
    if profile.format == "PNG":
        return {"ZLEVEL": "6"}
    if profile.format == "JPEG":
        return {"QUALITY": "90"}
    compression = asked.get("COMPRESS", "DEFLATE")
    big = "YES" if raw_bytes(profile) * (4 / 3 if profile.format == "COG" else 1) > _BIG else "NO"
    if profile.format == "COG":
        predictor = {"PREDICTOR": "YES"} if compression in ("DEFLATE", "ZSTD", "LZW") else {}
        level = {"LEVEL": DEFLATE_LEVEL} if compression == "DEFLATE" else {}
        return {"COMPRESS": compression, **level, **predictor, "BLOCKSIZE": "512", "BIGTIFF": big}
    floating = profile.dtype.startswith("float")
    predictor = (
        {"PREDICTOR": "3" if floating else "2"} if compression in ("DEFLATE", "ZSTD", "LZW") else {}
    )
    colours = profile.colorinterp[:3] == ("red", "green", "blue")
    return {
        "TILED": "YES",
        "BLOCKXSIZE": "256",
        "BLOCKYSIZE": "256",
        "COMPRESS": compression,
        **({"ZLEVEL": DEFLATE_LEVEL} if compression == "DEFLATE" else {}),
        **predictor,
        "INTERLEAVE": "PIXEL" if profile.count <= 4 else "BAND",
        "PHOTOMETRIC": "RGB" if colours else "MINISBLACK",
        **({"ALPHA": "YES"} if profile.has_alpha else {}),
        "BIGTIFF": big,
    }
