"""RepMamba, the network: from the first convolution to the upsampler.

Also the groups and the upsamplers; a block of a group is in lpfm.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmamba.errors import ShapeMismatch
from repmamba.network.config import WIDTH, NetworkConfig
from repmamba.network.lpfm import LPFM
from repmamba.network.repconv import EPS, to_map, to_tokens

# subtracted from an RGB input and added to the result; not in checkpoints
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class RepMamba(nn.Module):
    """The network. Source: specification 2.1.

    Forward: (B, in_chans, H, W) in [0, 1], any H and W from 1 -> (B, in_chans, scale H, scale W),
    not clamped.
    """

    mean: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        mean = RGB_MEAN if config.in_chans == 3 else (0.0,) * config.in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(config.in_chans, WIDTH, 3, padding=1)
        self.embed_norm = nn.LayerNorm(WIDTH, eps=EPS) if config.patch_norm else nn.Identity()
        self.groups = nn.ModuleList(Group(config, blocks) for blocks in config.depths)
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)
        self.conv_after_body = connection(config.resi_connection)
        self.upsampler = UPSAMPLER_MODULES[config.upsampler](config)
        self.apply(_start)

    @property
    def scale(self) -> int:
        """How many times larger the result is: 1, 2, 3 or 4."""
        return self.config.scale

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W). Raises ShapeMismatch."""
        check_input(image, self.config.in_chans)
        height, width = image.shape[-2:]
        image = even(image).contiguous(memory_format=torch.channels_last)
        centred = (image - self.mean) * self.config.img_range
        shallow = self.conv_first(centred)
        deep = to_map(self.embed_norm(to_tokens(shallow)))
        for group in self.groups:
            deep = group(deep)
        deep = self.conv_after_body(to_map(self.norm(to_tokens(deep)))) + shallow
        result: Tensor = self.upsampler(deep)
        if self.config.upsampler == "none":
            result = centred + result
        result = result / self.config.img_range + self.mean
        return result[..., : height * self.scale, : width * self.scale]


def check_input(image: Tensor, in_chans: int) -> None:
    """Raise ShapeMismatch unless the image is (B, in_chans, H, W), none of them 0."""
    if image.dim() != 4 or image.shape[1] != in_chans or 0 in image.shape:
        raise ShapeMismatch(
            f"The input has shape {tuple(image.shape)}; this network takes (batch, {in_chans}, "
            "height, width), none of them 0."
        )


def even(image: Tensor) -> Tensor:
    """The image with its last row and column repeated if odd, because the network pools by two."""
    height, width = image.shape[-2:]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")


class Group(nn.Module):
    """LPFM blocks and a convolution, with a skip around them. deep and result: (B, 64, H, W)."""

    def __init__(self, config: NetworkConfig, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LPFM(config) for _ in range(blocks))
        self.conv = connection(config.resi_connection)

    def forward(self, deep: Tensor) -> Tensor:
        """deep and result: (B, 64, H, W)."""
        body = deep
        for block in self.blocks:
            body = block(body)
        result: Tensor = deep + self.conv(body)
        return result


def connection(kind: str) -> nn.Module:
    """The convolution at the end of a group and of the body, 64 -> 64, or a bottleneck of three."""
    if kind == "1conv":
        return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    narrow = WIDTH // 4
    return nn.Sequential(
        nn.Conv2d(WIDTH, narrow, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, WIDTH, 3, padding=1),
    )


class PixelShuffleDirect(nn.Module):
    """One convolution to in_chans * scale^2, then pixel shuffle.

    (B, 64, H, W) -> (B, in_chans, sH, sW).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, config.in_chans * config.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.scale)

    def forward(self, u: Tensor) -> Tensor:
        """(B, 64, H, W) -> (B, in_chans, sH, sW)."""
        result: Tensor = self.shuffle(self.conv(u))
        return result


class PixelShuffle(nn.Module):
    """A convolution, pixel shuffles by two (or one by three) on 64 channels, a last convolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.conv_before = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        step, steps = (3, 1) if config.scale == 3 else (2, config.scale.bit_length() - 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH * step**2, 3, padding=1) for _ in range(steps)
        )
        self.shuffle = nn.PixelShuffle(step)
        self.conv_last = nn.Conv2d(WIDTH, config.in_chans, 3, padding=1)

    def forward(self, u: Tensor) -> Tensor:
        """(B, 64, H, W) -> (B, in_chans, sH, sW)."""
        u = F.leaky_relu(self.conv_before(u), 0.01)
        for conv in self.convs:
            u = self.shuffle(conv(u))
        result: Tensor = self.conv_last(u)
        return result


class NearestConv(nn.Module):
    """Nearest neighbour and a convolution, twice, then two more convolutions; scale 4 only."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.conv_before = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_up1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_up2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_hr = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_last = nn.Conv2d(WIDTH, config.in_chans, 3, padding=1)

    def forward(self, u: Tensor) -> Tensor:
        """(B, 64, H, W) -> (B, in_chans, 4H, 4W)."""
        u = F.leaky_relu(self.conv_before(u), 0.01)
        for conv in (self.conv_up1, self.conv_up2):
            u = F.leaky_relu(conv(F.interpolate(u, scale_factor=2, mode="nearest")), 0.2)
        result: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(u), 0.2))
        return result


class NoUpsampler(nn.Module):
    """A last convolution, without upsampling; RepMamba adds the centred input."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.conv_last = nn.Conv2d(WIDTH, config.in_chans, 3, padding=1)

    def forward(self, u: Tensor) -> Tensor:
        """(B, 64, H, W) -> (B, in_chans, H, W)."""
        result: Tensor = self.conv_last(u)
        return result


UPSAMPLER_MODULES: dict[str, type[nn.Module]] = {
    "pixelshuffledirect": PixelShuffleDirect,
    "pixelshuffle": PixelShuffle,
    "nearest+conv": NearestConv,
    "none": NoUpsampler,
}


def _start(module: nn.Module) -> None:
    # As the published network's last initialisation: only linear layers and layer normalisations.
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
