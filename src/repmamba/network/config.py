"""What a RepMamba network is built from: its scale and its options, and the published networks by name."""

from dataclasses import asdict, dataclass
from typing import Any

from repmamba.errors import UsageError

WIDTH = 64
"""Channels of the residual stream. Fixed: the split of CSSP and the widths of its four RMBs follow from it."""

SPLIT = (8, 8, 16, 32)
"""Channels that enter CSSP with its four RMBs."""

RMB_WIDTHS = (8, 16, 32, 64)
"""Widths of the four chained RMBs: the running sums of SPLIT."""

STATE = 16
"""Size of the scan's state."""

UPSAMPLERS = ("pixelshuffledirect", "pixelshuffle", "nearest+conv", "none")
CONNECTIONS = ("1conv", "3conv")
SCALES = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The options of a network; what is not here is fixed by the published design. Raises UsageError.

    scale: 2, 3 or 4; 1 for the upsampler "none", which does not enlarge.
    in_chans: bands in and out, 1 or more.  depths: LPFM blocks in each group.
    mlp_ratio: hidden width of the ConvFFN over 64.  img_range: the network works on (x - mean) * img_range.
    patch_norm: layer normalisation right after the first convolution.
    repconv, cssp: False only for ablation. Without repconv a plain depthwise 3x3 convolution stands in each RepConv's
    place; without cssp the four RMBs have the widths of SPLIT and stand side by side.
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
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.upsampler not in UPSAMPLERS:
            raise UsageError(f"upsampler is {self.upsampler!r}; it must be one of {', '.join(UPSAMPLERS)}.")
        if self.resi_connection not in CONNECTIONS:
            raise UsageError(
                f"resi_connection is {self.resi_connection!r}; it must be one of {', '.join(CONNECTIONS)}."
            )
        allowed = {"none": (1,), "nearest+conv": (4,)}.get(self.upsampler, SCALES)
        if self.scale not in allowed:
            scales = " or ".join(map(str, allowed))
            raise UsageError(f"scale is {self.scale!r}; with the upsampler {self.upsampler} it must be {scales}.")
        if self.in_chans < 1:
            raise UsageError(f"in_chans is {self.in_chans}; a network takes at least one band.")
        if not self.depths or min(self.depths) < 1:
            raise UsageError(f"depths is {self.depths}; it must name at least one group, each of at least one block.")
        if int(WIDTH * self.mlp_ratio) < 1:
            raise UsageError(f"mlp_ratio is {self.mlp_ratio}; it must leave a hidden width of at least 1.")
        if not self.img_range > 0:
            raise UsageError(f"img_range is {self.img_range}; it must be above 0.")

    @property
    def hidden(self) -> int:
        """Hidden width of the ConvFFN."""
        return int(WIDTH * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, ready for JSON."""
        return asdict(self) | {"depths": list(self.depths)}


PUBLISHED = {
    "x2": NetworkConfig(scale=2),
    "x3": NetworkConfig(scale=3),
    "x4": NetworkConfig(scale=4),
    "x4-pixelshuffle": NetworkConfig(scale=4, upsampler="pixelshuffle"),
    "x4-nearest+conv": NetworkConfig(scale=4, upsampler="nearest+conv"),
}
"""The published network at each scale, and its two heavier upsamplers."""
