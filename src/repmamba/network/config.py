"""What a RepMamba network is built from: its scale and its options, and the published networks by
name.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from repmamba.errors import UsageError
from repmamba.scan.sizes import STATE

WIDTH = 64
"""Channels of the residual stream. Fixed: the split of CSSP and the widths of its four RMBs follow
from it.
"""

SPLIT = (8, 8, 16, 32)
"""Channels that enter CSSP with its four RMBs."""

RMB_WIDTHS = (8, 16, 32, 64)
"""Widths of the four chained RMBs: the running sums of SPLIT."""

UPSAMPLERS = {  # name -> the scales it has
    "pixelshuffledirect": (2, 3, 4),
    "pixelshuffle": (2, 3, 4),
    "nearest+conv": (4,),
    "none": (1,),
}
CONNECTIONS = ("1conv", "3conv")

MOST_BANDS, MOST_BLOCKS, LARGEST_MLP_RATIO = 1024, 128, 16
"""Far beyond any network that is of use; they bound the memory that a stranger's checkpoint can ask
for.
"""

KINDS: dict[str, tuple[type, ...]] = {  # option -> the types it may have, its own last
    "scale": (int,),
    "in_chans": (int,),
    "mlp_ratio": (int, float),
    "img_range": (int, float),
    "patch_norm": (bool,),
    "upsampler": (str,),
    "resi_connection": (str,),
    "repconv": (bool,),
    "cssp": (bool,),
}


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The options of a network; what is not here is fixed by the published design. Raises
    UsageError.

    scale: 2, 3 or 4; 1 for the upsampler "none", which does not enlarge.
    in_chans: bands in and out, 1 or more.  depths: LPFM blocks in each group.
    mlp_ratio: hidden width of the ConvFFN over 64.  img_range: the network works on (x - mean) *
    img_range.
    patch_norm: layer normalisation right after the first convolution.
    repconv, cssp: False only for ablation. Without repconv a plain depthwise 3x3 convolution stands
    in each RepConv's place; without cssp the four RMBs have the widths of SPLIT and stand side by
    side.
    """

    scale: int = 4
    in_chans: int = 3
    depths: tuple[int, ...] = (1, 1, 1, 1, 1, 1)
    mlp_ratio: float = 2.0
    img_range: float = 1.0
    patch_norm: bool = True
    upsampler: str = "pixelshuffledirect"
    resi_connection: str = "1conv"
    repconv: bool = True
    cssp: bool = True

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "depths", tuple(self.depths))
        except TypeError:
            raise UsageError(
                f"depths is {self.depths!r:.60}; it must be a list, the blocks of each group."
            ) from None
        for name, kind in KINDS.items():
            if type(getattr(self, name)) not in kind:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r:.60}; it must be {kind[-1].__name__}."
                )
        self._check_upsampler()
        if self.resi_connection not in CONNECTIONS:
            raise UsageError(
                f"resi_connection is {self.resi_connection!r:.60}; it must be one of "
                f"{', '.join(CONNECTIONS)}."
            )
        if not 1 <= self.in_chans <= MOST_BANDS:
            raise UsageError(
                f"in_chans is {self.in_chans}; a network takes from 1 to {MOST_BANDS} bands."
            )
        if not self.depths or any(type(blocks) is not int or blocks < 1 for blocks in self.depths):
            raise UsageError(
                f"depths is {self.depths!s:.60}; it must name at least one group, each of at least "
                "one block."
            )
        if sum(self.depths) > MOST_BLOCKS:
            raise UsageError(
                f"depths has {sum(self.depths)} blocks; a network has at most {MOST_BLOCKS}."
            )
        if not 1 / WIDTH <= self.mlp_ratio <= LARGEST_MLP_RATIO:
            raise UsageError(
                f"mlp_ratio is {self.mlp_ratio}; it must be from 1/{WIDTH} (a hidden width of 1) "
                f"to {LARGEST_MLP_RATIO}."
            )
        if not 0 < self.img_range < math.inf:
            raise UsageError(f"img_range is {self.img_range}; it must be a finite number above 0.")

    def _check_upsampler(self) -> None:
        if self.upsampler not in UPSAMPLERS:
            raise UsageError(
                f"upsampler is {self.upsampler!r:.60}; it must be one of {', '.join(UPSAMPLERS)}."
            )
        allowed = UPSAMPLERS[self.upsampler]
        if self.scale not in allowed:
            scales = " or ".join(map(str, allowed))
            raise UsageError(
                f"scale is {self.scale!r}; with the upsampler {self.upsampler} it must be {scales}."
            )

    @property
    def hidden(self) -> int:
        """Hidden width of the ConvFFN."""
        return int(WIDTH * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, ready for JSON."""
        return asdict(self) | {"depths": list(self.depths)}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "NetworkConfig":
        """The configuration that `to_dict` has written; options left out have their default. Raises
        UsageError.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UsageError(
                    f"A network has no option {name!r:.60}; its options are {', '.join(known)}."
                )
        return cls(**options)


PUBLISHED = {
    "x2": NetworkConfig(scale=2),
    "x3": NetworkConfig(scale=3),
    "x4": NetworkConfig(scale=4),
    "x4-pixelshuffle": NetworkConfig(scale=4, upsampler="pixelshuffle"),
    "x4-nearest+conv": NetworkConfig(scale=4, upsampler="nearest+conv"),
}
"""The published network at each scale, and its two heavier upsamplers."""


def dt_rank(width: int) -> int:
    """Rank of the step size's projection in an RMB: from half the width, not from the inner
    width.
    """
    return math.ceil(width / 2 / STATE)
