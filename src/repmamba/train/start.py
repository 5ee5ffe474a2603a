"""Initial weights: bilinear upsampling, or another checkpoint, also of another scale.

The published random initialisation is in the network's constructors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repmamba.errors import RecipeError
from repmamba.inference.catalogue import find_weights
from repmamba.network.checkpoint import Checkpoint, read_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba

# prefix of the direct upsampler's weights, the only ones that differ between scales
UPSAMPLER = "upsampler.conv."


@torch.no_grad()
def start_bilinear(network: RepMamba) -> None:
    """Set the weights so that the result is bilinear upsampling, except for the outermost pixels.

    conv_first, skip and upsampler together have a 3x3 window, and bilinear upsampling needs no
    more. The first channels carry the image; the body adds nothing to them and the upsampler does
    not yet read the others, so what the body learns is added to the upsampled image. Pixels next to
    the edge see the mean beyond it.
    """
    config = network.config
    if config.upsampler != "pixelshuffledirect" or config.resi_connection != "1conv":
        raise RecipeError(
            "start.kind is bilinear, which needs the upsampler pixelshuffledirect and "
            "resi_connection 1conv."
        )
    image = slice(0, config.in_chans)
    after, last = network.conv_after_body, network.upsampler.conv
    assert isinstance(after, nn.Conv2d)  # guaranteed by the check above
    assert isinstance(last, nn.Conv2d)
    for conv, rows in ((network.conv_first, image), (after, image), (last, slice(None))):
        conv.weight[rows] = 0
        if conv.bias is not None:
            conv.bias[rows] = 0
    for band in range(config.in_chans):
        network.conv_first.weight[band, band, 1, 1] = 1
    kernels = bilinear_kernels(config.scale)
    for band in range(config.in_chans):
        rows = slice(band * config.scale**2, (band + 1) * config.scale**2)
        last.weight[rows, band] = kernels


def bilinear_kernels(scale: int) -> Tensor:
    """(scale^2, 3, 3): weights of a pixel's neighbours for each of its scale x scale parts."""
    # The centre of part a is (a + 1/2) / scale - 1/2 pixels from the pixel's centre.
    offset = (torch.arange(scale) + 0.5) / scale - 0.5
    taps = (1 - (offset[:, None] - torch.arange(-1, 2)).abs()).clamp(min=0)  # (scale, 3)
    return torch.einsum("ai,bj->abij", taps, taps).reshape(scale**2, 3, 3)


def weights_for(config: NetworkConfig, source: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint for a network of this configuration.

    From another scale, the body is kept and the direct upsampler's parts are averaged by area, so
    that the network starts with the other's result, resampled. Raises CheckpointError, RecipeError.
    """
    path = find_weights(source).path
    checkpoint = read_checkpoint(path)
    upsamplers = (config.upsampler, checkpoint.config.upsampler)
    if checkpoint.config == config or "pixelshuffledirect" not in upsamplers:
        return dict(read_checkpoint(path, expected=config).weights)
    rescaled = dict(checkpoint.weights)
    for name in (name for name in rescaled if name.startswith(UPSAMPLER)):
        rescaled[name] = resampled(rescaled[name], checkpoint.config.scale, config.scale)
    # The network's constructor checks that everything else fits.
    return dict(Checkpoint(config, rescaled, f"{source}, resampled").network().state_dict())


def mean_weights(config: NetworkConfig, sources: Sequence[str | Path]) -> dict[str, Tensor]:
    """The mean of the weights and buffers of several checkpoints, each from `weights_for`."""
    several = [weights_for(config, source) for source in sources]
    mean = dict(several[0])
    for name in (name for name, tensor in mean.items() if tensor.is_floating_point()):
        mean[name] = torch.stack([weights[name] for weights in several]).mean(0)
    return mean


def provenance(source: str | Path) -> dict[str, Any]:
    """Name and training facts of a checkpoint, to record in what is trained from it.

    Raises CheckpointError.
    """
    training = dict(read_checkpoint(find_weights(source).path).training)
    return {"weights": str(source), "training": training}


def resampled(tensor: Tensor, scale: int, wanted: int) -> Tensor:
    """Weights or biases (bands scale^2, ...) of a pixel shuffle, as (bands wanted^2, ...)."""
    edges, wanted_edges = torch.arange(scale + 1) / scale, torch.arange(wanted + 1) / wanted
    low = torch.maximum(edges[:-1], wanted_edges[:-1, None])
    high = torch.minimum(edges[1:], wanted_edges[1:, None])
    overlap = (high - low).clamp(min=0) * wanted  # (wanted, scale); each row sums to 1
    parts = tensor.reshape(-1, scale, scale, *tensor.shape[1:])
    return torch.einsum("ai,bj,kij...->kab...", overlap, overlap, parts).flatten(0, 2)
