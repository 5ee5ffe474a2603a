"""The table of losses, and `register_loss` to add one.

Each takes sr and hr, unit tensors (B, C, H, W) of the same shape, sr not clamped, and returns a
float32 scalar.
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
    """Mean of sqrt(d^2 + 1e-6): L1, but smooth where the difference is below 1e-3."""
    return ((sr - hr).square() + 1e-6).sqrt().mean()


def fft(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of real and imaginary parts of the spectra (orthonormal 2D FFT)."""
    # there is no FFT in bfloat16
    spectrum = torch.fft.rfft2((sr - hr).float(), norm="ortho")
    return torch.view_as_real(spectrum).abs().mean()


def gradient(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical gradients: edges count, not levels."""
    d = sr - hr
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - PSNR / 60 dB, averaged over patches; 60 dB is the most that a patch can reach.

    As papers report PSNR: a mean of logarithms, in which a patch of meadow counts as much as one of
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
    """Add a loss that recipes can name in `losses`.

    Args:
        name: Without spaces.
        loss: Function of sr and hr, as those of the table; a torch module works if it is on their
            device.

    Returns:
        The loss.

    Raises:
        UsageError: The name is taken or has spaces, or the loss cannot be called.
    """
    if not name or name != "".join(name.split()) or not callable(loss):
        raise UsageError(
            f"The loss {name!r:.60} cannot be registered; give a name without spaces, and a "
            "function of sr and hr."
        )
    if name in LOSSES:
        raise UsageError(f"A loss named {name} already exists; choose another name.")
    LOSSES[name] = loss
    return loss


def weighted(weights: Mapping[str, float]) -> LossFunction:
    """The weighted sum of losses of the table; sr is converted to float32 first."""

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
            f"The loss {name} returned {found}; expected a tensor of one number without dimensions."
        )
    return value.float()
