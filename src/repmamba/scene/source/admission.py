"""Which sources are opened at all, and what a file may declare before memory is allocated for it.

Trusted sources may be anything GDAL reads, including virtual rasters and URLs. Untrusted ones must
be regular, small files in one of four formats, recognised by their first bytes and read without
side-car files.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from repmamba.durable import readable
from repmamba.errors import SourceError, UsageError
from repmamba.pixels.nodata import Nodata, nodata_of
from repmamba.pixels.radiometry import DTYPES

GDAL_SETTINGS = {
    # Otherwise old cached parts of a URL are mixed with new ones.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/",
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # the fast path reads truncated PNGs silently
}
# An untrusted side-car file could name any local file or URL.
UNTRUSTED_SETTINGS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
UNTRUSTED_DRIVERS = {  # first bytes -> the only driver that is tried
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}


VIRTUAL = "<VRTDataset"  # start of a virtual raster, which may also be given as the name itself
RASTER_FOLDERS = (".SAFE", ".ZARR", ".GDB")  # suffixes of folders that GDAL reads as one raster


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may declare before memory is allocated for it."""

    pixels: int = 1 << 36
    bands: int = 1000
    block_bytes: int = 1 << 32
    pixels_per_byte: float = float("inf")  # of the file

    @classmethod
    def for_untrusted(cls) -> Limits:
        """For files of unknown origin."""
        return cls(pixels=1 << 28, bands=200, block_bytes=64 << 20, pixels_per_byte=4000)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a source is read. The fields are keywords of upscale_file.

    What upscale_file takes in other forms is converted to these types. Raises UsageError.
    """

    untrusted: bool = False
    max_pixels: int | None = None
    on_corrupt: Literal["error", "fill"] = "error"
    expand_palette: bool = False
    nodata: Nodata | None = None
    alpha: bool = True
    bands: tuple[int | str, ...] | None = None  # data, even where the file says alpha

    def __post_init__(self) -> None:
        if self.on_corrupt not in ("error", "fill"):
            raise UsageError(f"on_corrupt={self.on_corrupt!r}: give 'error' or 'fill'.")
        if self.nodata is not None:
            object.__setattr__(self, "nodata", nodata_of(self.nodata))
        if self.bands is not None:
            object.__setattr__(self, "bands", band_selection(self.bands))

    @property
    def fill_corrupt(self) -> bool:
        """Whether blocks that cannot be read become missing pixels, and are counted."""
        return self.on_corrupt == "fill"

    @property
    def limits(self) -> Limits:
        """What is allowed, max_pixels included."""
        usual = Limits.for_untrusted() if self.untrusted else Limits()
        if self.max_pixels is None:
            return usual
        return Limits(self.max_pixels, usual.bands, usual.block_bytes)


def band_selection(bands: Iterable[int | str]) -> tuple[int | str, ...]:
    """Numbers, from 1, and names of bands. Raises UsageError for a single string."""
    if isinstance(bands, str):
        raise UsageError(f"{bands!r} is one text: give the numbers or names of bands as a list.")
    return tuple(band if isinstance(band, str) else operator.index(band) for band in bands)


def check_file(name: str, how: ReadOptions) -> str | None:
    """The driver to open a file with; None for any. Raises SourceError, before GDAL opens it."""
    # os.path.exists, since the name may be a whole virtual raster, too long for Path.exists.
    path, there = Path(name), os.path.exists(name)
    named = "://" in name or name.startswith(("/vsi", VIRTUAL)) or (":" in name and not there)
    if named and not how.untrusted:
        return None
    if not there:
        raise SourceError(f"{name} does not exist: check the path.")
    if path.is_dir() and (how.untrusted or path.suffix.upper() not in RASTER_FOLDERS):
        raise SourceError(f"{name} is a folder: name the files in it.")
    if path.is_dir():
        return None
    if not path.is_file():
        raise SourceError(f"{name} is not a regular file: name one.")
    if path.stat().st_size == 0:
        raise SourceError(f"{name} is empty: it has 0 bytes.")
    if not how.untrusted:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}.") from error
    for magic, driver in UNTRUSTED_DRIVERS.items():
        if head.startswith(magic):
            return driver
    raise SourceError(
        f"{name} is not in a format that untrusted=True reads: GeoTIFF, JPEG 2000, PNG, JPEG."
    )


def check_dataset(name: str, dataset: Any, how: ReadOptions) -> None:
    """Refuse what cannot be upscaled or exceeds the limits, before any pixel is decoded."""
    if dataset.count == 0:
        parts = dataset.subdatasets
        if parts and not how.untrusted:
            raise UsageError(f"{name} holds several rasters: name one of {', '.join(parts)}")
        raise SourceError(f"{name} holds no bands.")
    types = sorted(set(dataset.dtypes))
    if len(types) > 1:
        raise SourceError(
            f"{name} has bands of different types ({', '.join(types)}): convert them to one first."
        )
    if types[0] not in DTYPES:
        raise SourceError(
            f"{name} has pixels of type {types[0]}: convert them to one of {', '.join(DTYPES)}."
        )
    limits = how.limits
    or_trust = ", or leave untrusted=True out if you trust the file" * how.untrusted
    pixels = dataset.width * dataset.height
    if pixels > limits.pixels:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels; at most {limits.pixels} "
            "are allowed. Raise max_pixels= if this is correct."
        )
    if dataset.count > limits.bands:
        raise SourceError(
            f"{name} declares {dataset.count} bands; at most {limits.bands} are allowed. "
            f"Write those to upscale to another file{or_trust}."
        )
    if (size := block_bytes(dataset)) > limits.block_bytes:
        rows, cols = dataset.block_shapes[0]
        raise SourceError(
            f"{name} has blocks of {cols} x {rows} pixels and {readable(size)}; at most "
            f"{readable(limits.block_bytes)} may be decoded at once. Rewrite it in tiles with "
            f"gdal_translate -co TILED=YES{or_trust}."
        )
    path = Path(name)
    if os.path.isfile(name) and pixels > limits.pixels_per_byte * path.stat().st_size:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels in only "
            f"{path.stat().st_size} bytes. Raise max_pixels= if this is correct."
        )


def block_bytes(dataset: Any) -> int:
    """Bytes that are decoded at once, even for a small window."""
    rows, cols = dataset.block_shapes[0]
    interleaved = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    together = dataset.count if interleaved else 1
    return int(rows * cols * np.dtype(dataset.dtypes[0]).itemsize * together)
