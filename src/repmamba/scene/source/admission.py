"""Admission: which sources are opened at all, and what they may declare before memory is taken for
them.

The user's own files are read wherever they are named, virtual rasters and addresses included. A
stranger's are regular files of four formats, known by their first bytes, without side-cars, and
small.
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
from repmamba.pixels.radiometry import DTYPES

GDAL_SETTINGS = {
    # else what is at an address now is mixed with what was there before
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/",
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # the fast way reads a truncated PNG without a word
}
# a side-car file of a stranger may name any file of this machine, or another one's address
STRANGERS_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}
STRANGERS_DRIVERS = {  # first bytes -> the only driver that is tried
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}


VIRTUAL = "<VRTDataset"  # begins a virtual raster, which may also stand in the place of a name
RASTER_FOLDERS = (".SAFE", ".ZARR", ".GDB")  # endings of folders that GDAL reads as one raster


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may declare before memory is taken for it."""

    pixels: int = 1 << 36
    bands: int = 1000
    block_bytes: int = 1 << 32
    pixels_per_byte: float = float("inf")  # of the file

    @classmethod
    def for_strangers(cls) -> Limits:
        """For files whose maker is not the one who runs this."""
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
    nodata: tuple[float, ...] | None = None  # one for all bands, or one a band
    alpha: bool = True
    bands: tuple[int | str, ...] | None = None  # data, even where the file says alpha

    def __post_init__(self) -> None:
        if self.on_corrupt not in ("error", "fill"):
            raise UsageError(f"on_corrupt={self.on_corrupt!r}: give 'error' or 'fill'.")
        if self.nodata is not None:
            object.__setattr__(self, "nodata", tuple(map(float, np.ravel(self.nodata))))
        if self.bands is not None:
            object.__setattr__(self, "bands", band_selection(self.bands))

    @property
    def fill_corrupt(self) -> bool:
        """Whether blocks that cannot be read are missing pixels, and counted."""
        return self.on_corrupt == "fill"

    @property
    def limits(self) -> Limits:
        """What is allowed, max_pixels included."""
        usual = Limits.for_strangers() if self.untrusted else Limits()
        if self.max_pixels is None:
            return usual
        return Limits(self.max_pixels, usual.bands, usual.block_bytes)


def band_selection(bands: Iterable[int | str]) -> tuple[int | str, ...]:
    """Numbers, from 1, and names of bands. Raises UsageError for one text in their place."""
    if isinstance(bands, str):
        raise UsageError(f"{bands!r} is one text: give the numbers or names of bands as a list.")
    return tuple(band if isinstance(band, str) else operator.index(band) for band in bands)


def check_file(name: str, how: ReadOptions) -> str | None:
    """Look at the file before GDAL does; the driver to open it with, None for whichever takes
    it.
    """
    # a whole virtual raster may stand there, too long for a file's name
    path, there = Path(name), os.path.exists(name)
    named_elsewhere = (
        "://" in name or name.startswith(("/vsi", VIRTUAL)) or (":" in name and not there)
    )
    if named_elsewhere and not how.untrusted:
        return None
    if not there:
        raise SourceError(f"{name} does not exist: check the path.")
    if path.is_dir() and (how.untrusted or path.suffix.upper() not in RASTER_FOLDERS):
        raise SourceError(f"{name} is a folder: name the files in it.")
    if path.is_dir():
        return None
    if not path.is_file():
        raise SourceError(f"{name} is no regular file: name one that is.")
    if path.stat().st_size == 0:
        raise SourceError(f"{name} is empty: it has 0 bytes.")
    if not how.untrusted:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}.") from error
    for magic, driver in STRANGERS_DRIVERS.items():
        if head.startswith(magic):
            return driver
    raise SourceError(
        f"{name} is none of the formats taken from strangers: GeoTIFF, JPEG 2000, PNG, JPEG."
    )


def check_dataset(name: str, dataset: Any, how: ReadOptions) -> None:
    """Refuse what cannot be enlarged, and what declares more than is allowed, before a pixel is
    decoded.
    """
    if dataset.count == 0:
        parts = dataset.subdatasets
        if parts and not how.untrusted:
            raise UsageError(f"{name} holds several rasters; name one of them: {', '.join(parts)}")
        raise SourceError(f"{name} holds no bands.")
    types = sorted(set(dataset.dtypes))
    if len(types) > 1:
        raise SourceError(
            f"{name} has bands of several types ({', '.join(types)}); give them one type first."
        )
    if types[0] not in DTYPES:
        raise SourceError(
            f"{name} has pixels of type {types[0]}; these can be enlarged: {', '.join(DTYPES)}."
        )
    limits, or_trust = (
        how.limits,
        ", or leave out untrusted=True if you trust its maker" if how.untrusted else "",
    )
    pixels = dataset.width * dataset.height
    if pixels > limits.pixels:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels, and {limits.pixels} are "
            "allowed; "
            "raise max_pixels= if that is meant."
        )
    if dataset.count > limits.bands:
        raise SourceError(
            f"{name} declares {dataset.count} bands, and {limits.bands} are allowed; "
            f"write those that are to be enlarged to a file of their own{or_trust}."
        )
    if (size := block_bytes(dataset)) > limits.block_bytes:
        rows, cols = dataset.block_shapes[0]
        raise SourceError(
            f"{name} has blocks of {cols} x {rows} pixels and {readable(size)}, more than may be "
            "decoded at once "
            f"({readable(limits.block_bytes)}); write it anew in tiles, with gdal_translate -co "
            f"TILED=YES{or_trust}."
        )
    path = Path(name)
    if os.path.isfile(name) and pixels > limits.pixels_per_byte * path.stat().st_size:
        raise SourceError(
            f"{name} declares {dataset.width} x {dataset.height} pixels in {path.stat().st_size} "
            "bytes, which no image "
            "needs so few for; raise max_pixels= if that is meant."
        )


def block_bytes(dataset: Any) -> int:
    """What is decoded at once, however small the window that is read."""
    rows, cols = dataset.block_shapes[0]
    together = (
        dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    )
    return int(rows * cols * np.dtype(dataset.dtypes[0]).itemsize * together)
