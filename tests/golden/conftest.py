"""The golden numbers: results of the published modules, with the weights they were made with."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from repmamba.network.published import from_published, read_config
from repmamba.network.repmamba import RepMamba

Numbers = dict[str, Tensor]


@pytest.fixture(scope="session")
def numbers(golden: Path) -> Callable[[str], Numbers]:
    """numbers("eval_x4") -> every tensor of that file."""
    return cache(lambda name: load_file(golden / f"{name}.safetensors"))


@pytest.fixture(scope="session")
def network_of(numbers: Callable[[str], Numbers]) -> Callable[..., RepMamba]:
    """network_of("net_x4") -> a new network with those weights; a variant's file replaces what
    differs from net_x4.
    """

    def make(name: str, *, dtype: torch.dtype = torch.float32) -> RepMamba:
        state = dict(numbers(name if name.startswith("net_") else "net_x4"))
        if not name.startswith("net_"):
            own = {
                key.removeprefix("state."): value
                for key, value in numbers(name).items()
                if key[:6] == "state."
            }
            replaced = {key.split(".")[0] for key in own}
            state = {
                key: value
                for key, value in state.items()
                if key.split(".")[0] not in replaced | {"upsample"} or _kept(key, own)
            } | own
        config = read_config({key: tuple(value.shape) for key, value in state.items()})
        network = RepMamba(config)
        network.load_state_dict(from_published(config, state))
        return network.to(dtype).eval()

    return make


def _kept(key: str, own: Numbers) -> bool:
    """What of net_x4 a variant keeps: 3conv replaces the connections alone, an upsampler the
    upsampler alone.
    """
    if any(name.startswith("layers.") for name in own):
        return not (
            key.startswith("conv_after_body.")
            or (key.startswith("layers.") and key.split(".")[2] == "conv")
        )
    return not key.startswith("upsample.")
