"""One tile: from input pixels to output pixels, without files, so that it can run on any worker."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import OutOfMemory
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.nodata import repeated, usable
from repmamba.scene.plan import ScenePlan
from repmamba.scene.source.pixels import Pixels
from repmamba.tiles.plan import Tile


class TileResult(NamedTuple):
    """The result of a tile, at its write window."""

    numbers: NDArray[Any]  # (bands, h, w), in the output's type
    valid: NDArray[np.bool_]  # (h, w)
    # (groups of bands, h, w), in the output's units; NaN: missing
    expected_error: NDArray[np.float32] | None = None


def upscale_tile(pixels: Pixels, tile: Tile, plan: ScenePlan, upscaler: Upscaler) -> TileResult:
    """The pixels to write for a tile.

    pixels: raw (bands, h, w) and valid (h, w) of tile.read. A missing pixel is missing in the
    result, as scale x scale pixels; tiles without valid pixels are not computed. Values under a
    mask or alpha are kept, since some programs show them. A plan with a calibration also gives
    expected errors. Raises OutOfMemory.
    """
    raw, valid = pixels
    footprint = repeated(valid, plan.scale)[tile.keep.slices]
    try:
        colours, errors = _colours(raw[list(plan.places)], valid, footprint, tile, plan, upscaler)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise OutOfMemory(
            f"A tile of {tile.read.width} x {tile.read.height} pixels did not fit into memory. "
            "Finished tiles are kept: run again with a smaller workers=, or with a tile= below "
            f"{plan.tiles.tile} (which starts again)."
        ) from error
    if plan.alpha is not None:
        alpha = repeated(raw[plan.alpha], plan.scale)[tile.keep.slices]
        if plan.alpha_marks_missing:
            # Nodata from the options is transparent.
            alpha = np.where(footprint, alpha, alpha.dtype.type(0))
        colours = np.insert(colours, plan.alpha_at, alpha, axis=0)
    elif plan.alpha_marks_missing:
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
    """The upscaled bands with missing pixels inserted, group after group to save memory."""
    if plan.nodata is None:
        numbers = repeated(raw, plan.scale)[:, *tile.keep.slices]
    else:
        numbers = np.full(
            (len(plan.places), tile.keep.height, tile.keep.width), plan.nodata, raw.dtype
        )
    errors = None
    if plan.calibration is not None:
        errors = np.full((len(plan.groups), *numbers.shape[1:]), np.nan, np.float32)
    if footprint.any():
        for place, group in enumerate(plan.groups):
            nodata = [plan.band_nodata[band] for band in group]
            found, expected = upscaler.enlarge_numbers(
                raw[list(group)],
                usable(raw[list(group)], valid, nodata),
                tile.keep,
                plan.radiometry.of_bands(group),
                nodata=nodata,
                consistent=plan.consistent,
                calibration=plan.calibration,
            )
            for band, enlarged_band in zip(group, found, strict=True):
                np.copyto(numbers[band], enlarged_band, where=footprint)
            if errors is not None and expected is not None:
                errors[place] = np.where(footprint, expected, np.float32(np.nan))
    return numbers, errors
