"""Fusion: a copy of a network for inference, with all exact foldings of the specification (7).

| folded                                     | into                                        | §   |
| branches and normalisations of RepConv     | one depthwise 3x3 convolution with a bias   | 7.2 |
| 1x1 convolution and BN of an RMB           | rows and bias of out_proj, gain of the skip | 7.3 |
| CSSP's outer skip                          | the gain of the first RMB's skip            | 7.3 |
| LN affine before in_proj and fc1           | their columns and bias                      | 7.4 |
| LN affine before the gate                  | columns of out_proj; a shift stays          | 7.5 |
| the last LN's affine                       | conv_after_body and its padding             | 7.6 |
| mean and range of the input                | conv_first, which pads with the mean        | 7.7 |
| mean and range of the result               | the last convolution                        | 7.8 |
| -exp(A_log), the four skips of the scan    | A; the skip of one direction                | 7.9 |

The foldings of 7.5 and 7.6 divide by the affine's weight. If a weight of a layer is zero, or so
small compared with its bias that digits would be lost, the layer keeps its affine. Not folded,
because the result would be wrong or slower: the first LN, whose result is the residual stream, and
7.10 and 7.11.

All maps are channels-last, so that tokens are views of them; each stage of an RMB is a method.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmamba.errors import UsageError
from repmamba.network.config import SPLIT
from repmamba.network.convffn import ConvFFN
from repmamba.network.lpfm import CSSP, LPFM, ParallelRMBs
from repmamba.network.repconv import EPS, RepConv, affine, to_map, to_tokens
from repmamba.network.repmamba import Group, RepMamba, check_input, even
from repmamba.network.rmb import RMB
from repmamba.scan.selective import scan_map
from repmamba.scan.sizes import DIRECTIONS

# torch layers in our networks
LAYERS = frozenset(
    [
        *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.LeakyReLU, nn.PixelShuffle),
        *(nn.Identity, nn.Sequential, nn.ModuleList),
    ]
)

# a layer normalisation's bias over its weight; beyond it, normalised value + shift loses digits
LARGEST_SHIFT = 1e3


def fuse(network: nn.Module) -> "FusedRepMamba":
    """A copy of a network for inference: equal results, fewer operations, no gradients of weights.

    The given network is not changed; its evaluation mode is what is fused. Foldings are computed in
    float64.

    Args:
        network: A RepMamba, or a fused one, which is copied.

    Returns:
        The fused network, in evaluation mode.

    Raises:
        UsageError: Any other module, or a RepMamba with a replaced layer: its weights do not tell
            what it computes.
    """
    if isinstance(network, FusedRepMamba):
        return copy.deepcopy(network)
    if not isinstance(network, RepMamba):
        raise UsageError(f"fuse got a {type(network).__name__}; expected a RepMamba.")
    for name, module in network.named_modules():
        if module is not network and not _says_what_it_computes(module):
            raise UsageError(
                f"fuse got a RepMamba whose {name} was replaced ({module}); it can only fold the "
                "network's own layers. Merge an adapter into its layer first, or use the network "
                "without fusing."
            )
    # Layers are created with random weights, which are replaced: the caller's random state must not
    # change.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        fused = FusedRepMamba(network).requires_grad_(False).eval()
        return fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _says_what_it_computes(module: nn.Module) -> bool:
    """Whether a module is ours or torch's own and its forward was not replaced.

    Adapters, parametrisations and quantisation replace layers by subclasses.
    """
    kind = type(module)
    known = kind in LAYERS or kind.__module__.startswith("repmamba.")
    if not known or "forward" in vars(module):
        return False
    if isinstance(module, nn.LayerNorm):
        return module.eps == EPS and isinstance(module.bias, nn.Parameter)
    return True


class FusedRepMamba(nn.Module):
    """The whole network, folded. Forward as RepMamba's.

    (B, in_chans, H, W) -> (B, in_chans, sH, sW), not clamped.
    """

    mean: Tensor

    def __init__(self, network: RepMamba) -> None:
        super().__init__()
        self.config = network.config
        self.register_buffer("mean", network.mean.clone())
        self.conv_first = self._with_range_and_mean(network)
        self.embed_norm = copy.deepcopy(network.embed_norm)
        groups = (group for group in network.groups if isinstance(group, Group))
        self.groups = nn.ModuleList(map(FusedGroup, groups))
        self.conv_after_body = NormThenConv(network.norm, network.conv_after_body)
        self.upsampler = _with_range_and_mean_undone(network)

    @property
    def scale(self) -> int:
        """How many times larger the result is: 1, 2, 3 or 4."""
        return self.config.scale

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W). Raises ShapeMismatch."""
        check_input(image, self.config.in_chans)
        height, width = image.shape[-2:]
        deep = self._deep(even(image).contiguous(memory_format=torch.channels_last))
        result = self.upsampled(image, deep)
        return result[..., : height * self.scale, : width * self.scale]

    def _deep(self, image: Tensor) -> Tensor:
        """(B, in_chans, H, W), even and channels-last -> (B, 64, H, W), the upsampler's input."""
        shallow = self.conv_first(padded(image, self.mean.flatten()))
        deep = to_map(self.embed_norm(to_tokens(shallow)))
        for group in self.groups:
            deep = group(deep)
        result: Tensor = self.conv_after_body(deep, shallow)
        return result

    def upsampled(self, image: Tensor, deep: Tensor) -> Tensor:
        """The upsampler's result. deep: (B, 64, H', W'), H' and W' even."""
        result: Tensor = self.upsampler(deep)
        return even(image) + result if self.config.upsampler == "none" else result

    @staticmethod
    def _with_range_and_mean(network: RepMamba) -> nn.Conv2d:
        """conv_first for the image as it is; the caller pads it with the mean."""
        conv = network.conv_first
        weight = conv.weight.double() * network.config.img_range
        taken = (weight * network.mean.double()).sum((1, 2, 3))
        return _conv(weight, _bias(conv) - taken, like=conv.weight, padding=0)


def _with_range_and_mean_undone(network: RepMamba) -> nn.Module:
    """The upsampler, with a last convolution that divides by the range and adds the mean."""
    upsampler = copy.deepcopy(network.upsampler)
    name = "conv" if network.config.upsampler == "pixelshuffledirect" else "conv_last"
    conv = getattr(upsampler, name)
    mean = network.mean.double().flatten()
    if network.config.upsampler == "none":
        mean = torch.zeros_like(mean)  # (c + conv) / range + mean is image + conv / range
    span = network.config.img_range
    weight, bias = conv.weight.double() / span, _bias(conv) / span
    each = mean.repeat_interleave(conv.out_channels // network.config.in_chans)
    setattr(upsampler, name, _conv(weight, bias + each, like=conv.weight, padding=1))
    return upsampler


class NormThenConv(nn.Module):
    """LN, then a 3x3 convolution that pads with zeros: the end of the body, and its skip.

    All maps: (B, 64, H, W). Folded, the normalised map is padded with -bias/weight, which the
    affine would map to the zeros of the padding.
    """

    edge: Tensor

    def __init__(self, norm: nn.LayerNorm, connection: nn.Module) -> None:
        super().__init__()
        self.folded = _can_divide(norm)
        self.norm: nn.Module = copy.deepcopy(norm)
        self.conv = copy.deepcopy(connection)
        if self.folded:
            self.norm = _plain_norm(norm)
            edge = -norm.bias.double() / norm.weight.double()
            self.register_buffer("edge", edge.to(norm.weight))
            self.conv = self._after_affine(norm)

    def _after_affine(self, norm: nn.LayerNorm) -> nn.Module:
        """The convolution with the affine of `norm` in its first layer; the caller pads."""
        first, *rest = self.conv if isinstance(self.conv, nn.Sequential) else (self.conv,)
        assert isinstance(first, nn.Conv2d)
        weight, bias = norm.weight.double().view(1, -1, 1, 1), norm.bias.double().view(1, -1, 1, 1)
        kernel = first.weight.double()
        constant = _bias(first) + (kernel * bias).sum((1, 2, 3))
        folded = _conv(kernel * weight, constant, like=first.weight, padding=0)
        return nn.Sequential(folded, *rest) if rest else folded

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """conv(norm(deep)) + skip; all maps (B, 64, H, W)."""
        normalised = to_map(self.norm(to_tokens(deep)))
        if self.folded:
            normalised = padded(normalised, self.edge)
        result: Tensor = self.conv(normalised) + skip
        return result


class FusedGroup(nn.Module):
    """A group of folded blocks. deep and result: (B, 64, H, W)."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        blocks = (block for block in group.blocks if isinstance(block, LPFM))
        self.blocks = nn.ModuleList(map(FusedLPFM, blocks))
        self.conv = copy.deepcopy(group.conv)

    def forward(self, deep: Tensor) -> Tensor:
        """deep and result: (B, 64, H, W)."""
        body = deep
        for block in self.blocks:
            body = block(body)
        result: Tensor = deep + self.conv(body)
        return result


class FusedLPFM(nn.Module):
    """A folded block: CSSP, then ConvFFN, each with its skip. t and result: (B, 64, H, W)."""

    def __init__(self, block: LPFM) -> None:
        super().__init__()
        self.cssp = (
            FusedCSSP(block.cssp) if isinstance(block.cssp, CSSP) else FusedParallelRMBs(block.cssp)
        )
        self.norm = _plain_norm(block.norm)
        self.ffn: ConvFFN = copy.deepcopy(block.ffn)
        self.ffn.fc1 = _after_norm(block.ffn.fc1, block.norm)

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        a = t + self.cssp(t)
        result: Tensor = a + to_map(self.ffn(self.norm(to_tokens(a))))
        return result


class FusedCSSP(nn.Module):
    """Four chained folded RMBs; the first has its skip in its gain. t and result: (B, 64, H, W)."""

    def __init__(self, cssp: CSSP) -> None:
        super().__init__()
        self.m8 = FusedRMB(cssp.m8, skip=1.0)
        self.m16, self.m32, self.m64 = (FusedRMB(rmb) for rmb in (cssp.m16, cssp.m32, cssp.m64))

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        c0, c1, c2, c3 = t.split_with_sizes(SPLIT, dim=1)
        v = self.m8(c0, c1)
        v = self.m16(v, c2)
        v = self.m32(v, c3)
        result: Tensor = self.m64(v)
        return result


class FusedParallelRMBs(nn.Module):
    """The folded RMBs of the ablation without CSSP. t and result: (B, 64, H, W)."""

    def __init__(self, parallel: nn.Module) -> None:
        super().__init__()
        assert isinstance(parallel, ParallelRMBs)
        self.rmbs = nn.ModuleList(FusedRMB(rmb) for rmb in parallel.rmbs if isinstance(rmb, RMB))

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        shares = t.split_with_sizes(SPLIT, dim=1)
        return torch.cat([rmb(share) for rmb, share in zip(self.rmbs, shares, strict=True)], dim=1)


class FusedRMB(nn.Module):
    """A folded RMB: the result is out_proj(gated) + gain * v, including the skip of its caller.

    v and result: (B, width, H, W) with even H and W. skip: how many times the caller adds v.
    """

    gain: Tensor
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    backend: str | None = None  # of the scan, as for SS2D

    def __init__(self, rmb: RMB, *, skip: float = 0.0) -> None:
        super().__init__()
        ss2d = rmb.ss2d
        self.norm = _plain_norm(rmb.norm)
        in_proj = _after_norm(ss2d.in_proj, rmb.norm)
        self.in_x, self.in_z = _rows_halved(in_proj)
        self.conv = _one_conv(ss2d.conv)
        self.high_conv = _one_conv(ss2d.high_conv)
        self._keep_scan(rmb)
        scale, shift = affine(rmb.bn)
        scale = scale * rmb.dw1x1.weight.double().flatten()
        self.out_norm, columns = _shift_only(ss2d.out_norm)
        weight = scale.view(-1, 1) * ss2d.out_proj.weight.double() * columns
        self.out_proj = _linear(weight, shift, like=ss2d.out_proj.weight)
        self.register_buffer("gain", (scale + skip).to(ss2d.out_proj.weight).view(1, -1, 1, 1))

    def _keep_scan(self, rmb: RMB) -> None:
        ss2d = rmb.ss2d
        self.register_buffer("x_proj", ss2d.x_proj.detach().flatten(0, 1).clone())
        self.register_buffer("dt_weight", ss2d.dt_weight.detach().clone())
        self.register_buffer("dt_bias", ss2d.dt_bias.detach().clone())
        self.register_buffer("A", -torch.exp(ss2d.A_log.detach()))
        # All directions multiply the same pixel by their D, so one gets the sum and the others
        # none.
        D = torch.zeros_like(ss2d.D).view(DIRECTIONS, -1)
        D[0] = ss2d.D.detach().double().view(DIRECTIONS, -1).sum(0)
        self.register_buffer("D", D.flatten())

    def forward(self, v: Tensor, beside: Tensor | None = None) -> Tensor:
        """v: (B, width, H, W) -> (B, width + n, H, W), followed by the n channels of `beside`."""
        n = self.norm(to_tokens(v))
        x = self.convolved(n)
        low, high = x.chunk(2, dim=1)
        pooled = F.avg_pool2d(low, 2)
        low = restored(self.scan(pooled).to(low.dtype), low, pooled)
        result = self.gated(low, self.high_conv(high), n, v)
        return result if beside is None else torch.cat([result, beside], dim=1)

    def convolved(self, n: Tensor) -> Tensor:
        """SiLU(3x3(projection)) of the normalised tokens (B, H, W, width) -> (B, 2 width, H, W)."""
        result: Tensor = F.silu(self.conv(to_map(self.in_x(n))))
        return result

    def scan(self, pooled: Tensor) -> Tensor:
        """The sum of the four directional scans, (B, width, h, w), float32 or float64."""
        return self.scan_projected(pooled, to_map(F.linear(to_tokens(pooled), self.x_proj)))

    def scan_projected(self, pooled: Tensor, projected: Tensor) -> Tensor:
        """`scan` with a given projection of the pooled map, (B, 4 (R + 32), h, w)."""
        return scan_map(
            pooled, projected, self.dt_weight, self.dt_bias, self.A, self.D, backend=self.backend
        )

    def gated(self, low: Tensor, high: Tensor, n: Tensor, v: Tensor) -> Tensor:
        """Norm of both halves, gate from tokens n, projection, skip from v: (B, width, H, W)."""
        y = self.out_norm(to_tokens(torch.cat([low, high], dim=1)))
        result = to_map(self.out_proj(y * F.silu(self.in_z(n))))
        return torch.addcmul(result, v, self.gain)


def restored(scanned: Tensor, low: Tensor, pooled: Tensor) -> Tensor:
    """The scan's result upsampled, plus the detail that pooling removed from `low`.

    bilinear(scanned) + low - nearest(pooled). scanned, pooled: (B, C, h, w). low and result: (B, C,
    2h, 2w).
    """
    residue = low - F.interpolate(pooled, scale_factor=2, mode="nearest")
    return residue + F.interpolate(scanned, scale_factor=2, mode="bilinear", align_corners=False)


def padded(image: Tensor, values: Tensor) -> Tensor:
    """Pad each side by one pixel with a value per channel: (B, C, H, W) -> (B, C, H + 2, W + 2)."""
    frame = 1 - F.pad(torch.ones_like(image[:1, :1]), (1, 1, 1, 1))  # 1 on the border, 0 inside
    return torch.addcmul(F.pad(image, (1, 1, 1, 1)), frame, values.view(1, -1, 1, 1))


class ShiftedNorm(nn.Module):
    """Layer normalisation without weight, with optional shift. tokens and result: (..., width)."""

    shift: Tensor | None

    def __init__(self, width: int, shift: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("shift", shift)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens and result: (..., width)."""
        return F.layer_norm(tokens, (self.width,), None, self.shift, EPS)


def _plain_norm(norm: nn.LayerNorm) -> ShiftedNorm:
    return ShiftedNorm(norm.normalized_shape[0])


def _shift_only(norm: nn.LayerNorm) -> tuple[nn.Module, Tensor]:
    """A normalisation without its weight, and factors for the columns of the next layer."""
    weight, bias = norm.weight.double(), norm.bias.double()
    if not _can_divide(norm):
        return copy.deepcopy(norm), torch.ones_like(weight)
    return ShiftedNorm(weight.numel(), (bias / weight).to(norm.weight)), weight


def _can_divide(norm: nn.LayerNorm) -> bool:
    """Whether bias / weight exists in every channel and is small enough to be added."""
    weight, bias = norm.weight.double().abs(), norm.bias.double().abs()
    return bool(((weight > 0) & (bias <= LARGEST_SHIFT * weight)).all())


def _after_norm(linear: nn.Linear, norm: nn.LayerNorm) -> nn.Linear:
    """The linear layer on normalised values that equals `linear` after the affine of `norm`."""
    weight = linear.weight.double()
    constant = weight @ norm.bias.double() + _bias(linear)
    return _linear(weight * norm.weight.double(), constant, like=linear.weight)


def _rows_halved(linear: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """The two halves of a linear layer's rows, so that both results are contiguous."""
    weights, biases = linear.weight.chunk(2), _bias(linear).chunk(2)
    first, second = (
        _linear(weight, bias, like=weight) for weight, bias in zip(weights, biases, strict=True)
    )
    return first, second


def _one_conv(conv: nn.Module) -> nn.Module:
    return conv.folded() if isinstance(conv, RepConv) else copy.deepcopy(conv)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if layer.bias is None:
        return layer.weight.new_zeros(layer.weight.shape[0], dtype=torch.float64)
    return layer.bias.double()


def _linear(weight: Tensor, bias: Tensor, *, like: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight.to(like).contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.to(like).contiguous(), requires_grad=False)
    return linear


def _conv(weight: Tensor, bias: Tensor, *, like: Tensor, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding)
    conv.weight = nn.Parameter(weight.to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
    return conv
