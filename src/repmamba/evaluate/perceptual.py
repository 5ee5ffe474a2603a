"""LPIPS and DISTS: perceptual distances in the features of a classifier. Lower is better.

The weights of these networks are not part of repmamba. AlexNet and VGG16 are read from torch's
cache, the weights of their layers from the packages lpips and DISTS-pytorch (extra `perceptual`);
the packages' code is not run. Missing files are reported before the first image is enlarged, and
nothing is downloaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import MissingExtra, ShapeMismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST = 32  # pixels on a side, for all poolings
BACKBONES = {  # name -> the file in torch's cache
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
}
_loading = threading.Lock()


def lpips(sr: NDArray[Any], hr: NDArray[Any]) -> float:
    """Learned perceptual image patch similarity, 0 for equal images; AlexNet, version 0.1.

    sr, hr: (H, W, 3), 0 to 255. Raises MissingExtra for missing weights, ShapeMismatch for small
    images. Source: Zhang et al. 2018, equation 1.
    """
    import torch

    with _loading:
        stages, heads = _lpips_network()
    a, b = _normalised(_unit(sr)), _normalised(_unit(hr))
    distance = 0.0
    with torch.inference_mode():
        for stage, head in zip(stages, heads, strict=True):
            a, b = stage(a), stage(b)
            squared = (_of_length_one(a) - _of_length_one(b)).square()
            distance += float((squared * head).sum(1).mean())
    return distance


def dists(sr: NDArray[Any], hr: NDArray[Any]) -> float:
    """Deep image structure and texture similarity, 0 for equal images; VGG16.

    Takes and raises the same as `lpips`. Source: Ding et al. 2020, equations 5 to 7.
    """
    import torch

    with _loading:
        stages, alpha, beta = _dists_network()
    a, b = _unit(sr), _unit(hr)
    with torch.inference_mode():
        similar = [_structure_and_texture(a, b)]
        a, b = _normalised(a), _normalised(b)
        for stage in stages:
            a, b = stage(a), stage(b)
            similar.append(_structure_and_texture(a, b))
        textures, structures = (torch.cat(each) for each in zip(*similar, strict=True))
        alike = (alpha * textures).sum() + (beta * structures).sum()
        return max(0.0, float(1 - alike / (alpha.sum() + beta.sum())))


def _structure_and_texture(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, H, W) twice -> (C,) twice: similarity of the maps' means, and their covariance."""
    tiny = 1e-6
    mean_a, mean_b = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
    texture = (2 * mean_a * mean_b + tiny) / (mean_a.square() + mean_b.square() + tiny)
    variances = (a - mean_a).square().mean((2, 3)) + (b - mean_b).square().mean((2, 3))
    together = (a * b).mean((2, 3)) - (mean_a * mean_b).flatten(1)
    return texture.flatten(), ((2 * together + tiny) / (variances + tiny)).flatten()


def _of_length_one(maps: Tensor) -> Tensor:
    """Each pixel's feature vector, normalised."""
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)


@cache
def _lpips_network() -> tuple[list[nn.Module], list[Tensor]]:
    """The stages of AlexNet, each up to a ReLU, and their channel weights, (C, 1, 1)."""
    from torch import nn

    given = _head("lpips", "weights/v0.1/alex.pth")
    convolutions = iter(
        _convolutions("alexnet", (0, 3, 6, 8, 10), ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)))
    )
    stages: list[nn.Module] = []
    for number in range(5):
        pool = [nn.MaxPool2d(3, 2)] if number in (1, 2) else []
        stages.append(nn.Sequential(*pool, next(convolutions), nn.ReLU()).eval())
    return stages, [given[f"lin{number}.model.1.weight"][0] for number in range(5)]


@cache
def _dists_network() -> tuple[list[nn.Module], Tensor, Tensor]:
    """The stages of VGG16 with smooth pooling; texture and structure weights, (channels,)."""
    from torch import nn

    given = _head("DISTS-pytorch", "weights.pt")
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    convolutions = iter(_convolutions("vgg16", places, ((1, 1),) * len(places)))
    stages: list[nn.Module] = []
    for count, channels in zip((2, 2, 3, 3, 3), (0, 64, 128, 256, 512), strict=True):
        layers: list[nn.Module] = [_smooth_pool(channels)] if channels else []
        for _ in range(count):
            layers += [next(convolutions), nn.ReLU()]
        stages.append(nn.Sequential(*layers).eval())
    return stages, given["alpha"].flatten(), given["beta"].flatten()


def _smooth_pool(channels: int) -> nn.Module:
    """L2 pooling with a 3 x 3 Hann window and stride 2."""
    import torch
    from torch import nn

    window = torch.hann_window(5, periodic=False)[1:-1]
    weights = torch.outer(window, window)

    class Pool(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            kernel = (weights / weights.sum()).expand(channels, 1, 3, 3)
            means = nn.functional.conv2d(
                maps.square(), kernel, stride=2, padding=1, groups=channels
            )
            return (means + 1e-12).sqrt()

    return Pool()


def _convolutions(
    name: str, places: tuple[int, ...], steps: tuple[tuple[int, int], ...]
) -> list[nn.Module]:
    """Convolutions in torch's cache, by their places in `features`. steps: stride and padding."""
    import torch
    from torch import nn

    path = Path(torch.hub.get_dir(), "checkpoints", BACKBONES[name])
    if not path.is_file():
        raise MissingExtra(
            f"{path} is missing, and LPIPS and DISTS need it. Download it with torchvision: python "
            f"-c \"import torchvision; torchvision.models.{name}(weights='IMAGENET1K_V1')\"."
        )
    numbers = _read(path)
    layers: list[nn.Module] = []
    for place, (stride, padding) in zip(places, steps, strict=True):
        weight, bias = numbers[f"features.{place}.weight"], numbers[f"features.{place}.bias"]
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
        layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        layers.append(layer)
    return layers


def _head(package: str, ending: str) -> Mapping[str, Tensor]:
    """The tensors in a file of a package."""
    try:
        found = [file for file in files(package) or () if str(file).endswith(ending)]
    except PackageNotFoundError:
        found = []
    if not found:
        raise MissingExtra(
            "LPIPS and DISTS need the weights of two packages: pip install 'repmamba[perceptual]'."
        )
    return _read(Path(str(found[0].locate())))


def _read(path: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        numbers: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as damage:  # torch raises errors of any type for other files
        raise MissingExtra(
            f"{path} cannot be read as weights ({type(damage).__name__}): delete it and download "
            "it again."
        ) from damage
    return numbers


def _unit(image: NDArray[Any]) -> Tensor:
    import torch

    if min(image.shape[:2]) < SMALLEST:
        raise ShapeMismatch(
            f"LPIPS and DISTS take images of at least {SMALLEST}x{SMALLEST} pixels, and this one "
            f"has {image.shape[0]}x{image.shape[1]}."
        )
    return torch.from_numpy(np.moveaxis(image.astype(np.float32), -1, 0)[None].copy()) / 255


def _normalised(unit: Tensor) -> Tensor:
    """(1, 3, H, W) in [0, 1], with the mean and deviation of the classifiers' training images."""
    mean, deviation = unit.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[
        ..., None, None
    ]
    result: Tensor = (unit - mean) / deviation
    return result
