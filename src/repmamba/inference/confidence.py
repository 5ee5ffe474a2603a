"""How far a result can be trusted: the error to expect in each pixel, from two signs of doubt and a
measured table.

The signs are how far the eight flips and rotations disagree, and how strong the contrast of the
result is. Alone, the second ranks pixels by their error better than the first; their geometric mean
ranks them better than either. Which error goes with how much doubt was measured on pictures with a
known truth, and is kept in a file beside the weights: it holds for imagery like those pictures.
Detail that all eight invent alike leaves no sign, and no table knows of it.
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

WINDOW = 3  # hr pixels: edge of the square in which both signs are taken
SUFFIX = ".confidence.json"
# Parts of the pixels, least doubt first, that share an entry of the table; narrower where errors
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
    """How little can be said of each pixel: the geometric mean of spread and contrast, in unit,
    never negative.

    sr: (bands, H, W), the mean of the eight.  variance: (any bands, H, W), of the eight, of the
    same pixels -> (H, W).
    Spread and contrast are root mean squares, over the bands and a square of 3 x 3 pixels: of what
    the eight differ by, and of what sr differs by from its mean in the square.
    """
    numbers = sr.double()  # a variance is a small difference of large squares
    contrast = (_around(numbers.square()) - _around(numbers).square()).mean(0).clamp_min(0)
    spread = _around(variance.double()).mean(0)
    return (spread * contrast).sqrt().sqrt()


def rounded(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 1/1000 of their size or less, which is more than is known of them, for files of
    half the size.
    """
    # 9 of the 23 bits of a mantissa
    kept = errors.view(np.uint32) + np.uint32(1 << 13) & np.uint32(0xFFFFC000)
    return kept.view(np.float32)


def _around(planes: Tensor) -> Tensor:
    """The mean in the square around each pixel; planes: (bands, H, W). At an edge, the last pixel
    is repeated.
    """
    reach = WINDOW // 2
    return F.avg_pool2d(F.pad(planes[None], (reach,) * 4, mode="replicate"), WINDOW, stride=1)[0]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which error goes with how much doubt, as measured with one network. Between two entries lies
    a straight line.
    """

    network: str  # its digest, as in Upscaler
    measured_on: str  # pictures, in words
    doubt: tuple[float, ...]  # unit, rising
    error: tuple[float, ...]  # unit, mean of |sr - hr| over the bands, never falling

    def __post_init__(self) -> None:
        """Raise UsageError where it is no table."""
        steps = np.diff(self.doubt), np.diff(self.error)
        if (
            len(self.doubt) != len(self.error)
            or not self.doubt
            or (steps[0] <= 0).any()
            or (steps[1] < 0).any()
        ):
            raise UsageError(
                "A calibration needs as many errors as doubts, the doubts rising, the errors not "
                "falling."
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
        """The table of measured pixels: means of parts of them, made monotone by pooling. doubt,
        error: (pixels,).
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
        return cls(
            network,
            measured_on,
            tuple(entry[0] for entry in pooled),
            tuple(entry[1] for entry in pooled),
        )

    def expected_error(self, doubt: NDArray[np.floating]) -> NDArray[np.float32]:
        """doubt: unit, any shape -> the mean of |sr - hr| to expect, unit. Beyond the table's ends,
        that of the end.
        """
        expected: NDArray[np.float32] = np.interp(doubt, self.doubt, self.error).astype(np.float32)
        return expected

    def as_text(self) -> str:
        """The table as it stands in its file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def calibration_path(weights: Path) -> Path:
    """Where the calibration of weights lies: x4.confidence.json beside x4.safetensors,
    confidence.json in a folder.
    """
    return weights / SUFFIX.lstrip(".") if weights.is_dir() else weights.with_suffix(SUFFIX)


def read_calibration(weights: Path, network: str) -> Calibration | None:
    """The calibration of a network, by its digest; None where there is none, or one of another
    network.

    Raises CheckpointError for a file that is none.
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
        raise CheckpointError(
            f"{path} is no calibration that can be read: {damage}. Remove it, or restore it."
        ) from damage
    return found if found.network == network else None
