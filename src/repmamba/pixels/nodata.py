"""Missing pixels: which values of a tile are usable, and how the others are filled.

A network spreads each value over its neighbourhood, so missing pixels are filled smoothly from the
others first, and are missing again in the result, scale x scale for each. The mask of missing
pixels comes from the raster (GDAL's dataset mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import UsageError
from repmamba.pixels.radiometry import is_nodata, type_range

Number = TypeVar("Number", bound=np.generic)
# one for all bands, or one for each; "none": no value is nodata
Nodata: TypeAlias = tuple[float, ...] | Literal["none"]


def nodata_of(given: Any) -> Nodata:
    """One number, several or "none", as users give nodata. Raises UsageError."""
    if isinstance(given, str) and given == "none":
        return "none"
    numbers = () if isinstance(given, str) else tuple(map(float, np.atleast_1d(given)))
    if not numbers:
        raise UsageError(f"nodata={given!r:.80}: give a number, one for each band, or 'none'.")
    return numbers


def usable(
    raw: NDArray[np.generic], valid: NDArray[np.bool_], nodata: Sequence[float | None] = ()
) -> NDArray[np.bool_]:
    """Where a band's value is valid, finite and not nodata.

    raw: (bands, h, w).  valid: (h, w).
    nodata: Of each band, if it has one; it applies only to its band.
    Returns (bands, h, w), bool.
    """
    known: NDArray[np.bool_] = valid & np.isfinite(raw)
    for band, number in enumerate(nodata):
        if number is not None:
            known[band] &= ~is_nodata(raw[band], number)
    return known


def as_nodata(number: float, dtype: str) -> float:
    """A user's nodata as a value of this type. Raises UsageError if the type cannot hold it."""
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
    """raw: (bands, h, w) -> (h, w), True where every band has its nodata."""
    missing = np.ones(raw.shape[1:], bool)
    for band, number in zip(raw, nodata, strict=True):
        missing &= False if number is None else is_nodata(band, number)
    return missing


def filled(unit: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill unknown values with a smooth continuation of the known ones, which are unchanged.

    Each is interpolated from the mean of the known values in the smallest block around it that has
    any (of 2, 4, 8 ... pixels); 0 in a band without any. Its previous value has no influence.

    unit: (bands, h, w).  known: (bands, h, w).
    """
    if known.all():
        return unit
    if not known.any():
        return np.zeros_like(unit)
    if unit.shape[-2:] == (1, 1):
        return np.where(known, unit, np.float32(0))
    smooth = _doubled(filled(*_halved(unit, known)))[..., : unit.shape[-2], : unit.shape[-1]]
    return np.where(known, unit, smooth)


def repeated(pixels: NDArray[Number], scale: int) -> NDArray[Number]:
    """Repeat each pixel of a mask or of numbers (..., h, w) scale x scale times."""
    return pixels.repeat(scale, axis=-2).repeat(scale, axis=-1)


def _halved(
    unit: NDArray[np.float32], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means and presence of known values in 2 x 2 blocks; an odd last line counts by itself."""
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
