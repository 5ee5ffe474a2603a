"""The table of output formats: what each can hold, and its creation options.

To add a raster format that GDAL writes, add an entry to FORMATS. Creation options are in tables
too, because GDAL only logs unknown ones, and some would break what the writer guarantees (threads
that lose errors, sparse blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from repmamba.errors import TargetError, UsageError
from repmamba.scene.result.output import OutputProfile

_ANY_TYPE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# bytes of pixels from which a TIFF gets 64-bit offsets, since compression can also enlarge it
_BIG = 2 << 30


@dataclass(frozen=True, slots=True)
class OneOf:
    """A creation option with a fixed set of values."""

    words: tuple[str, ...]
    or_number: bool = False
    ignored: bool = False  # without effect with these values, and not passed to GDAL

    def explain(self) -> str:
        """The accepted values, for error messages."""
        return "one of " + ", ".join(self.words) + (" or a whole number" * self.or_number)

    def takes(self, value: str) -> bool:
        """Whether a value is accepted, in upper or lower case."""
        return value.upper() in self.words or (self.or_number and value.isdecimal())


@dataclass(frozen=True, slots=True)
class Integer:
    """A creation option that takes an integer, a multiple of step."""

    least: int
    most: int
    step: int = 1
    ignored: ClassVar[bool] = False

    def explain(self) -> str:
        """The accepted values, for error messages."""
        return f"a whole number from {self.least} to {self.most}" + (
            f", a multiple of {self.step}" * (self.step > 1)
        )

    def takes(self, value: str) -> bool:
        """Whether a value is accepted."""
        return value.isdecimal() and int(value) in range(self.least, self.most + 1, self.step)


Option = OneOf | Integer
_YES_NO = OneOf(("YES", "NO"))
DEFLATE_LEVEL = "4"  # 4 % larger than GDAL's 6, in half the time
_COMPRESSIONS = OneOf(("NONE", "LZW", "DEFLATE", "ZSTD", "LZMA", "PACKBITS", "JPEG", "WEBP"))
# compressions for uint8 only -> numbers of bands
_OF_PICTURES = {"JPEG": (1, 3, 4), "WEBP": (3, 4)}


@dataclass(frozen=True, slots=True)
class Format:
    """One output format. Sizes are in pixels; creation options are those of GDAL."""

    name: str
    driver: str
    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    colours: range  # numbers of bands, without alpha
    largest: int  # width or height
    lossless: bool  # with the default options
    nodata: bool  # can declare a nodata value
    mask: bool  # can hold a mask besides the bands
    alpha: bool
    # holds transform and CRS; else they go into side-car files (.aux.xml and a world file)
    placed: bool
    one_pass: bool  # GDAL only writes it from a whole raster, and only reads it from top to bottom
    world: str | None  # suffix of the world file
    # most disk space for assembling (temporary files and result), as a multiple of the tiles
    room: float
    options: Mapping[str, Option]

    @property
    def is_picture(self) -> bool:
        """Whether viewers take three bands as red, green and blue, whatever they are."""
        return not self.placed

    def holds(self, profile: OutputProfile) -> str | None:
        """None if it can hold the profile, else what it cannot hold."""
        grid = profile.grid
        if profile.dtype not in self.dtypes:
            return f"{profile.dtype} pixels"
        # PNG always reads the second of two bands and the fourth of four as alpha.
        fits = profile.count - profile.has_alpha in self.colours
        if not fits or (profile.has_alpha and not self.alpha):
            alpha = "one" if profile.has_alpha else "none"
            return f"{profile.count} bands of which {alpha} is alpha"
        if max(grid.width, grid.height) > self.largest:
            return f"{grid.width} x {grid.height} pixels"
        if profile.mask and not self.mask:
            return "a mask besides the bands"
        if profile.nodata is not None and not self.nodata:
            return "a nodata value"
        if profile.nodata is not None and not _keeps_pixels(self, _asked(profile)):
            return "a nodata value in pixels that its compression changes"
        return None


_BOOLEANS = {"TRUE": "YES", "ON": "YES", "1": "YES", "FALSE": "NO", "OFF": "NO", "0": "NO"}
_IGNORED: dict[str, Option] = {
    # GDAL's threads lose errors, and do not change the result
    "NUM_THREADS": OneOf(("ALL_CPUS",), or_number=True, ignored=True),
    "STATISTICS": OneOf(("AUTO", "NO"), ignored=True),
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
    "SPARSE_OK": OneOf(("NO",), ignored=True),
    "TFW": OneOf(("NO",), ignored=True),
    "PROFILE": OneOf(("GDALGEOTIFF",), ignored=True),
    # a result has no source file with overviews
    "COPY_SRC_OVERVIEWS": OneOf(("YES", "NO"), ignored=True),
    "STREAMABLE_OUTPUT": OneOf(("NO",), ignored=True),
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
    "OVERVIEWS": OneOf(("AUTO",), ignored=True),
    "SPARSE_OK": OneOf(("NO",), ignored=True),
    "ADD_ALPHA": OneOf(("NO",), ignored=True),
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
    """The format with this name (in any case), or else that of the target's suffix."""
    if asked is not None:
        for entry in FORMATS.values():
            if entry.name.lower() == asked.lower():
                return entry
        raise UsageError(
            f"There is no output format '{asked}': choose one of {', '.join(FORMATS)}."
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
            f"{target.name} does not end in the suffix of a format: use one of {known}, or give "
            "format=."
        )
    return max(matches, key=lambda match: len(match[0]))[1]


def check_fit(profile: OutputProfile) -> None:
    """Raise TargetError if the format cannot hold the profile, UsageError for its options."""
    chosen = FORMATS[profile.format]
    if (misfit := chosen.holds(profile)) is not None:
        others = (replace(profile, format=name, creation=()) for name in FORMATS)
        able = [other.format for other in others if FORMATS[other.format].holds(other) is None]
        advice = "No other format can either."
        if able:
            advice = f"These can: {', '.join(able)} (choose one by the suffix or with format=)."
        raise TargetError(f"{chosen.name} cannot hold {misfit}. {advice}")
    creation_options(profile)


def creation_options(profile: OutputProfile) -> dict[str, str]:
    """The creation options for GDAL: defaults, then those asked for. Raises UsageError."""
    chosen = FORMATS[profile.format]
    asked = _asked(profile)
    for name, value in asked.items():
        option = chosen.options.get(name)
        if option is None:
            raise UsageError(
                f"The creation option {name} of {chosen.name} is not supported; these are: "
                f"{', '.join(sorted(chosen.options))}."
            )
        if not option.takes(value):
            raise UsageError(
                f"Creation option {name}={value} of {chosen.name}: it takes {option.explain()}."
            )
    used = {name: value for name, value in asked.items() if not chosen.options[name].ignored}
    options = {**_defaults(profile, used), **used}
    compression = options.get("COMPRESS", "")
    if compression in _OF_PICTURES and (
        profile.dtype != "uint8" or profile.count not in _OF_PICTURES[compression]
    ):
        counts = ", ".join(map(str, _OF_PICTURES[compression]))
        raise UsageError(
            f"COMPRESS={compression} takes {counts} bands of uint8, not {profile.count} of "
            f"{profile.dtype}: use DEFLATE or ZSTD."
        )
    if compression == "WEBP" and options.get("INTERLEAVE") == "BAND":
        # GDAL only warns, and then compresses other memory.
        raise UsageError("COMPRESS=WEBP needs interleaved pixels: leave INTERLEAVE=BAND out.")
    if compression == "WEBP" and profile.alpha not in (None, profile.count - 1):
        raise UsageError(
            "COMPRESS=WEBP needs alpha as the last band: change the order with bands=, or use "
            "another compression."
        )
    if compression == "JPEG" and profile.has_alpha:
        raise UsageError(
            "COMPRESS=JPEG would change alpha, and with it which pixels are missing: use WEBP, "
            "DEFLATE or ZSTD."
        )
    return options


def is_lossless(profile: OutputProfile) -> bool:
    """Whether pixels are kept exactly with the options asked for."""
    return _keeps_pixels(FORMATS[profile.format], _asked(profile))


def _asked(profile: OutputProfile) -> dict[str, str]:
    return {
        name.upper(): _usual_word(FORMATS[profile.format].options.get(name.upper()), value.upper())
        for name, value in profile.creation
    }


def _usual_word(option: Option | None, value: str) -> str:
    """YES or NO for GDAL's other words for them, if the option takes these."""
    takes_yes_or_no = isinstance(option, OneOf) and not {"YES", "NO"}.isdisjoint(option.words)
    return _BOOLEANS.get(value, value) if takes_yes_or_no else value


def _keeps_pixels(chosen: Format, asked: Mapping[str, str]) -> bool:
    if asked.get("COMPRESS") == "WEBP":
        return asked.get("WEBP_LOSSLESS") == "YES" or (
            chosen.name == "COG" and asked.get("QUALITY") == "100"
        )
    return chosen.lossless and asked.get("COMPRESS") != "JPEG"


def raw_bytes(profile: OutputProfile) -> int:
    """Size of the uncompressed pixels in bytes, without mask."""
    size = int("".join(filter(str.isdecimal, profile.dtype))) // 8
    return profile.grid.width * profile.grid.height * profile.count * size


def _defaults(profile: OutputProfile, asked: Mapping[str, str]) -> dict[str, str]:
    if profile.format == "PNG":
        return {"ZLEVEL": "6"}
    if profile.format == "JPEG":
        return {"QUALITY": "90"}
    compression = asked.get("COMPRESS", "DEFLATE")
    predicts = compression in ("DEFLATE", "ZSTD", "LZW")
    big = "YES" if raw_bytes(profile) * (4 / 3 if profile.format == "COG" else 1) > _BIG else "NO"
    if profile.format == "COG":
        predictor = {"PREDICTOR": "YES"} if predicts else {}
        level = {"LEVEL": DEFLATE_LEVEL} if compression == "DEFLATE" else {}
        return {"COMPRESS": compression, **level, **predictor, "BLOCKSIZE": "512", "BIGTIFF": big}
    floating = profile.dtype.startswith("float")
    colours = profile.colorinterp[:3] == ("red", "green", "blue")
    return {
        "TILED": "YES",
        "BLOCKXSIZE": "256",
        "BLOCKYSIZE": "256",
        "COMPRESS": compression,
        **({"ZLEVEL": DEFLATE_LEVEL} if compression == "DEFLATE" else {}),
        **({"PREDICTOR": "3" if floating else "2"} if predicts else {}),
        "INTERLEAVE": "PIXEL" if profile.count <= 4 else "BAND",
        "PHOTOMETRIC": "RGB" if colours else "MINISBLACK",
        **({"ALPHA": "YES"} if profile.has_alpha else {}),
        "BIGTIFF": big,
    }
