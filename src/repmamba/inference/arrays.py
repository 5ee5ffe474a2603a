"""Images in memory of each kind: to planes (bands, h, w), and the result back to the same kind.

numpy arrays, torch tensors, xarray.DataArray (dataarray.py) and PIL.Image (pillow.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmamba.errors import ShapeMismatch, UsageError
from repmamba.inference.dataarray import (
    blockwise,
    dataarray_like,
    is_dataarray,
    is_lazy,
    planes_of_dataarray,
)
from repmamba.inference.pillow import (
    in_upscalable_mode,
    is_picture,
    picture_like,
    planes_of_picture,
)
from repmamba.inference.planes import Part, PlaneOptions
from repmamba.pixels.nodata import repeated
from repmamba.tiles.window import Window

MOST_BANDS = 16  # of an array whose first axis may be its bands by mistake

Layout: TypeAlias = Literal["bands-first", "bands-last"]

# `planes.upscale_planes` with a network: (planes, options=, masked=, part=) -> planes
UpscalePlanes: TypeAlias = Callable[..., NDArray[Any]]


def upscale_image(
    image: Any, upscale: UpscalePlanes, scale: int, options: PlaneOptions, layout: Layout | None
) -> Any:
    """The upscaled image, of the same kind. Raises ShapeMismatch, UsageError, MissingExtra."""
    if layout is not None and (isinstance(image, Tensor) or not isinstance(image, np.ndarray)):
        raise UsageError(
            f"layout={layout!r} is for numpy arrays: a tensor has its bands first, and a "
            "DataArray names its axes."
        )
    if layout not in (None, "bands-first", "bands-last"):
        raise UsageError(f"layout={layout!r}: give 'bands-first' or 'bands-last'.")
    if isinstance(image, Tensor):
        return _upscale_tensor(image, partial(upscale, options=options))
    if is_dataarray(image):
        return _upscale_dataarray(image, upscale, scale, options)
    if is_picture(image):
        return _upscale_picture(image, partial(upscale, options=options), scale)
    if isinstance(image, np.ndarray) and not isinstance(image, np.matrix):
        return _upscale_numpy(image, partial(upscale, options=options), scale, layout)
    raise UsageError(
        f"A {type(image).__name__} cannot be upscaled; give a numpy array, a torch tensor, an "
        "xarray.DataArray or a PIL.Image. For files there is upscale_file."
    )


def _upscale_numpy(
    array: NDArray[Any], upscale: UpscalePlanes, scale: int, layout: Layout | None
) -> NDArray[Any]:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ShapeMismatch(
            f"An array of shape {array.shape} is not an image; give (H, W) or (H, W, C), none of "
            "them 0."
        )
    if array.ndim == 3 and layout is None and _looks_bands_first(array.shape):
        raise ShapeMismatch(
            f"An array of shape {array.shape} looks like (bands, rows, columns), as rasterio "
            "reads, but (rows, columns, bands) is expected: give layout='bands-first', or "
            "np.moveaxis(array, 0, 2). If it is (rows, columns, bands), give layout='bands-last'."
        )
    axis = 0 if layout == "bands-first" else 2
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, axis, 0)
    if isinstance(planes, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(planes)
        result: NDArray[Any] = np.ma.array(
            upscale(planes.data, masked=masked),
            mask=repeated(masked, scale),
            fill_value=planes.fill_value,
        )
    else:
        result = upscale(planes)
    return result[0] if array.ndim == 2 else np.moveaxis(result, 0, axis).copy()


def _looks_bands_first(shape: tuple[int, ...]) -> bool:
    """Whether three axes are more likely (bands, rows, columns) than (rows, columns, bands)."""
    return shape[0] <= MOST_BANDS and shape[1] > 1 and shape[2] > max(4, 2 * shape[0])


def _upscale_tensor(tensor: Tensor, upscale: UpscalePlanes) -> Tensor:
    if tensor.ndim not in (3, 4) or 0 in tensor.shape or not tensor.is_floating_point():
        raise ShapeMismatch(
            f"A tensor of shape {tuple(tensor.shape)} and {tensor.dtype} is not an image; give "
            "(C, H, W) or (B, C, H, W), floating point, none of them 0."
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        raise UsageError(
            f"A tensor of layout {tensor.layout} on {tensor.device} cannot be upscaled; give a "
            "dense one with values: tensor.to_dense()."
        )
    precision = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    images = tensor.detach().resolve_neg().to("cpu", precision)
    results = [upscale(image.numpy()) for image in (images if tensor.ndim == 4 else images[None])]
    result = torch.from_numpy(np.stack(results) if tensor.ndim == 4 else results[0])
    return result.to(tensor.device, tensor.dtype)


def _upscale_picture(picture: Any, upscale: UpscalePlanes, scale: int) -> Any:
    picture = in_upscalable_mode(picture)
    planes, alpha = planes_of_picture(picture)
    masked = None if alpha is None else np.broadcast_to(alpha == 0, planes.shape)
    return picture_like(picture, upscale(planes, masked=masked), alpha, scale)


def _upscale_dataarray(
    array: Any, upscale: UpscalePlanes, scale: int, options: PlaneOptions
) -> Any:
    planes, declared = planes_of_dataarray(array)
    given = options.nodata
    if given is None and declared is not None:
        options = replace(options, nodata=(declared,))
    if is_lazy(array):
        result = _upscale_lazily(planes, upscale, scale, options)
    else:
        result = upscale(planes, options=options)
    return dataarray_like(array, result, scale, given)


def _upscale_lazily(planes: Any, upscale: UpscalePlanes, scale: int, options: PlaneOptions) -> Any:
    """planes: a dask array (bands, h, w) -> a dask array (bands, scale h, scale w)."""
    if options.value_range == "robust":
        raise UsageError(
            "value_range='robust' needs the whole array, but this one is computed lazily; give "
            "value_range=(low, high), or call array.compute() first."
        )
    scene = Window(0, 0, *planes.shape[1:])

    def enlarge(numbers: NDArray[Any], read: Window, block: Window) -> NDArray[Any]:
        return upscale(numbers, options=options, part=Part(scene, read, block))

    return blockwise(planes, scale, options.tile, options.halo, enlarge)
