"""The expected error of each pixel, from two measures of doubt and a measured table.

The measures are how far the eight flips and rotations disagree, and the local contrast of the
result. The second ranks pixels by their error better than the first; their geometric mean ranks
them better than either. The table of error by doubt was measured on images with a known truth and
is kept in a file beside the weights: it holds for imagery like those images. Detail that all eight
invent alike cannot be detected.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from repmamba.errors import CheckpointError, UsageError

# hr pixels: side of the square over which both are measured
WINDOW = 3
SUFFIX = ".confidence.json"
# Shares of the pixels, by increasing doubt, that make an entry of the table; narrower where errors
# are largest.
PARTS = (
    0,
    0.01,
    0.03,
    *(n / 20 for n in range(1, 19)),
    0.925,
    0.95,
    0.97,
    0.98,
    0.99,
    0.995,
    0.999,
    1,
)


def doubt(sr: Tensor, variance: Tensor) -> Tensor:
    """Doubt about each pixel: the geometric mean of spread and contrast, unit, at least 0.

    sr: (bands, H, W), the mean of the eight.  variance: (any bands, H, W), of the eight -> (H, W).
    Spread and contrast are root mean squares over the bands and a square of 3 x 3 pixels: of the
    differences between the eight, and of the differences between sr and its mean in the square.
    """
    numbers = sr.double()  # a variance is a small difference of large squares
    contrast = (_around(numbers.square()) - _around(numbers).square()).mean(0).clamp_min(0)
    spread = _around(variance.double()).mean(0)
    return (spread * contrast).sqrt().sqrt()


def rounded(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 1/1000 of their value, more than their accuracy, to halve file sizes."""
    # 9 of the 23 bits of a mantissa
    kept = errors.view(np.uint32) + np.uint32(1 << 13) & np.uint32(0xFFFFC000)
    return kept.view(np.float32)


def _around(planes: Tensor) -> Tensor:
    """The mean in the square around each pixel of (bands, H, W); edges are replicated."""
    reach = WINDOW // 2
    return F.avg_pool2d(F.pad(planes[None], (reach,) * 4, mode="replicate"), WINDOW, stride=1)[0]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected error as a function of doubt, measured for one network; linear between entries."""

    network: str  # its digest, as in Upscaler
    measured_on: str  # name of the images
    doubt: tuple[float, ...]  # unit, increasing
    error: tuple[float, ...]  # unit, mean of |sr - hr| over the bands, not decreasing

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid table."""
        rising = (np.diff(self.doubt) > 0).all() and (np.diff(self.error) >= 0).all()
        if not self.doubt or len(self.doubt) != len(self.error) or not rising:
            raise UsageError(
                "A calibration needs as many errors as doubts, the doubts increasing, the errors "
                "not decreasing."
            )

    @classmethod
    def fitted(
        cls,
        doubt: NDArray[np.floating],
        error: NDArray[np.floating],
        *,
        network: str,
        measured_on: str,
    ) -> Self:
        """The table of measured pixels: means over shares of them, made monotone by pooling.

        doubt, error: (pixels,).
        """
        order = np.argsort(doubt, kind="stable")
        cuts = np.unique((np.array(PARTS) * len(order)).astype(int))
        pooled: list[tuple[float, float, int]] = []  # doubt, error, pixels
        for begin, end in pairwise(cuts):
            part = order[begin:end]
            pooled.append((float(doubt[part].mean()), float(error[part].mean()), end - begin))
            while len(pooled) > 1 and (
                pooled[-1][1] < pooled[-2][1] or pooled[-1][0] <= pooled[-2][0]
            ):
                (a, x, n), (b, y, m) = pooled[-2:]
                pooled[-2:] = [((n * a + m * b) / (n + m), (n * x + m * y) / (n + m), n + m)]
        doubts, errors, _ = zip(*pooled, strict=True)
        return cls(network, measured_on, doubts, errors)

    def expected_error(self, doubt: NDArray[np.floating]) -> NDArray[np.float32]:
        """doubt: unit, any shape -> the expected |sr - hr|, unit; constant beyond the ends."""
        expected: NDArray[np.float32] = np.interp(doubt, self.doubt, self.error).astype(np.float32)
        return expected

    def as_text(self) -> str:
        """The table as JSON, as in its file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def calibration_path(weights: Path) -> Path:
    """Path of a calibration: x4.confidence.json, or confidence.json in a folder."""
    return weights / SUFFIX.lstrip(".") if weights.is_dir() else weights.with_suffix(SUFFIX)


def read_calibration(weights: Path, network: str) -> Calibration | None:
    """The calibration of the network with this digest; None if there is none.

    Raises CheckpointError for a file that is not a calibration.
    """
    path = calibration_path(weights)
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = Calibration(
            values["network"],
            values["measured_on"],
            tuple(map(float, values["doubt"])),
            tuple(map(float, values["error"])),
        )
    except (ValueError, TypeError, KeyError) as damage:  # UsageError is a ValueError
        reason = str(damage).rstrip(".")
        raise CheckpointError(
            f"{path} is not a valid calibration: {reason}. Remove it, or restore it."
        ) from damage
    return found if found.network == network else None
