"""A small network, saved as a user's weights would be."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_weights(tiny_weights: Callable[..., Path]) -> Path:
    """Random weights of one block at x2."""
    return tiny_weights(seed=7)
