"""RMB, the Rep-Mamba block, and SS2D, the two-dimensional selective scan inside it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmamba.network.config import dt_rank
from repmamba.network.repconv import EPS, depthwise3x3, to_map, to_tokens
from repmamba.scan.selective import scan_map
from repmamba.scan.sizes import DIRECTIONS, STATE


class SS2D(nn.Module):
    """Project, split in two halves, scan the low one at half resolution in four directions, gate.

    n and result: (B, H, W, width) with even H and W. Source: specification 2.5 and 3.
    """

    # of the scan; None for the default of the device and the environment
    backend: str | None = None

    def __init__(self, width: int, *, repconv: bool = True) -> None:
        super().__init__()
        self.width = width
        self.rank = dt_rank(width)
        self.in_proj = nn.Linear(width, 4 * width, bias=False)
        self.conv = depthwise3x3(2 * width, repconv=repconv)
        self.high_conv = depthwise3x3(width, repconv=repconv)
        self.x_proj = nn.Parameter(torch.empty(DIRECTIONS, self.rank + 2 * STATE, width))
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, width, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, width))
        self.A_log = nn.Parameter(torch.arange(1.0, STATE + 1).log().repeat(DIRECTIONS * width, 1))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * width))
        self.out_norm = nn.LayerNorm(2 * width, eps=EPS)
        self.out_proj = nn.Linear(2 * width, width, bias=False)
        self._start_scan()

    def _start_scan(self) -> None:
        nn.init.uniform_(self.x_proj, -(self.width**-0.5), self.width**-0.5)
        nn.init.uniform_(self.dt_weight, -(self.rank**-0.5), self.rank**-0.5)
        # The step size starts log-uniform in [0.001, 0.1]; the bias is its inverse softplus.
        low, high = math.log(0.001), math.log(0.1)
        dt = torch.exp(torch.rand(DIRECTIONS, self.width) * (high - low) + low)
        with torch.no_grad():
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, n: Tensor) -> Tensor:
        """n: normalised tokens (B, H, W, width); result of the same shape."""
        x, z = self.in_proj(n).chunk(2, dim=-1)  # (B, H, W, 2 width) each
        x = F.silu(self.conv(to_map(x)))  # (B, 2 width, H, W)
        low, high = x.chunk(2, dim=1)
        pooled = F.avg_pool2d(low, 2)  # (B, width, H/2, W/2)
        residue = low - F.interpolate(pooled, scale_factor=2, mode="nearest")
        scanned = self.scan(pooled).to(residue.dtype)
        low = F.interpolate(scanned, scale_factor=2, mode="bilinear", align_corners=False) + residue
        y = self.out_norm(to_tokens(torch.cat([low, self.high_conv(high)], dim=1)))
        result: Tensor = self.out_proj(y * F.silu(z))
        return result

    def scan(self, pooled: Tensor) -> Tensor:
        """The sum of the four directional scans, (B, width, h, w), float32 or float64."""
        projected = to_map(F.linear(to_tokens(pooled), self.x_proj.flatten(0, 1)))
        A = -torch.exp(self.A_log)
        return scan_map(
            pooled, projected, self.dt_weight, self.dt_bias, A, self.D, backend=self.backend
        )


class RMB(nn.Module):
    """r = v + SS2D(LN(v)); the result is BN(w * r), one weight per channel.

    v and result: (B, width, H, W) with even H and W. Source: specification 2.4.
    """

    def __init__(self, width: int, *, repconv: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.ss2d = SS2D(width, repconv=repconv)
        self.dw1x1 = nn.Conv2d(width, width, 1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=EPS)

    def forward(self, v: Tensor) -> Tensor:
        """v and result: (B, width, H, W)."""
        tokens = to_tokens(v)
        residual = v + to_map(self.ss2d(self.norm(tokens)))
        result: Tensor = self.bn(self.dw1x1(residual))
        return result
