"""RepConv: a depthwise 3x3 convolution trained as three branches, and its folded form.

Also the two layouts of the network: a map (B, C, H, W) and its tokens (B, H, W, C). Maps are kept
in channels-last memory, so that one is a view of the other and nothing is copied between them.
"""

import torch
from torch import Tensor, nn

EPS = 1e-5  # of all layer and batch normalisations


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return image.permute(0, 2, 3, 1)


def to_map(tokens: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view; channels-last where the tokens are contiguous."""
    return tokens.permute(0, 3, 1, 2)


class RepConv(nn.Module):
    """BN(BN(3x3(x)) + 1x1(x) + x), depthwise throughout, zero padding of 1.

    x and result: (B, width, H, W). Source: specification 2.5.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw3x3 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.inner_bn = nn.BatchNorm2d(width, eps=EPS)
        self.dw1x1 = nn.Conv2d(width, width, 1, groups=width)
        self.outer_bn = nn.BatchNorm2d(width, eps=EPS)
        nn.init.normal_(self.dw3x3.weight, std=0.02)
        nn.init.normal_(self.dw1x1.weight, std=0.02)
        nn.init.zeros_(self.dw1x1.bias)  # type: ignore[arg-type]  # this convolution has a bias

    def forward(self, x: Tensor) -> Tensor:
        """x and result: (B, width, H, W)."""
        result: Tensor = self.outer_bn(self.inner_bn(self.dw3x3(x)) + self.dw1x1(x) + x)
        return result

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The depthwise 3x3 convolution that equals this in evaluation mode, also at borders.

        Folded in float64, returned in the type and on the device of the weights. Source:
        specification 7.2.
        """
        scale_in, shift_in = affine(self.inner_bn)
        scale_out, shift_out = affine(self.outer_bn)
        kernel = self.dw3x3.weight.double() * scale_in.view(-1, 1, 1, 1)
        kernel[:, :, 1, 1] += self.dw1x1.weight.double()[:, :, 0, 0] + 1
        bias = torch.zeros_like(shift_in) if self.dw1x1.bias is None else self.dw1x1.bias.double()
        return depthwise(
            kernel * scale_out.view(-1, 1, 1, 1),
            scale_out * (shift_in + bias) + shift_out,
            like=self.dw3x3.weight,
        )


def affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and offset of each channel of a batch normalisation in evaluation mode; float64."""
    assert bn.running_mean is not None  # ours always track statistics
    assert bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def depthwise(kernel: Tensor, bias: Tensor, *, like: Tensor) -> nn.Conv2d:
    """A depthwise convolution that keeps the size, with the type and device of `like`.

    kernel: (width, 1, k, k).
    """
    width, _, size, _ = kernel.shape
    conv = nn.Conv2d(width, width, size, padding=size // 2, groups=width)
    conv.weight = nn.Parameter(kernel.to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
    return conv


def depthwise3x3(width: int, *, repconv: bool) -> nn.Module:
    """A RepConv, or the plain depthwise 3x3 convolution of the ablation."""
    return RepConv(width) if repconv else nn.Conv2d(width, width, 3, padding=1, groups=width)
