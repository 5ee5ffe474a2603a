"""A network small enough to be run often, saved as a user's weights would be."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_weights(tiny_weights: Callable[..., Path]) -> Path:
    """Weights of one block at x2, drawn at random."""
    return tiny_weights(seed=7)
