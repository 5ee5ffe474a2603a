"""Missing pixels: which values of a tile can be used, what stands in for the others, and where they
are in the result.

A network spreads every value over its neighbourhood, so what is missing is first filled smoothly
from what is not, and is missing again in the result, exactly scale x scale pixels for each. The
rule that says which pixels of a file are missing is the raster's (GDAL's dataset mask); here a mask
is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError
from repmamba.pixels.radiometry import mistaken, type_range

Number = TypeVar("Number", bound=np.generic)


def usable(
    raw: NDArray[np.generic], valid: NDArray[np.bool_], nodata: Sequence[float | None] = ()
) -> NDArray[np.bool_]:
    """raw: (bands, h, w), valid: (h, w) -> (bands, h, w), True where a band's number is valid,
    finite and not nodata.

    nodata: of each band, where it has one. A number is missing in the band whose nodata it is, and
    in no other.
    """
    known: NDArray[np.bool_] = valid & np.isfinite(raw)
    for band, number in enumerate(nodata):
        if number is not None:
            known[band] &= ~mistaken(raw[band], number)
    return known


def as_nodata(number: float, dtype: str) -> float:
    """A nodata that a user gives, as numbers of this type can equal it. Raises UsageError for one
    that none can.
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            held = float(kind.type(number))
        if np.isfinite(number) == np.isfinite(held):
            return held
    elif float(number).is_integer() and np.iinfo(kind).min <= number <= np.iinfo(kind).max:
        return float(number)
    low, high = type_range(dtype)
    whole = "whole numbers " if kind.kind != "f" else "nan, and numbers "
    raise UsageError(
        f"Nodata {number:g} is not a number of type {dtype}, which holds {whole}from {low:g} to "
        f"{high:g}."
    )


def missing_everywhere(
    raw: NDArray[np.generic], nodata: Sequence[float | None]
) -> NDArray[np.bool_]:
    """raw: (bands, h, w) -> (h, w), True where each band has its nodata; a band without one has
    data everywhere.
    """
    missing = np.ones(raw.shape[1:], bool)
    for band, number in zip(raw, nodata, strict=True):
        missing &= False if number is None else mistaken(band, number)
    return missing


def filled(unit: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The tile with its unknown values replaced by a smooth continuation of the known ones, which
    stay as they are.

    unit, known: (bands, h, w). Each unknown value is interpolated from the mean of the known ones
    in the smallest block around it that has any (blocks of 2, 4, 8 ... pixels); 0 in a band without
    any. What stood there has no influence.
    """
    if known.all():
        return unit
    if not known.any():
        return np.zeros_like(unit)
    if unit.shape[-2:] == (1, 1):
        return np.where(known, unit, np.float32(0))
    smooth = _doubled(filled(*_halved(unit, known)))[..., : unit.shape[-2], : unit.shape[-1]]
    return np.where(known, unit, smooth)


def enlarged(pixels: NDArray[Number], scale: int) -> NDArray[Number]:
    """A mask or numbers (..., h, w) on the grid refined scale times: every pixel becomes scale x
    scale of its value.
    """
    return pixels.repeat(scale, axis=-2).repeat(scale, axis=-1)


def _halved(
    unit: NDArray[np.float32], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means of the known values in blocks of 2 x 2, and where there are any; a last odd row or
    column counts alone.
    """
    rows, cols = (range(0, length, 2) for length in unit.shape[-2:])
    sums = np.where(known, unit, np.float32(0))
    counts = known.astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(sums, rows, axis=-2), cols, axis=-1)
    counts = np.add.reduceat(np.add.reduceat(counts, rows, axis=-2), cols, axis=-1)
    return (sums / np.maximum(counts, 1)).astype(np.float32), counts > 0


def _doubled(coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Twice as many rows and columns, bilinear between the centres of the coarse pixels."""
    for axis in (-2, -1):
        last = coarse.shape[axis] - 1
        places = np.arange(last + 1)
        before = np.take(coarse, np.maximum(places - 1, 0), axis)
        after = np.take(coarse, np.minimum(places + 1, last), axis)
        pair = np.stack(
            [0.75 * coarse + 0.25 * before, 0.75 * coarse + 0.25 * after],
            axis=-1 if axis == -1 else -2,
        )
        shape = list(coarse.shape)
        shape[axis] *= 2
        coarse = pair.reshape(shape)
    return coarse
