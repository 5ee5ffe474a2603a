"""Programs that run exported networks by conventions of their own.

Deepness is a QGIS plugin. It cuts a raster into square tiles, divides bytes by 255, runs the
network on each tile and multiplies the result by 255 ("Output scaling"). It truncates results to
bytes, and values above 255 wrap around. So the graph clips to [0, 1] and adds half a level. Source:
src/deepness/processing of PUTvision/qgis-plugin-deepness, commit f450c634 of December 2024.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from repmamba.errors import UsageError
from repmamba.exporting.graph import Graph, Value
from repmamba.inference.exported import ExportedFacts

HALF_A_LEVEL = np.float32(0.5 / 255)


@dataclass(frozen=True, slots=True)
class Program:
    """What a program needs: last nodes of the graph, metadata, and an input size."""

    name: str
    write: Callable[[Graph, Value], Value]  # the last nodes, after the network
    finished: Callable[[Tensor], Tensor]  # the same, for a tensor
    metadata: Callable[[ExportedFacts], dict[str, str]]
    edge: int | None  # default side of the square input; None: any size


def _as_bytes(graph: Graph, sr: Value) -> Value:
    clipped = graph.node("Clip", sr, np.array(0.0), np.array(1.0))
    return graph.node("Add", clipped, np.array(HALF_A_LEVEL))


def _of_deepness(facts: ExportedFacts) -> dict[str, str]:
    # tiles_overlap is 0, as its super-resolution fails with others: it pastes whole tiles at their
    # strides.
    assert facts.size is not None
    values = {
        "model_type": "Superresolution",
        "tile_size": facts.size[0],
        "tiles_overlap": 0,
        "standardization_mean": [0.0] * facts.bands,
        "standardization_std": [1.0] * facts.bands,
    }
    return {name: json.dumps(value) for name, value in values.items()}


ANY = Program("", lambda graph, sr: sr, lambda sr: sr, lambda facts: {}, None)
DEEPNESS = Program(
    "deepness", _as_bytes, lambda sr: sr.clamp(0, 1) + float(HALF_A_LEVEL), _of_deepness, 256
)
PROGRAMS = {program.name: program for program in (DEEPNESS,)}  # by the names for `--for`


def size_for(program: Program, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The input size: as asked for, or the program's. Raises UsageError."""
    if program.edge is None:
        return size
    if size is None:
        return program.edge, program.edge
    height, width = size
    if height != width:
        raise UsageError(
            f"{program.name} takes square inputs, not {width}x{height}: give one length twice, "
            f"such as {program.edge}x{program.edge}."
        )
    return size
