"""LPFM, one block of the network: CSSP, then ConvFFN; and CSSP, cross-scale state propagation."""

import torch
from torch import Tensor, nn

from repmamba.network.config import RMB_WIDTHS, SPLIT, WIDTH, NetworkConfig
from repmamba.network.convffn import ConvFFN
from repmamba.network.repconv import EPS, to_map, to_tokens
from repmamba.network.rmb import RMB


class CSSP(nn.Module):
    """Four chained RMBs, each on the previous result and the next channels: widths 8, 16, 32, 64.

    t and result: (B, 64, H, W) with even H and W. Only the first RMB has a skip around it. Source:
    specification 2.3.
    """

    def __init__(self, *, repconv: bool = True) -> None:
        super().__init__()
        self.m8, self.m16, self.m32, self.m64 = (
            RMB(width, repconv=repconv) for width in RMB_WIDTHS
        )

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        c0, c1, c2, c3 = t.split_with_sizes(SPLIT, dim=1)
        v = torch.cat([c0 + self.m8(c0), c1], dim=1)
        v = torch.cat([self.m16(v), c2], dim=1)
        v = torch.cat([self.m32(v), c3], dim=1)
        result: Tensor = self.m64(v)
        return result


class ParallelRMBs(nn.Module):
    """The ablation of CSSP: four RMBs on the split channels, in parallel.

    t and result: (B, 64, H, W) with even H and W.
    """

    def __init__(self, *, repconv: bool = True) -> None:
        super().__init__()
        self.rmbs = nn.ModuleList(RMB(width, repconv=repconv) for width in SPLIT)

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        shares = t.split_with_sizes(SPLIT, dim=1)
        return torch.cat([rmb(share) for rmb, share in zip(self.rmbs, shares, strict=True)], dim=1)


class LPFM(nn.Module):
    """a = t + CSSP(t), without a normalisation before it; the result is a + ConvFFN(LN(a)).

    t and result: (B, 64, H, W) with even H and W. Source: specification 2.2.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.cssp = (CSSP if config.cssp else ParallelRMBs)(repconv=config.repconv)
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)
        self.ffn = ConvFFN(config.hidden)

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        a = t + self.cssp(t)
        result: Tensor = a + to_map(self.ffn(self.norm(to_tokens(a))))
        return result
