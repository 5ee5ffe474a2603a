"""MATLAB's imresize: bicubic, antialiased when downsampling, edges mirrored.

The published LR images were made with it, and no common library computes the same: Pillow rounds to
8 bit between its passes and drops taps at the edges, torch and OpenCV use another kernel or no
antialiasing. The NumPy function (float64, equal to a published pair in every pixel) and its
differentiable version in torch share the taps. Torch is imported only where it is used.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import ShapeMismatch, UsageError

if TYPE_CHECKING:
    import torch


def imresize(image: NDArray[np.generic], scale: float) -> NDArray[np.float64]:
    """Resize as MATLAB's imresize(im2double(image), scale), without rounding or clipping.

    Source: section 11 of the specification; the first pass is along the row axis, as in MATLAB.

    image: (H, W) or (H, W, C), values of any range; integers are not divided by theirs.
    scale: 4 enlarges four times, 1/4 downsamples.
    Returns (ceil(scale H), ceil(scale W)) or with C, float64. Raises ShapeMismatch: the image has
    another number of axes, or is empty; UsageError: the scale is not positive.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ShapeMismatch(
            f"An image of shape {image.shape} cannot be resized; give (H, W) or (H, W, C), none of "
            "them 0."
        )
    resized = image.astype(np.float64)
    for axis in (0, 1):
        weights, sources = contributions(resized.shape[axis], scale)
        shape = [1] * resized.ndim
        shape[axis] = -1
        resized = sum(
            weight.reshape(shape) * resized.take(source, axis)
            for weight, source in zip(weights, sources, strict=True)
        )  # tap by tap, so that memory does not grow with the scale
    return resized


def imresize_torch(image: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Resize a floating tensor (B, C, H, W) as imresize does, on its device, differentiably.

    The result is (B, C, ceil(scale H), ceil(scale W)), neither rounded nor clipped. Raises
    ShapeMismatch, UsageError.
    """
    import torch

    if image.ndim != 4 or 0 in image.shape:
        raise ShapeMismatch(
            f"Shape {tuple(image.shape)} cannot be resized; give a tensor (B, C, H, W), none of "
            "them 0."
        )
    resized = image
    for axis in (2, 3):
        weights, sources = contributions(resized.shape[axis], scale)
        shape = [1] * 4
        shape[axis] = -1
        total = None
        for weight, source in zip(weights, sources, strict=True):
            index = torch.from_numpy(source).to(image.device)
            term = torch.from_numpy(weight).to(image).reshape(shape) * resized.index_select(
                axis, index
            )
            total = term if total is None else total + term
        assert total is not None  # there are always taps
        resized = total
    return resized


def to_uint8(unit: NDArray[np.floating]) -> NDArray[np.uint8]:
    """An image in [0, 1] as 8 bit, as MATLAB writes it: clipped, then rounded half up."""
    rounded: NDArray[np.uint8] = np.floor(255.0 * np.clip(unit, 0.0, 1.0) + 0.5).astype(np.uint8)
    return rounded


def contributions(length: int, scale: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights and source indices for resizing an axis, both (taps, ceil(scale length)).

    The weights of each output pixel sum to 1; indices, from 0, are inside the axis (mirrored, with
    the edge pixel repeated). Raises UsageError.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"The scale is {scale}; give a positive number, such as 4 or 1/4.")
    resized = resized_length(length, scale)
    width = 4 / min(scale, 1.0)
    # counted from 1, as in MATLAB
    centre = np.arange(1, resized + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    shrink = min(scale, 1.0)  # antialiasing: the kernel widens as the image shrinks
    weights = shrink * cubic(shrink * (centre - taps))
    weights /= weights.sum(0)
    mirrored = (taps.astype(np.int64) - 1) % (2 * length)
    sources = np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    needed = (weights != 0).any(1)
    return np.ascontiguousarray(weights[needed]), np.ascontiguousarray(sources[needed])


def resized_length(length: int, scale: float) -> int:
    """Pixels of an axis of `length` pixels after imresize, ceil(scale length)."""
    # 1/3 is not a binary fraction: without the tolerance, a multiple of 3 could gain a pixel.
    return math.ceil(scale * length - 1e-9)


def cubic(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2, of offsets in pixels; 0 from 2 on."""
    t = np.abs(offset)
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, inner, np.where(t <= 2, outer, 0.0))
