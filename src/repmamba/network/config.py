"""The configuration of a RepMamba network, and the published networks by name."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from repmamba.errors import UsageError
from repmamba.scan.sizes import STATE

# channels of the residual stream; fixed, because CSSP's split and RMB widths follow from it
WIDTH = 64

SPLIT = (8, 8, 16, 32)  # new channels for each of CSSP's four RMBs
RMB_WIDTHS = (8, 16, 32, 64)  # widths of the four chained RMBs: the running sums of SPLIT

# name -> allowed scales
UPSAMPLERS = {
    "pixelshuffledirect": (2, 3, 4),
    "pixelshuffle": (2, 3, 4),
    "nearest+conv": (4,),
    "none": (1,),
}
CONNECTIONS = ("1conv", "3conv")

# far above any useful network; limits the memory that a checkpoint can make us allocate
MOST_BANDS, MOST_BLOCKS, LARGEST_MLP_RATIO = 1024, 128, 16

# option -> allowed types, the preferred one last
KINDS: dict[str, tuple[type, ...]] = {
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
    """The options of a network; everything else is fixed by the published design.

    scale: 2, 3 or 4; 1 for the upsampler "none", which does not upscale.
    in_chans: bands in and out, 1 or more.
    depths: LPFM blocks in each group.
    mlp_ratio: hidden width of the ConvFFN divided by 64.
    img_range: the network works on (x - mean) * img_range.
    patch_norm: layer normalisation after the first convolution.
    repconv, cssp: False only for ablation. Without repconv, each RepConv is a plain depthwise 3x3
    convolution; without cssp, the four RMBs have the widths of SPLIT and run in parallel.

    Raises UsageError.
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
                f"depths is {self.depths!r:.60}; expected a list with the number of blocks of each "
                "group."
            ) from None
        for name, kind in KINDS.items():
            if type(getattr(self, name)) not in kind:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r:.60}; expected {kind[-1].__name__}."
                )
        self._check_upsampler()
        if self.resi_connection not in CONNECTIONS:
            raise UsageError(
                f"resi_connection is {self.resi_connection!r:.60}; expected "
                f"{' or '.join(CONNECTIONS)}."
            )
        if not 1 <= self.in_chans <= MOST_BANDS:
            raise UsageError(f"in_chans is {self.in_chans}; expected 1 to {MOST_BANDS} bands.")
        if not self.depths or any(type(blocks) is not int or blocks < 1 for blocks in self.depths):
            raise UsageError(
                f"depths is {self.depths!s:.60}; expected at least one group, each of at least one "
                "block."
            )
        if sum(self.depths) > MOST_BLOCKS:
            raise UsageError(
                f"depths has {sum(self.depths)} blocks; expected at most {MOST_BLOCKS}."
            )
        if not 1 / WIDTH <= self.mlp_ratio <= LARGEST_MLP_RATIO:
            raise UsageError(
                f"mlp_ratio is {self.mlp_ratio}; expected 1/{WIDTH} (a hidden width of 1) to "
                f"{LARGEST_MLP_RATIO}."
            )
        if not 0 < self.img_range < math.inf:
            raise UsageError(f"img_range is {self.img_range}; expected a finite number above 0.")

    def _check_upsampler(self) -> None:
        if self.upsampler not in UPSAMPLERS:
            raise UsageError(
                f"upsampler is {self.upsampler!r:.60}; expected one of {', '.join(UPSAMPLERS)}."
            )
        allowed = UPSAMPLERS[self.upsampler]
        if self.scale not in allowed:
            scales = " or ".join(map(str, allowed))
            raise UsageError(
                f"scale is {self.scale!r}; expected {scales} with the upsampler {self.upsampler}."
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
        """The configuration from `to_dict`; missing options get defaults. Raises UsageError."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UsageError(
                    f"A network has no option {name!r:.60}; its options are {', '.join(known)}."
                )
        return cls(**options)


# the published network at each scale, and its two larger upsamplers
PUBLISHED = {
    "x2": NetworkConfig(scale=2),
    "x3": NetworkConfig(scale=3),
    "x4": NetworkConfig(scale=4),
    "x4-pixelshuffle": NetworkConfig(scale=4, upsampler="pixelshuffle"),
    "x4-nearest+conv": NetworkConfig(scale=4, upsampler="nearest+conv"),
}


def dt_rank(width: int) -> int:
    """Rank of the step size's projection in an RMB: from half the width, not the inner width."""
    return math.ceil(width / 2 / STATE)
