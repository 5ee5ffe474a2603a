"""The LOSSES table: how far an sr patch is from its hr, as one number to descend. `register_loss`
adds one of your own.

Each takes sr and hr, unit tensors (B, C, H, W) of one shape, sr not clamped, and gives a scalar in
float32.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from repmamba.errors import RecipeError, UsageError

LossFunction = Callable[[Tensor, Tensor], Tensor]


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute error, the published loss."""
    return (sr - hr).abs().mean()


def l2(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error, what PSNR measures."""
    return (sr - hr).square().mean()


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6): L1 with a rounded tip, so its gradient shrinks where the difference
    is below 1e-3.
    """
    return ((sr - hr).square() + 1e-6).sqrt().mean()


def fft(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the two spectra's real and imaginary parts (orthonormal
    two-dimensional FFT).
    """
    # FFT knows no bfloat16.
    spectrum = torch.fft.rfft2((sr - hr).float(), norm="ortho")
    return torch.view_as_real(spectrum).abs().mean()


def gradient(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the steps from pixel to pixel, along rows and columns: edges
    count, not levels.
    """
    d = sr - hr
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - PSNR / 60 dB, the mean over the patches; 60 dB is what no patch goes beyond.

    What papers report: a mean of logarithms, in which a patch of meadow counts as much as one of
    roofs.
    """
    errors = (sr - hr).square().flatten(1).mean(1)
    return 1 + 10 / 60 * torch.log10(errors + 1e-6).mean()


LOSSES: dict[str, LossFunction] = {
    "l1": l1,
    "l2": l2,
    "charbonnier": charbonnier,
    "psnr": psnr,
    "fft": fft,
    "gradient": gradient,
}


def register_loss(name: str, loss: LossFunction) -> LossFunction:
    """Add a loss of your own, so that `losses` of a recipe can name it. Raises UsageError.

    loss: of sr and hr, as those of the table; a module of torch will do, if it is on their device.
    """
    if not name or name != "".join(name.split()) or not callable(loss):
        raise UsageError(
            f"A loss is named {name!r:.60}; give a name without spaces, and a function of sr and "
            "hr."
        )
    if name in LOSSES:
        raise UsageError(f"There is a loss {name} already; take another name.")
    LOSSES[name] = loss
    return loss


def weighted(weights: Mapping[str, float]) -> LossFunction:
    """The sum of losses of the table, each times its weight; sr is brought to float32 first."""

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        sr = sr.float()
        return torch.stack(
            [weight * _scalar(name, LOSSES[name](sr, hr)) for name, weight in weights.items()]
        ).sum()

    return loss


def _scalar(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        found = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        raise RecipeError(
            f"The loss {name} gave {found}; a tensor of one number without dimensions is expected."
        )
    return value.float()
