"""ConvFFN: the feed-forward part of an LPFM, with a depthwise 5x5 convolution inside."""

import torch.nn.functional as F
from torch import Tensor, nn

from repmamba.network.config import WIDTH
from repmamba.network.repconv import to_map, to_tokens


class ConvFFN(nn.Module):
    """h = GELU(fc1(x)); h = h + GELU(5x5(h)); result fc2(h).

    tokens and result: (B, H, W, 64). The skip around the convolution starts after the first GELU.
    Source: specification 2.6.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, hidden)
        self.dw5x5 = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.fc2 = nn.Linear(hidden, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens and result: (B, H, W, 64)."""
        h = F.gelu(self.fc1(tokens))
        h = h + F.gelu(to_tokens(self.dw5x5(to_map(h))))
        result: Tensor = self.fc2(h)
        return result
