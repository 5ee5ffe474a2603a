"""Export: trained weights as one file that other programs run, measured before it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from repmamba.durable import write_durable, write_errors
from repmamba.errors import TargetError, TargetExists, UsageError
from repmamba.exporting import mlm, onnx_file, parity, program_file
from repmamba.exporting.network import InputSize
from repmamba.exporting.programs import ANY, PROGRAMS, Program, size_for
from repmamba.inference.catalogue import find_weights, packaged_weights
from repmamba.inference.exported import FACTS, Difference, ExportedFacts
from repmamba.inference.upscaler import Upscaler, load
from repmamba.network.checkpoint import EXPORTED_ENDINGS
from repmamba.network.fusion import FusedRepMamba

PRECISIONS = tuple(parity.LIMITS)

LARGEST = 4096
"""Pixels of a side of a fixed input; far beyond what a program gives at once."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written."""

    path: Path
    size: int  # bytes
    facts: ExportedFacts

    def summary(self) -> str:
        """What it is, and how far from the network, in lines for people."""
        facts = self.facts
        takes = "any size" if facts.size is None else f"{facts.size[1]}x{facts.size[0]} pixels"
        lines = [
            f"{self.path}: x{facts.scale}, {takes}, {facts.nodes:,} nodes, {self.size / 1e6:.1f} MB"
        ]
        for runtime in dict.fromkeys((each.runtime, each.version) for each in facts.parity):
            of_it = [each for each in facts.parity if (each.runtime, each.version) == runtime]
            worst = max(each.largest for each in of_it)
            lines.append(
                f"{' '.join(runtime)}: {worst:.1e} from the network's own results at most, on "
                f"{len(of_it)} inputs"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
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
    """Write trained weights as one file for other programs: .onnx, or .pt2 for PyTorch alone.

    weights: as `load` takes them.  size: height and width of the input, and one image at a time;
    any, and any number of images, unless given.  precision: in which matrices are stored, float32
    or float16; all is computed in float32.  program: "deepness", whose rules the file then follows.
    The graph takes `lr`, (batch, bands, h, w) from 0 to 1, and gives `sr`, (batch, bands, scale h,
    scale w), not clamped. It is run first, and refused where it is more than 1e-4 (float16: one
    grey level) away from what the network gives. Raises ExportError, UsageError, MissingExtra,
    CheckpointError, TargetError, TargetExists.
    """
    path = Path(target)
    asked = _checked(path, size, precision, program, overwrite=overwrite)
    found = find_weights(weights)
    if found.path.suffix.lower() in EXPORTED_ENDINGS:
        raise UsageError(f"{found.path} is an export already: name the weights it was made of.")
    upscaler = load(weights, device="cpu")
    samples = parity.samples_of(upscaler.runner, asked.size, asked.program.finished)
    facts = _facts(upscaler, found.path, asked)
    with torch.no_grad():
        if path.suffix.lower() == ".onnx":
            content, facts = _as_onnx(_network(upscaler), asked, facts, samples, path.name)
        else:
            samples = [each for each in samples if min(each.lr.shape[2:]) >= program_file.LEAST]
            network = _network(load(weights, device="cpu", backend="chunked"))
            content, facts = _as_program(network, asked, facts, samples, path.name)
    with write_errors(path):
        write_durable(path, content)
    return Exported(path, len(content), facts)


@dataclass(frozen=True, slots=True)
class _Asked:
    size: tuple[int, int] | None
    precision: str
    program: Program


def _checked(
    path: Path, size: Sequence[int] | None, precision: str, program: str | None, *, overwrite: bool
) -> _Asked:
    ending = path.suffix.lower()
    if ending not in EXPORTED_ENDINGS:
        raise UsageError(f"{path} names no form of export: end it with .onnx or .pt2.")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r:.40}; choose float32 or float16.")
    if program is not None and program not in PROGRAMS:
        raise UsageError(f"There is no export for {program!r:.40}; there is {', '.join(PROGRAMS)}.")
    if ending == ".pt2" and (precision != "float32" or program is not None):
        raise UsageError(f"{path} is for PyTorch, in float32: float16 and programs are for .onnx.")
    if size is not None:
        lengths = tuple(size)
        if len(lengths) != 2 or any(
            type(length) is not int or not 1 <= length <= LARGEST for length in lengths
        ):
            raise UsageError(
                f"size is {size!r:.60}; give height and width, whole numbers from 1 to {LARGEST}, "
                "or leave it out for inputs of any size."
            )
        size = lengths
    if ending == ".pt2" and size is not None and min(size) < program_file.LEAST:
        raise UsageError(f"A program of torch takes sides from {program_file.LEAST} pixels on.")
    if not path.parent.is_dir():
        raise TargetError(f"There is no folder {path.parent} for {path.name}: make it first.")
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} is there already: name another file, or overwrite it.")
    chosen = PROGRAMS[program] if program else ANY
    return _Asked(size_for(chosen, size), precision, chosen)


def _network(upscaler: Upscaler) -> FusedRepMamba:
    assert isinstance(upscaler.module, FusedRepMamba)  # load has fused it
    return upscaler.module


def _facts(upscaler: Upscaler, path: Path, asked: _Asked) -> ExportedFacts:
    """What is known before the graph is written and run."""
    packaged = {entry.path: entry for entry in packaged_weights()}.get(path)
    return ExportedFacts(
        config=_network(upscaler).config,
        name=upscaler.name,
        network=upscaler.digest,
        weights=hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        terms=upscaler.terms or "those of the weights it was made of",
        training_data=packaged.training_data if packaged else "",
        tile=upscaler.tile,
        halo=upscaler.halo,
        size=asked.size,
        precision=asked.precision,
        purpose=asked.program.name,
        nodes=0,
        parity=(),
    )


def _as_onnx(
    network: FusedRepMamba,
    asked: _Asked,
    facts: ExportedFacts,
    samples: Sequence[parity.Sample],
    name: str,
) -> tuple[bytes, ExportedFacts]:
    """The content of a file of ONNX, and its facts with what was measured."""
    size = InputSize(*asked.size) if asked.size else InputSize()
    half = asked.precision == "float16"
    graph = onnx_file.graph_of(network, size, asked.program, half=half)
    model = onnx_file.model_of(graph, network, size)
    found = parity.measured(model.SerializeToString(), samples)
    facts = _with(facts, found, len(graph.nodes))
    metadata = asked.program.metadata(facts) | _metadata(facts, name, network)
    return onnx_file.content_of(model, metadata), facts


def _as_program(
    network: FusedRepMamba,
    asked: _Asked,
    facts: ExportedFacts,
    samples: Sequence[parity.Sample],
    name: str,
) -> tuple[bytes, ExportedFacts]:
    """The content of a program of torch.export, and its facts with what was measured."""
    program = program_file.program_of(network, asked.size)
    run = program_file.runner_of(program)
    found = parity.differences(run, samples, "torch", torch.__version__)
    facts = _with(facts, found, len(program.graph.nodes))
    return program_file.content_of(program, _metadata(facts, name, network)), facts


def _with(facts: ExportedFacts, found: Sequence[Difference], nodes: int) -> ExportedFacts:
    """The facts with what was measured. Raises ExportError where that is too much."""
    parity.check(found, facts.precision)
    return replace(facts, parity=tuple(found), nodes=nodes)


def _metadata(facts: ExportedFacts, name: str, network: FusedRepMamba) -> dict[str, str]:
    numbers = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    return {
        FACTS: json.dumps(facts.to_dict(), sort_keys=True, allow_nan=False),
        mlm.ENTRY: json.dumps(mlm.item(facts, name, numbers), sort_keys=True, allow_nan=False),
    }
