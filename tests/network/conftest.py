"""Networks whose every value is away from its start, so that a forgotten one shows."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba


def shaken(config: NetworkConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> RepMamba:
    """A network with random statistics and affines, as after training, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    torch.manual_seed(seed)
    network = RepMamba(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.3, 2.0)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                uniform(module.weight, 0.4, 1.6)
                uniform(module.bias, -0.4, 0.4)
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.mul_(1.5)
                if module.bias is not None:
                    uniform(module.bias, -0.2, 0.2)
        for name, parameter in network.named_parameters():
            if name.endswith((".D", ".A_log")):
                uniform(parameter, 0.2, 1.5)
    return network.to(dtype).eval()


@pytest.fixture(scope="session", name="shaken")
def shaken_fixture() -> Callable[..., RepMamba]:
    return shaken
