"""A network small enough to be run often, saved as a user's weights would be."""

from pathlib import Path

import pytest
import torch

from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one block at x2, drawn at random."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,)))))
    return path
