"""Weights to finetune: one block at x2 that enlarges bilinearly."""

from typing import Any

import pytest
import torch

from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.train.start import start_bilinear


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    start_bilinear(network)
    path = tmp_path_factory.mktemp("weights") / "old.safetensors"
    return str(write_checkpoint(path, Checkpoint.of(network)))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
