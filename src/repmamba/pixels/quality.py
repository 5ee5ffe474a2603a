"""Estimates of noise and JPEG compression of an image, from the DCT of its 8 x 8 blocks.

Both look at windows of the image and need no reference. They do not detect blur, JPEG that was
resized or rotated afterwards, or smoothed noise.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# (bands, h, w), unit: float near [0, 1]; NaN marks missing pixels; their blocks do not count
Window = NDArray[np.floating]

BLOCK = 8
SMALLEST = 3 * BLOCK  # fewest rows and columns of a window
LEVELS = 255.0  # 8-bit levels per unit

# frequency of each coefficient, the sum over both axes
ORDER = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))

# coefficients that show whether a block is flat, and those that are noise in a flat block
SLOW, FAST = (ORDER > 0) & (ORDER < 9), ORDER >= 11

FLATTEST, FEWEST = 0.005, 64  # share of all blocks used to estimate noise, and their least number
NOTHING = 0.5  # a smaller coefficient, in levels, counts as zero
ROUNDING = 0.1  # variation, in levels, of a block that is constant up to rounding
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue, as in JPEG


def noise_level(windows: Sequence[Window]) -> float:
    """Standard deviation of the noise in levels of 255, mean over the bands; 0 if all is constant.

    It is estimated from the high-frequency coefficients of the flattest blocks. If an image is
    sharp texture everywhere, texture counts as noise. Source: Ponomarenko et al. 2007, "An
    automatic approach to lossy compression of AVIRIS images".
    """
    bands = (
        [[window[band] for window in windows] for band in range(len(windows[0]))] if windows else []
    )
    return float(np.mean([_noise_of(band) for band in bands])) if bands else 0.0


def blockiness(windows: Sequence[Window]) -> float:
    """Share of zero coefficients on the JPEG grid minus that off the grid, 0 to 1.

    About 0.01 without JPEG, 0.2 at quality 95, 0.4 at 85, 0.6 at 30. The windows must start at
    multiples of 8 pixels from each other. Of three or more bands, the first three are red, green
    and blue. Source: Nikoukhah et al. 2019, "JPEG grid detection based on the number of DCT zeros";
    zeros are counted over all blocks.
    """
    zeros, counts = np.zeros((BLOCK, BLOCK)), np.zeros((BLOCK, BLOCK))
    for window in windows:
        grey = np.tensordot(LUMA, window[:3], 1) if len(window) >= 3 else window[0]
        transformed = _transformed(grey)
        counted = (np.abs(transformed) < NOTHING).mean((2, 3))
        counted[~_varies(transformed)] = np.nan  # a constant block is zero at any offset
        for row in range(BLOCK):
            for col in range(BLOCK):
                found = counted[row::BLOCK, col::BLOCK]
                zeros[row, col] += np.nansum(found)
                counts[row, col] += np.isfinite(found).sum()
    if not counts.all():
        return 0.0
    shares = zeros / counts
    return float(shares.max() - np.median(shares))


def _noise_of(band: Sequence[NDArray[np.floating]]) -> float:
    """The noise of one band over all windows."""
    slow, fast = [], []
    for window in band:
        transformed = _transformed(window)
        squares = transformed[_varies(transformed)] ** 2  # constant blocks are clipped or not data
        slow.append(squares[:, SLOW].mean(1))
        fast.append(squares[:, FAST])
    flatness, power = np.concatenate(slow), np.concatenate(fast)
    if not len(flatness):
        return 0.0
    count = min(max(FEWEST, round(FLATTEST * len(flatness))), len(flatness))
    flattest = np.argpartition(flatness, count - 1)[:count]
    return float(np.sqrt(np.median(power[flattest].mean(0))))


def _transformed(grey: NDArray[np.floating]) -> NDArray[np.float32]:
    """(h, w) unit -> (h - 7, w - 7, 8, 8): the DCT, in levels, of every 8 x 8 block."""
    levels = np.ascontiguousarray(grey, np.float32) * np.float32(LEVELS)
    # (h, w - 7, 8)
    along = np.lib.stride_tricks.sliding_window_view(levels, BLOCK, axis=1) @ COSINES.T
    # (h - 7, w - 7, 8, 8): columns, rows
    across = np.lib.stride_tricks.sliding_window_view(along, BLOCK, axis=0)
    transformed: NDArray[np.float32] = across @ COSINES.T
    return transformed


def _varies(transformed: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which blocks are complete and not constant up to rounding."""
    waves = transformed.reshape(*transformed.shape[:2], -1)[..., 1:]
    return np.asarray((waves * waves).sum(-1) > ROUNDING**2)


def _cosines() -> NDArray[np.float32]:
    """The orthonormal DCT of 8 numbers: (frequency, position)."""
    places = np.arange(BLOCK)
    waves = np.cos(np.pi * (2 * places + 1) * places[:, None] / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves, np.float32)


COSINES = _cosines()
