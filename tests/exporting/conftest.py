"""Exports shared by tests: writing one takes seconds, as every runtime runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from repmamba.exporting import export as exporting
from repmamba.exporting import parity


@pytest.fixture(scope="session")
def small_weights(tiny_weights: Callable[..., Path]) -> Path:
    """Weights of one block at x2, drawn at random."""
    return tiny_weights(seed=7)


@pytest.fixture(scope="session")
def in_onnx_runtime_only() -> pytest.MonkeyPatch:
    """OpenVINO compiles for a minute, so only one test uses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "RUNTIMES", parity.RUNTIMES[:1])
        yield patch


@pytest.fixture(scope="session")
def small_export(small_weights, in_onnx_runtime_only, tmp_path_factory) -> exporting.Exported:
    """These weights as ONNX, for inputs of any size."""
    return exporting.export(small_weights, tmp_path_factory.mktemp("export") / "small.onnx")
