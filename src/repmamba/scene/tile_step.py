"""One tile: from what was read to what is written. Knows nothing of files, order or workers, so it can run anywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from repmamba.errors import OutOfMemory
from repmamba.inference.confidence import doubt
from repmamba.inference.consistency import consistent
from repmamba.inference.upscaler import SEEN, Upscaler, restored
from repmamba.pixels.nodata import enlarged, filled, usable
from repmamba.pixels.radiometry import SPIKE, Radiometry
from repmamba.scene.plan import ScenePlan
from repmamba.scene.stored import Pixels
from repmamba.tiles.plan import Tile


class TileResult(NamedTuple):
    """What becomes of a tile, at its write window."""

    numbers: NDArray[Any]  # (bands, h, w), in the output's type
    valid: NDArray[np.bool_]  # (h, w)
    expected_error: NDArray[np.float32] | None = None  # (groups of bands, h, w), in the output's numbers; NaN: missing


def upscale_tile(pixels: Pixels, tile: Tile, plan: ScenePlan, upscaler: Upscaler) -> TileResult:
    """pixels: raw (bands, h, w) and valid (h, w) of tile.read -> the same of tile.write, in the output's type.

    A missing pixel is missing in the result, scale x scale times; a tile without a valid pixel costs nothing. What lies
    under a mask or alpha stays, since some programs show it. With a plan that has a calibration, errors to expect come
    along. Raises OutOfMemory.
    """
    raw, valid = pixels
    footprint = enlarged(valid, plan.scale)[tile.keep.slices]
    try:
        colours, errors = _colours(raw[list(plan.places)], valid, footprint, tile, plan, upscaler)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise OutOfMemory(
            f"A tile of {tile.read.width} x {tile.read.height} pixels did not fit into memory; what is finished is "
            f"kept. Run again with a smaller workers=, or with a tile= below {plan.tiles.tile} (that starts anew)."
        ) from error
    if plan.alpha == "source":
        alpha = enlarged(raw[-1:], plan.scale)[:, *tile.keep.slices]
        colours = np.concatenate([colours, alpha])
    elif plan.alpha == "made":
        opaque = np.where(footprint, np.iinfo(colours.dtype).max, 0).astype(colours.dtype)
        colours = np.concatenate([colours, opaque[None]])
    return TileResult(colours, footprint, errors)


def _colours(
    raw: NDArray[Any],
    valid: NDArray[np.bool_],
    footprint: NDArray[np.bool_],
    tile: Tile,
    plan: ScenePlan,
    upscaler: Upscaler,
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """The bands that the network enlarges, missing pixels put in; one group after the other, for the sake of memory."""
    if plan.nodata is None:
        numbers = enlarged(raw, plan.scale)[:, *tile.keep.slices]
    else:
        numbers = np.full((len(plan.places), tile.keep.height, tile.keep.width), plan.nodata, raw.dtype)
    errors = None
    if plan.calibration is not None:
        errors = np.full((len(plan.groups), *numbers.shape[1:]), np.nan, np.float32)
    if footprint.any():
        for place, group in enumerate(plan.groups):
            radiometry = plan.radiometry.of_bands(group)
            known = usable(raw[list(group)], valid, [plan.band_nodata[band] for band in group])
            found, expected = _group(raw[list(group)], known, radiometry, tile, plan, upscaler)
            for band, enlarged_band in zip(group, found, strict=True):
                np.copyto(numbers[band], enlarged_band, where=footprint)
            if errors is not None and expected is not None:
                errors[place] = np.where(footprint, expected, np.float32(np.nan))
    return numbers, errors


def _group(
    raw: NDArray[Any],
    known: NDArray[np.bool_],
    radiometry: Radiometry,
    tile: Tile,
    plan: ScenePlan,
    upscaler: Upscaler,
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Bands that go through the network together: (bands, h, w) of tile.read -> the same of tile.write; errors (h, w).

    Where one of the bands is not known, so is the error of their mean: NaN.
    """
    whole = radiometry.to_unit(raw)
    spike = known & ((whole < SPIKE[0]) | (whole > SPIKE[1]))
    # A spike is cut off before anything is made of it, and what was cut off put back where it was.
    unit = filled(np.where(spike, whole.clip(*SEEN), whole), known)
    if plan.calibration is None:
        sr, variance = upscaler.enlarge(unit, (tuple(range(len(raw))),)), None
    else:
        sr, variance = upscaler.enlarge_with_variance(unit)
    if plan.consistent:
        sr = consistent(sr, torch.from_numpy(unit), torch.from_numpy(known & ~spike), plan.scale)
    if spike.any():
        beyond = torch.from_numpy(np.where(spike, whole - unit, np.float32(0)))
        sr = sr + F.interpolate(beyond[None], scale_factor=plan.scale, mode="bilinear")[0]
    numbers = radiometry.from_unit(sr[:, *tile.keep.slices].numpy(), nodata=plan.nodata)
    if not known.all():
        numbers = restored(numbers, raw, known, tile, plan.scale)
    if plan.calibration is None or variance is None:
        return numbers, None
    expected = plan.calibration.expected_error(doubt(sr, variance)[tile.keep.slices].numpy())
    expected = rounded(expected * np.float32(radiometry.high[0] - radiometry.low[0]))  # one range for all of a group
    everywhere = enlarged(np.logical_and.reduce(known), plan.scale)[tile.keep.slices]
    return numbers, np.where(everywhere, expected, np.float32(np.nan))


def rounded(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 1/1000 of their size or less, which is more than is known of them, for files of half the size."""
    kept = errors.view(np.uint32) + np.uint32(1 << 13) & np.uint32(0xFFFFC000)  # 9 of the 23 bits of a mantissa
    return kept.view(np.float32)
