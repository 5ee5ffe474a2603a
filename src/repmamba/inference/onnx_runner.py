"""OnnxRunner: runs exported networks with ONNX Runtime.

Only on the CPU. One session serves all threads, with as many threads of its own as torch has.
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
    # Flush denormal numbers to 0: computing with them takes a hundred times as long.
    "session.set_denormal_as_zero": "1",
    # Idle threads would spin on the cores that ours use.
    "session.intra_op.allow_spinning": "0",
}


class OnnxRunner:
    """An ONNX Runtime session; unpickled in another process, it opens a new one."""

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
    """An exported network as a torch module. (B, C, H, W) -> (B, C, sH, sW)."""

    def __init__(self, runner: OnnxRunner) -> None:
        super().__init__()
        self.runner = runner
        self.config = runner.facts.config

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, H, W), float32 on the CPU -> (B, C, scale H, scale W)."""
        return self.runner.run(image)


def read_export(path: Path) -> OnnxRunner:
    """The runner of an exported file. Raises CheckpointError, MissingExtra."""
    if path.suffix.lower() != ".onnx":
        raise CheckpointError(
            f"{path} is a torch.export program: run it with torch.export.load(...).module(). Only "
            "networks exported as .onnx are run here."
        )
    return OnnxRunner(read_sealed(path), path)


def open_exported(path: Path) -> OnnxRunner:
    """The runner of an exported file without a fixed input size. Raises as read_export."""
    runner = read_export(path)
    if runner.facts.size is not None:
        height, width = runner.facts.size
        raise CheckpointError(
            f"{path} only takes inputs of {width}x{height} pixels, but tiles of a scene differ in "
            "size: export the network with --size dynamic."
        )
    return runner


def open_session(content: bytes, *, threads: int | None = None) -> Any:
    """An ONNX Runtime session for the content of a file. threads: default torch's number.

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
    options.log_severity_level = 3  # without the remarks of its optimiser
    for name, value in SETTINGS.items():
        options.add_session_config_entry(name, value)
    # whether the calling thread flushes denormal numbers to 0
    flushed = float((np.array([1e-40], np.float32) * np.float32(1))[0]) == 0
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # it has an error class for each code
        reason = next(iter(str(failure).splitlines()), "no reason given")
        raise CheckpointError(f"ONNX Runtime cannot run this network: {reason:.200}") from failure
    finally:
        # the first session also changes this for the calling thread
        torch.set_flush_denormal(flushed)
