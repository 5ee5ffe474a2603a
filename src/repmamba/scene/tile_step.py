"""One tile: from what was read to what is written. Knows nothing of files, order or workers, so it can run anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmamba.errors import OutOfMemory
from repmamba.inference.consistency import consistent
from repmamba.inference.upscaler import Upscaler, restored
from repmamba.pixels.nodata import enlarged, filled, usable
from repmamba.pixels.radiometry import Radiometry
from repmamba.scene.plan import ScenePlan
from repmamba.scene.stored import Pixels
from repmamba.tiles.plan import Tile


def upscale_tile(pixels: Pixels, tile: Tile, plan: ScenePlan, upscaler: Upscaler) -> Pixels:
    """pixels: raw (bands, h, w) and valid (h, w) of tile.read -> the same of tile.write, in the output's type.

    A missing pixel is missing in the result, scale x scale times; a tile without a valid pixel costs nothing. What lies
    under a mask or alpha stays, since some programs show it. Raises OutOfMemory.
    """
    raw, valid = pixels
    footprint = enlarged(valid, plan.scale)[tile.keep.slices]
    try:
        colours = _colours(raw[list(plan.places)], valid, footprint, tile, plan, upscaler)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise OutOfMemory(
            f"A tile of {tile.read.width} x {tile.read.height} pixels did not fit into memory; what is finished is "
            f"kept. Run again with fewer --workers, or with a --tile below {plan.tiles.tile} (that starts anew)."
        ) from error
    if plan.alpha == "source":
        alpha = enlarged(raw[-1:], plan.scale)[:, *tile.keep.slices]
        colours = np.concatenate([colours, alpha])
    elif plan.alpha == "made":
        opaque = np.where(footprint, np.iinfo(colours.dtype).max, 0).astype(colours.dtype)
        colours = np.concatenate([colours, opaque[None]])
    return colours, footprint


def _colours(
    raw: NDArray[Any],
    valid: NDArray[np.bool_],
    footprint: NDArray[np.bool_],
    tile: Tile,
    plan: ScenePlan,
    upscaler: Upscaler,
) -> NDArray[Any]:
    """The bands that the network enlarges, missing pixels put in; one group after the other, for the sake of memory."""
    if plan.nodata is None:
        numbers = enlarged(raw, plan.scale)[:, *tile.keep.slices]
    else:
        numbers = np.full((len(plan.places), tile.keep.height, tile.keep.width), plan.nodata, raw.dtype)
    if footprint.any():
        for group in plan.groups:
            enlarged_group = _group(raw[list(group)], valid, plan.radiometry.of_bands(group), tile, plan, upscaler)
            numbers[list(group)] = np.where(footprint, enlarged_group, numbers[list(group)])
    return numbers


def _group(
    raw: NDArray[Any],
    valid: NDArray[np.bool_],
    radiometry: Radiometry,
    tile: Tile,
    plan: ScenePlan,
    upscaler: Upscaler,
) -> NDArray[Any]:
    """Bands that go through the network together: (bands, h, w) of tile.read -> the same of tile.write."""
    known = usable(raw, valid)
    unit = filled(radiometry.to_unit(raw), known)
    sr = upscaler.enlarge(unit, (tuple(range(len(raw))),))
    if plan.consistent:
        sr = consistent(sr, torch.from_numpy(unit), torch.from_numpy(np.array(known)), plan.scale)
    numbers = radiometry.from_unit(sr[:, *tile.keep.slices].numpy(), nodata=plan.nodata)
    return numbers if known.all() else restored(numbers, raw, known, tile, plan.scale)
