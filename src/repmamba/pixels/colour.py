"""RGB and the Y of YCbCr (BT.601, studio range), as in the benchmarks."""

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import ShapeMismatch

LUMA = np.array([65.481, 128.553, 24.966])  # of 255; with the offset of 16, Y runs from 16 to 235
LUMA_OFFSET = 16.0


def luma(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """Y of an RGB image, not rounded.

    MATLAB's rgb2ycbcr rounds Y for 8-bit input; the benchmarks' rules do not.

    rgb: (H, W, 3), 0 to 255.
    Returns (H, W) float64, 16 to 235. Raises ShapeMismatch: there are not three bands.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ShapeMismatch(f"Y needs an image (H, W, 3), and this one is {rgb.shape}.")
    return LUMA_OFFSET + rgb.astype(np.float64) @ (LUMA / 255.0)
