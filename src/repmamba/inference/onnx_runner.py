"""The runner of ONNX Runtime: a network that `repmamba export` has written, run as it is.

Only on the CPU. One session serves all threads; it has as many of its own as torch has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repmamba.errors import CheckpointError, MissingExtra
from repmamba.inference.exported import FACTS, LR, read_facts, read_sealed

SETTINGS = {
    # Numbers too small for a normal float are 0: computing with them takes a hundred times as long.
    "session.set_denormal_as_zero": "1",
    # Its threads would wait for work on the cores that ours compute on.
    "session.intra_op.allow_spinning": "0",
}


class OnnxRunner:
    """A session of ONNX Runtime; in another process it opens one of its own."""

    def __init__(self, content: bytes, path: Path) -> None:
        """content: of the file at path. Raises MissingExtra, CheckpointError."""
        self.content = content
        self.path = path
        self._session = open_session(content)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts = read_facts(metadata.get(FACTS, ""), path)

    @property
    def scale(self) -> int:
        """See Runner."""
        return self.facts.scale

    @property
    def bands(self) -> int:
        """See Runner."""
        return self.facts.bands

    @property
    def network(self) -> ExportedNetwork:
        """See Runner."""
        return ExportedNetwork(self)

    def run(self, unit: Tensor) -> Tensor:
        """See Runner."""
        (result,) = self._session.run(None, {LR: unit.contiguous().numpy()})
        return torch.from_numpy(result)

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxRunner, (self.content, self.path)


class ExportedNetwork(nn.Module):
    """An exported network in the place of one of torch. (B, C, H, W) -> (B, C, sH, sW)."""

    def __init__(self, runner: OnnxRunner) -> None:
        super().__init__()
        self.runner = runner
        self.config = runner.facts.config

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W), float32, on the CPU -> (B, C, scale H, scale W)."""
        return self.runner.run(image)


def read_export(path: Path) -> OnnxRunner:
    """The runner of a file, whatever size its input has. Raises CheckpointError, MissingExtra."""
    if path.suffix.lower() != ".onnx":
        raise CheckpointError(
            f"{path} is a program of torch.export: run it with torch.export.load(...).module(). "
            "Here only networks "
            "exported as .onnx are run."
        )
    return OnnxRunner(read_sealed(path), path)


def open_exported(path: Path) -> OnnxRunner:
    """The runner of a file that takes inputs of any size. Raises CheckpointError, MissingExtra."""
    runner = read_export(path)
    if runner.facts.size is not None:
        height, width = runner.facts.size
        raise CheckpointError(
            f"{path} takes inputs of {width}x{height} pixels only, and the tiles of a scene differ "
            "in size: export the network with --size dynamic."
        )
    return runner


def open_session(content: bytes, *, threads: int | None = None) -> Any:
    """A session of ONNX Runtime over the content of a file. threads: as many as torch has.

    Raises MissingExtra, CheckpointError.
    """
    try:
        import onnxruntime
    except ImportError as missing:
        raise MissingExtra(
            "Exported networks need ONNX Runtime: pip install 'repmamba[onnx]'."
        ) from missing
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # what its optimiser remarks on is nobody's concern
    for name, value in SETTINGS.items():
        options.add_session_config_entry(name, value)
    flushed = _flushes_denormals()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # its errors have classes of their own, one for each code
        reason = next(iter(str(failure).splitlines()), "no reason given")
        raise CheckpointError(f"ONNX Runtime cannot run this network: {reason:.200}") from failure
    finally:
        # the first session changes this for the calling thread too
        torch.set_flush_denormal(flushed)


def _flushes_denormals() -> bool:
    """Whether the calling thread rounds numbers too small for a normal float to 0."""
    return float((np.array([1e-40], np.float32) * np.float32(1))[0]) == 0
