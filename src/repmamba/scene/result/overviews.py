"""Overviews of a result: each pixel is the mean of up to four pixels of the level below.

They are computed here rather than by GDAL because every pixel of the file is later compared with
what was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]


def halved(
    data: Array,
    valid: Mask | None,
    *,
    nodata: Sequence[float | None] = (),
    alpha: int | None = None,
) -> tuple[Array, Mask | None]:
    """The mean of the pixels in each 2 x 2 that are not missing, and that exist at an odd edge.

    data (count, h, w), valid (h, w) or None -> (count, ceil(h/2), ceil(w/2)) and its valid or None.
    Integers are rounded half up. A pixel is missing if all four are; a mean equal to nodata is
    replaced by the largest of the four.
    nodata: of each band.
    alpha: index of the alpha band; where it is 0, the other bands are missing.
    """
    count, height, width = data.shape
    half = np.empty((count, -(-height // 2), -(-width // 2)), data.dtype)
    # One by one, because sums take eight bytes a pixel and there may be two hundred bands.
    for band in range(count):
        number = nodata[band] if nodata else None
        half[band] = _mean(data[band], _present(data, band, valid, number, alpha), number)
    return half, None if valid is None else np.logical_or.reduce(_quads(valid))


def _present(
    data: Array, band: int, valid: Mask | None, nodata: float | None, alpha: int | None
) -> Mask:
    if band == alpha:
        return np.ones(data.shape[1:], bool)
    present: Mask = np.logical_not(np.isnan(data[band]))
    if valid is not None:
        present &= valid
    elif alpha is not None:
        present &= data[alpha] != 0
    if nodata is not None:
        present &= np.not_equal(data[band], np.asarray(nodata).astype(data.dtype))
    return present


def _mean(values: Array, present: Mask, nodata: float | None) -> Array:
    known = values if present.all() else np.where(present, values, values.dtype.type(0))
    number: NDArray[np.uint8] = _summed(present, np.uint8)
    mean = _summed(known, np.float64)
    mean /= np.maximum(number, 1)
    whole = np.issubdtype(values.dtype, np.integer)
    half: Array = (np.floor(mean + 0.5) if whole else mean).astype(values.dtype)
    if nodata is not None:
        unlucky = np.logical_and(number > 0, np.equal(half, nodata))
        if unlucky.any():
            known_quads = np.where(_quads(present), _quads(values).astype(np.float64), -np.inf)
            largest: Array = known_quads.max(axis=0)
            half[unlucky] = largest[unlucky].astype(values.dtype)
    missing = nodata if nodata is not None else 0 if whole else np.nan
    half[number == 0] = missing
    return half


def _summed(values: Array, dtype: type[np.generic]) -> Array:
    """(h, w) -> (ceil(h/2), ceil(w/2)): sums of each 2 x 2 in dtype."""
    height, width = values.shape
    even = values
    if height % 2 or width % 2:
        even = np.pad(values, ((0, height % 2), (0, width % 2)))
    sums: Array = np.add(even[::2, ::2], even[::2, 1::2], dtype=dtype)
    sums += even[1::2, ::2]
    sums += even[1::2, 1::2]
    return sums


def _quads(values: Array) -> Array:
    """(h, w) -> (4, ceil(h/2), ceil(w/2)); zero or False beyond the edge."""
    height, width = values.shape
    even = np.zeros((height + height % 2, width + width % 2), values.dtype)
    even[:height, :width] = values
    return np.stack([even[row::2, col::2] for row in (0, 1) for col in (0, 1)])
