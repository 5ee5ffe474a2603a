"""Depthwise convolutions and their gradients as compiled loops over channels-last maps; imported only where Numba is.

Every kernel takes samples first..last of a batch, so that threads can share it, and leaves its sums per sample: added
up afterwards in the order of the batch, they do not depend on the number of threads. The innermost loop runs over
channels, contiguous in memory, and becomes vector code. Maps that a window slides over come padded with zeros.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Map = NDArray[Any]

_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})

MEAN_Y, VAR_Y, MEAN_X, VAR_X, COV_XY = range(5)
"""Rows of the statistics of RepConv's two inputs to its batch normalisations: y = dw3x3(x), and x itself."""


@_compiled  # type: ignore[untyped-decorator]
def pad(x: Map, first: int, last: int, padded: Map) -> None:
    """x (B, H, W, C), any strides -> padded (B, H + 2m, W + 2m, C), m zeros on each side."""
    _, height, width, channels = x.shape
    margin = (padded.shape[1] - height) // 2
    for b in range(first, last):
        padded[b, :margin] = 0
        padded[b, height + margin :] = 0
        for i in range(height):
            row = padded[b, i + margin]
            row[:margin] = 0
            row[width + margin :] = 0
            for j in range(width):
                for c in range(channels):
                    row[j + margin, c] = x[b, i, j, c]


@_compiled  # type: ignore[untyped-decorator]
def _window(weight: Map, top: Map, middle: Map, bottom: Map, j: int, c: int) -> Any:
    """The nine products of one channel under a window that starts at column j of three padded rows."""
    return (
        (weight[0, c] * top[j, c] + weight[1, c] * top[j + 1, c] + weight[2, c] * top[j + 2, c])
        + (weight[3, c] * middle[j, c] + weight[4, c] * middle[j + 1, c] + weight[5, c] * middle[j + 2, c])
        + (weight[6, c] * bottom[j, c] + weight[7, c] * bottom[j + 1, c] + weight[8, c] * bottom[j + 2, c])
    )


@_compiled  # type: ignore[untyped-decorator]
def convolve3(padded: Map, weight: Map, bias: Map, first: int, last: int, result: Map) -> None:
    """3x3, weight (9, C), bias (C): padded (B, H + 2, W + 2, C) -> result (B, H, W, C)."""
    _, height, width, channels = result.shape
    for b in range(first, last):
        for i in range(height):
            top, middle, bottom = padded[b, i], padded[b, i + 1], padded[b, i + 2]
            for j in range(width):
                for c in range(channels):
                    result[b, i, j, c] = bias[c] + _window(weight, top, middle, bottom, j, c)


@_compiled  # type: ignore[untyped-decorator]
def moments(padded: Map, weight: Map, first: int, last: int, sums: Map) -> None:
    """Sums over a sample of y, y^2, x, x^2 and x y, y = dw3x3(x): sums (B, 5, C), float64."""
    _, height, width, channels = padded.shape
    row = np.empty((5, channels), padded.dtype)
    s0, s1, s2, s3, s4 = row[0], row[1], row[2], row[3], row[4]
    for b in range(first, last):
        sums[b] = 0
        for i in range(height - 2):
            top, middle, bottom = padded[b, i], padded[b, i + 1], padded[b, i + 2]
            row[:] = 0
            for j in range(width - 2):
                for c in range(channels):
                    x = middle[j + 1, c]
                    y = _window(weight, top, middle, bottom, j, c)
                    s0[c] += y
                    s1[c] += y * y
                    s2[c] += x
                    s3[c] += x * x
                    s4[c] += x * y
            sums[b] += row  # a row at a time: sums of a few dozen float32 values lose nothing


@_compiled  # type: ignore[untyped-decorator]
def gradient_sums(padded: Map, weight: Map, gradient: Map, first: int, last: int, sums: Map) -> None:
    """Sums over a sample of g, g y and g x: sums (B, 3, C), float64; gradient g (B, H, W, C)."""
    _, height, width, channels = gradient.shape
    row = np.empty((3, channels), padded.dtype)
    s0, s1, s2 = row[0], row[1], row[2]
    for b in range(first, last):
        sums[b] = 0
        for i in range(height):
            top, middle, bottom = padded[b, i], padded[b, i + 1], padded[b, i + 2]
            row[:] = 0
            for j in range(width):
                g = gradient[b, i, j]
                for c in range(channels):
                    x = middle[j + 1, c]
                    y = _window(weight, top, middle, bottom, j, c)
                    s0[c] += g[c]
                    s1[c] += g[c] * y
                    s2[c] += g[c] * x
            sums[b] += row


@_compiled  # type: ignore[untyped-decorator]
def branch_gradients(
    padded: Map, weight: Map, gradient: Map, mix: Map, first: int, last: int, padded_dy: Map, dx: Map
) -> None:
    """dy and the direct part of dx, each a combination of g, y and x whose weights `mix` (2, 4, C) holds: g, y, x, 1.

    padded_dy: (B, H + 2, W + 2, C), its margin set to zero.  dx: (B, H, W, C).
    """
    _, height, width, channels = gradient.shape
    yg, yy, yx, y1 = mix[0, 0], mix[0, 1], mix[0, 2], mix[0, 3]
    xg, xy, xx, x1 = mix[1, 0], mix[1, 1], mix[1, 2], mix[1, 3]
    for b in range(first, last):
        padded_dy[b, 0] = 0
        padded_dy[b, height + 1] = 0
        for i in range(height):
            top, middle, bottom = padded[b, i], padded[b, i + 1], padded[b, i + 2]
            out = padded_dy[b, i + 1]
            out[0] = 0
            out[width + 1] = 0
            for j in range(width):
                for c in range(channels):
                    g = gradient[b, i, j, c]
                    x = middle[j + 1, c]
                    y = _window(weight, top, middle, bottom, j, c)
                    out[j + 1, c] = yg[c] * g + yy[c] * y + yx[c] * x + y1[c]
                    dx[b, i, j, c] = xg[c] * g + xy[c] * y + xx[c] * x + x1[c]


@_compiled  # type: ignore[untyped-decorator]
def transpose3(padded_dy: Map, weight: Map, first: int, last: int, dx: Map) -> None:
    """dx += the transposed 3x3 convolution of dy; padded_dy (B, H + 2, W + 2, C), dx (B, H, W, C)."""
    _, height, width, channels = dx.shape
    turned = weight[::-1].copy()
    for b in range(first, last):
        for i in range(height):
            top, middle, bottom = padded_dy[b, i], padded_dy[b, i + 1], padded_dy[b, i + 2]
            for j in range(width):
                for c in range(channels):
                    dx[b, i, j, c] += _window(turned, top, middle, bottom, j, c)


@_compiled  # type: ignore[untyped-decorator]
def weight_gradient(padded: Map, dy: Map, first: int, last: int, sums: Map) -> None:
    """Sums over a sample of dy times the shifted x: sums (B, k * k, C), float64, k = 3 or 5.

    padded: (B, H + k - 1, W + k - 1, C).  dy: (B, H + 2 m, W + 2 m, C), its margin m of zeros 0 or more.
    """
    kernel = 3 if sums.shape[1] == 9 else 5
    height, width, channels = padded.shape[1] - kernel + 1, padded.shape[2] - kernel + 1, padded.shape[3]
    margin = (dy.shape[1] - height) // 2
    row = np.empty((kernel, channels), padded.dtype)
    for b in range(first, last):
        sums[b] = 0
        for i in range(height):
            gradient = dy[b, i + margin]
            for ki in range(kernel):
                x = padded[b, i + ki]
                row[:] = 0
                if kernel == 3:
                    for j in range(width):
                        for c in range(channels):
                            g = gradient[j + margin, c]
                            row[0, c] += g * x[j, c]
                            row[1, c] += g * x[j + 1, c]
                            row[2, c] += g * x[j + 2, c]
                else:
                    for j in range(width):
                        for c in range(channels):
                            g = gradient[j + margin, c]
                            row[0, c] += g * x[j, c]
                            row[1, c] += g * x[j + 1, c]
                            row[2, c] += g * x[j + 2, c]
                            row[3, c] += g * x[j + 3, c]
                            row[4, c] += g * x[j + 4, c]
                sums[b, ki * kernel : (ki + 1) * kernel] += row
