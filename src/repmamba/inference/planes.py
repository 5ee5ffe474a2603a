"""Planes: the bands of an array, (bands, h, w), cut into tiles, upscaled and joined.

Arrays use the tile plan of scenes, so memory is bounded and the result does not depend on the
machine. What arrays of each kind need before and after is in arrays.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import OutsideTraining, UsageError, warn
from repmamba.inference.bands import Groups, group_bands
from repmamba.inference.workers import map_tiles
from repmamba.pixels.histogram import ValueHistogram, describe_fills, warn_of_fills
from repmamba.pixels.nodata import Nodata, as_nodata, nodata_of, usable
from repmamba.pixels.radiometry import Radiometry, check_dtype, range_of
from repmamba.tiles.plan import Tile, check_cut, plan_tiles
from repmamba.tiles.window import Window

# unit values are clipped to this before the network: it was trained on [0, 1], and one value of 1e6
# would spoil a whole tile
NETWORK_RANGE = (-0.5, 1.5)

# share of an array's values that may lie outside NETWORK_RANGE without a warning
MOST_OUTSIDE = 0.01

ValueRange: TypeAlias = tuple[float, float] | Literal["robust"]

# `Upscaler.enlarge_numbers`
EnlargeNumbers: TypeAlias = Callable[..., tuple[NDArray[Any], NDArray[np.float32] | None]]


@dataclass(frozen=True, slots=True)
class PlaneOptions:
    """How planes are cut and what their values mean. Raises UsageError."""

    tile: int  # lr pixels
    halo: int  # lr pixels
    workers: int  # tiles computed at once
    value_range: ValueRange | None  # black and white; None: by the type
    nodata: Nodata | None
    consistent: bool

    def __post_init__(self) -> None:
        check_cut(operator.index(self.tile), operator.index(self.halo))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", range_of(self.value_range, ("robust",)))
        if self.nodata is not None:
            object.__setattr__(self, "nodata", nodata_of(self.nodata))


class Part(NamedTuple):
    """Windows of an image, in lr pixels."""

    scene: Window  # the whole image
    have: Window  # the part of it that the planes hold
    wanted: Window  # the part to upscale


def upscale_planes(
    planes: NDArray[Any],
    enlarge: EnlargeNumbers,
    scale: int,
    network_bands: int,
    options: PlaneOptions,
    *,
    masked: NDArray[np.bool_] | None = None,
    part: Part | None = None,
) -> NDArray[Any]:
    """planes: (bands, h, w) -> (bands, scale h, scale w), same type.

    Pixels are missing where they equal the nodata of their band, or where masked, (bands, h, w), is
    True. part: which part of an image the planes are; by default the whole. Raises UsageError.
    """
    check_dtype(planes.dtype.name)
    bands, *size = planes.shape
    scene, have, wanted = part or [Window(0, 0, *size)] * 3
    groups = group_bands(bands, (0, 1, 2) if bands >= 3 else None, network_bands)
    nodata = _nodata_of_bands(options.nodata, planes)

    def known_in(window: tuple[slice, slice]) -> NDArray[np.bool_]:
        raw = planes[:, *window]
        known = usable(raw, np.ones(raw.shape[1:], bool), nodata)
        return known if masked is None else known & ~masked[:, *window]

    whole = slice(None), slice(None)
    radiometry = _radiometry(planes, known_in(whole), groups, options)
    plan = plan_tiles(
        scene.height, scene.width, scale, tile=options.tile, halo=options.halo, window=wanted
    )
    result = np.empty((bands, scale * wanted.height, scale * wanted.width), planes.dtype)

    def step(tile: Tile) -> tuple[Tile, NDArray[Any]]:
        read = tile.read.seen_from(have).slices
        raw, known = planes[:, *read], known_in(read)
        numbers = np.empty((bands, tile.keep.height, tile.keep.width), planes.dtype)
        for group in map(list, groups):
            numbers[group], _ = enlarge(
                raw[group],
                known[group],
                tile.keep,
                radiometry.of_bands(group),
                nodata=[nodata[band] for band in group],
                consistent=options.consistent,
            )
        return tile, numbers

    with closing(map_tiles(step, plan, options.workers, len(plan))) as results:
        for tile, numbers in results:
            result[:, *tile.write.slices] = numbers
    return result


def _nodata_of_bands(nodata: Nodata | None, planes: NDArray[Any]) -> tuple[float | None, ...]:
    """The nodata of each band, as the type stores it. Raises UsageError."""
    bands = len(planes)
    if nodata is None or nodata == "none":
        return (None,) * bands
    if len(nodata) not in (1, bands):
        raise UsageError(
            f"nodata has {len(nodata)} numbers, but the image has {bands} bands: give one number "
            "for all bands, or one for each."
        )
    return tuple(as_nodata(number, planes.dtype.name) for number in nodata * (bands // len(nodata)))


def _radiometry(
    planes: NDArray[Any], known: NDArray[np.bool_], groups: Groups, options: PlaneOptions
) -> Radiometry:
    """The linear map of each band. Warns if the network would not see the values as they are."""
    bands, value_range = len(planes), options.value_range
    usual = Radiometry.of_type(planes.dtype.name, bands)
    if value_range is None:
        if planes.dtype.kind == "f":
            _warn_of_values_outside(planes[known])
        return usual
    if value_range != "robust":
        return replace(usual, low=(value_range[0],) * bands, high=(value_range[1],) * bands)
    low, high = list(usual.low), list(usual.high)
    histograms = [ValueHistogram() for _ in groups]
    for group, histogram in zip(groups, histograms, strict=True):
        for band in group:
            histogram.add(planes[band][known[band]])
        if (found := histogram.range()) is not None:
            for band in group:
                low[band], high[band] = found
    if options.nodata != "none":
        warn_of_fills("The image", describe_fills(histograms, planes.dtype.name))
    return replace(usual, low=tuple(low), high=tuple(high))


def _warn_of_values_outside(numbers: NDArray[np.floating[Any]]) -> None:
    outside = np.count_nonzero((numbers < NETWORK_RANGE[0]) | (numbers > NETWORK_RANGE[1]))
    if outside > MOST_OUTSIDE * numbers.size:
        warn(
            f"Floats are expected in [0, 1], and {outside / numbers.size:.0%} of these lie far "
            "outside; they are upscaled bilinearly. Give value_range=(low, high) or "
            "value_range='robust'.",
            OutsideTraining,
        )
