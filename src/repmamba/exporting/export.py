"""Export trained weights as one file for other programs, checked before it is written."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from repmamba.durable import write_durable, write_errors
from repmamba.errors import TargetError, TargetExists, UsageError
from repmamba.exporting import mlm, onnx_file, parity, pt2_file
from repmamba.exporting.network import InputSize
from repmamba.exporting.programs import ANY, PROGRAMS, Program, size_for
from repmamba.inference.catalogue import find_weights, packaged_weights
from repmamba.inference.exported import FACTS, Difference, ExportedFacts
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.network.checkpoint import EXPORTED_ENDINGS
from repmamba.network.fusion import FusedRepMamba

PRECISIONS = tuple(parity.LIMITS)

LARGEST = 4096  # pixels on a side of a fixed input; far above any program's tiles


@dataclass(frozen=True, slots=True)
class Exported:
    """A written file."""

    path: Path
    size: int  # bytes
    facts: ExportedFacts

    def summary(self) -> str:
        """The file, and its difference from the network in each runtime, as text."""
        facts = self.facts
        takes = "any size" if facts.size is None else f"{facts.size[1]}x{facts.size[0]} pixels"
        lines = [
            f"{self.path}: x{facts.scale}, {takes}, {facts.nodes:,} nodes, {self.size / 1e6:.1f} MB"
        ]
        for runtime in dict.fromkeys((each.runtime, each.version) for each in facts.parity):
            of_it = [each for each in facts.parity if (each.runtime, each.version) == runtime]
            worst = max(each.largest for each in of_it)
            lines.append(
                f"{' '.join(runtime)}: differs from the network by {worst:.1e} at most, on "
                f"{len(of_it)} inputs"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"path": str(self.path), "bytes": self.size, **self.facts.to_dict()}


def export(
    weights: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    size: Sequence[int] | None = None,
    precision: str = "float32",
    program: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write trained weights as one file for other programs: .onnx, or .pt2 for PyTorch.

    The graph takes `lr`, (batch, bands, h, w) from 0 to 1, and returns `sr`, (batch, bands, scale
    h, scale w), not clamped. It is run before it is written, and refused if it differs from the
    network by more than 1e-4 (float16: one grey level).

    Args:
        weights: As for `load`.
        target: The file to write, .onnx or .pt2.
        size: Fixed height and width of the input, and batches of one; by default any size and any
            number of images.
        precision: How matrices are stored, "float32" or "float16"; computed is in float32.
        program: "deepness", to follow its conventions.
        overwrite: Whether to replace an existing file.

    Returns:
        The file and what it says about itself.

    Raises:
        ExportError: The exported network differs too much.
        UsageError: The arguments do not fit together.
        MissingExtra: ONNX is not installed.
        CheckpointError: The weights cannot be loaded.
        TargetError: The file cannot be written; TargetExists if it exists.
    """
    path = Path(target)
    options = _options(path, size, precision, program, overwrite=overwrite)
    found = find_weights(weights)
    if found.path.suffix.lower() in EXPORTED_ENDINGS:
        raise UsageError(f"{found.path} is already an export: name the weights that were exported.")
    upscaler = load(weights, device="cpu")
    samples = parity.samples_of(upscaler.runner, options.size, options.program.finished)
    facts = _facts(upscaler, found.path, options)
    with torch.no_grad():
        if path.suffix.lower() == ".onnx":
            content, facts = _as_onnx(_network(upscaler), options, facts, samples, path.name)
        else:
            samples = [each for each in samples if min(each.lr.shape[2:]) >= pt2_file.LEAST]
            network = _network(load(weights, device="cpu", backend="chunked"))
            content, facts = _as_program(network, options, facts, samples, path.name)
    with write_errors(path):
        write_durable(path, content)
    return Exported(path, len(content), facts)


@dataclass(frozen=True, slots=True)
class _Options:
    size: tuple[int, int] | None
    precision: str
    program: Program


def _options(
    path: Path, size: Sequence[int] | None, precision: str, program: str | None, *, overwrite: bool
) -> _Options:
    ending = path.suffix.lower()
    if ending not in EXPORTED_ENDINGS:
        raise UsageError(f"{path} is not a known format: use the ending .onnx or .pt2.")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r:.40}; choose float32 or float16.")
    if program is not None and program not in PROGRAMS:
        raise UsageError(
            f"There is no export for {program!r:.40}; choose among {', '.join(PROGRAMS)}."
        )
    if ending == ".pt2" and (precision != "float32" or program is not None):
        raise UsageError(f"{path} is for PyTorch, in float32: use .onnx for float16 or a program.")
    least = pt2_file.LEAST if ending == ".pt2" else 1
    if size is not None:
        size = tuple(map(operator.index, size))
        if len(size) != 2 or not all(least <= length <= LARGEST for length in size):
            raise UsageError(
                f"size={size}: give height and width from {least} to {LARGEST} pixels for "
                f"{ending}, or leave it out for inputs of any size."
            )
    if not path.parent.is_dir():
        raise TargetError(f"There is no folder {path.parent} for {path.name}: create it first.")
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} already exists: name another file, or overwrite it.")
    chosen = PROGRAMS[program] if program else ANY
    return _Options(size_for(chosen, size), precision, chosen)


def _network(upscaler: Upscaler) -> FusedRepMamba:
    assert isinstance(upscaler.module, FusedRepMamba)  # load has fused it
    return upscaler.module


def _facts(upscaler: Upscaler, path: Path, options: _Options) -> ExportedFacts:
    """What is known before the graph is written and run."""
    packaged = {entry.path: entry for entry in packaged_weights()}.get(path)
    return ExportedFacts(
        config=_network(upscaler).config,
        name=upscaler.name,
        network=upscaler.digest,
        weights=hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        terms=upscaler.terms or "those of the exported weights",
        training_data=packaged.training_data if packaged else "",
        tile=upscaler.tile,
        halo=upscaler.halo,
        size=options.size,
        precision=options.precision,
        purpose=options.program.name,
        nodes=0,
        parity=(),
        denoises=upscaler.denoises,
    )


def _as_onnx(
    network: FusedRepMamba,
    options: _Options,
    facts: ExportedFacts,
    samples: Sequence[parity.Sample],
    name: str,
) -> tuple[bytes, ExportedFacts]:
    """The content of an ONNX file, and its facts with the measured differences."""
    size = InputSize(*options.size) if options.size else InputSize()
    half = options.precision == "float16"
    graph = onnx_file.graph_of(network, size, options.program, half=half)
    model = onnx_file.model_of(graph, network, size)
    found = parity.measured(model.SerializeToString(), samples)
    facts = _with(facts, found, len(graph.nodes))
    metadata = options.program.metadata(facts) | _metadata(facts, name, network)
    return onnx_file.content_of(model, metadata), facts


def _as_program(
    network: FusedRepMamba,
    options: _Options,
    facts: ExportedFacts,
    samples: Sequence[parity.Sample],
    name: str,
) -> tuple[bytes, ExportedFacts]:
    """The content of a torch.export program, and its facts with the measured differences."""
    program = pt2_file.program_of(network, options.size)
    run = pt2_file.runner_of(program)
    found = parity.differences(run, samples, "torch", torch.__version__)
    facts = _with(facts, found, len(program.graph.nodes))
    return pt2_file.content_of(program, _metadata(facts, name, network)), facts


def _with(facts: ExportedFacts, found: Sequence[Difference], nodes: int) -> ExportedFacts:
    """The facts with the measured differences. Raises ExportError if these are too large."""
    parity.check(found, facts.precision)
    return replace(facts, parity=tuple(found), nodes=nodes)


def _metadata(facts: ExportedFacts, name: str, network: FusedRepMamba) -> dict[str, str]:
    numbers = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    return {
        FACTS: json.dumps(facts.to_dict(), sort_keys=True, allow_nan=False),
        mlm.ENTRY: json.dumps(mlm.item(facts, name, numbers), sort_keys=True, allow_nan=False),
    }
