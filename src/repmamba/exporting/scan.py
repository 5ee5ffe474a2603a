"""The selective scan of a map as graph nodes, their number independent of the map's size.

The equation is in `repmamba.scan.definition`. A sequence is cut into chunks of 16 steps. First, one
step is taken in all chunks at once, from a zero state; the last state is what a chunk adds. Four
chunks are combined into a group in the same way, and four groups into a block of 256 steps. What
passes from block to block is computed for all pairs of blocks at once. Then the order is reversed:
each group, chunk and step is computed from its true initial state. There is no loop, and no limit
of the length.

All decays are exp of a number <= 0. Those between blocks are the exp of A times the sum of the step
sizes between the two, added up for each pair, not a difference of cumulative sums. So nothing
overflows, nothing is divided by a small decay, and long sequences keep their precision.

Values are (batch, direction, channel, state, chunk of a block, step, block): with the blocks last,
most operations run along many numbers, and groups are axes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repmamba.exporting.graph import Graph, Length, Operand, Value
from repmamba.scan.sizes import DIRECTIONS, STATE

Array: TypeAlias = NDArray[np.float32]

STEPS = 16  # in a chunk. Each has its own nodes; half as many would double the memory between them.
GROUP = 4  # chunks in a group, and groups in a group of groups
CHUNKS = GROUP * GROUP  # in a block. Sequences are padded to whole blocks.
Level: TypeAlias = tuple[int, int]  # groups around; chunks, or groups of them, in one
LEVELS: tuple[Level, ...] = ((GROUP, GROUP), (1, GROUP))  # chunks in a group, groups in a block

# directions in the graph: rows forward and backward, columns forward and backward
ORDER = (0, 2, 1, 3)

NEVER = 1e9  # a step size that decays to zero, for pairs whose second block is not the later one
SOFTPLUS_LINEAR = 20.0  # beyond it, softplus(x) is x
TO_THE_FIRST = -(2**62)  # the end of a backward slice


class Scanned(Protocol):
    """The tensors of fusion.FusedRMB that the scan reads."""

    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """What all scans of a graph share, as their maps have the same size."""

    height: Length  # of a map
    width: Length
    length: Operand  # of a sequence
    fill: Operand  # pads to whole blocks, of five axes
    later: Operand  # (blocks, blocks): 1 where the second is later than the first, else 0
    never: Operand  # (blocks, blocks): NEVER where it is not, else 0


def plan_scans(graph: Graph, height: Length, width: Length) -> Plan:
    """The plan for maps of this size, that of the pooled maps."""
    with graph.scope("plan"):
        length = graph.times(height, width)
        blocks = graph.pieces(length, CHUNKS * STEPS)
        fill = graph.minus(graph.times(blocks, CHUNKS * STEPS), length)
        return Plan(
            height,
            width,
            graph.vector([length]),
            graph.vector([0] * 9 + [fill]),
            *_masks(graph, blocks),
        )


def _masks(graph: Graph, blocks: Length) -> tuple[Operand, Operand]:
    if isinstance(blocks, int):
        later = np.triu(np.ones((blocks, blocks), np.float32), 1)
        return later, NEVER * (1 - later)
    order = graph.node("Range", np.array(0), graph.node("Squeeze", blocks), np.array(1))
    first = graph.node("Unsqueeze", order, np.array([1]))
    later_ = graph.node("Cast", graph.node("Greater", order, first), to=1)
    others = graph.node("Sub", np.array(1.0), later_)
    return later_, graph.node("Mul", others, np.array(NEVER))


def scan_map(graph: Graph, layer: Scanned, pooled: Value, plan: Plan) -> Value:
    """pooled: (batch, channel, h, w) -> the same, as `repmamba.scan.selective.scan_map`."""
    channel = layer.dt_weight.shape[1]
    dt, drive, B, C = _steps(graph, layer, pooled, plan)
    A = layer.A.view(DIRECTIONS, channel, STATE, 1, 1, 1)[list(ORDER)].numpy()
    decays = [graph.node("Exp", graph.node("Mul", each, A)) for each in _unbound(graph, dt, STEPS)]
    added = [
        graph.node("Mul", one, other)
        for one, other in zip(_unbound(graph, drive, STEPS), _unbound(graph, B, STEPS), strict=True)
    ]
    total = graph.node("ReduceSum", dt, np.array([5]))
    left = _advanced(graph, added[0], decays[1:], added[1:])[-1]
    rates = A.reshape(-1, STATE, 1, 1, 1)
    before = _before(graph, total, left, rates, plan, LEVELS)
    shape = np.array([0, DIRECTIONS, channel, STATE, CHUNKS, 1, -1])
    states = _advanced(graph, graph.node("Reshape", before, shape), decays, added)[1:]
    ys = [
        graph.node("ReduceSum", graph.node("Mul", h, C_t), np.array([3]), keepdims=0)
        for h, C_t in zip(states, _unbound(graph, C, STEPS), strict=True)
    ]
    y = graph.node("Concat", *ys, axis=4)  # (batch, direction, channel, chunk, step, block)
    skip = layer.D.view(DIRECTIONS, channel).sum(0).view(1, -1, 1, 1).numpy()
    return graph.node("Add", _image(graph, y, channel, plan), graph.node("Mul", pooled, skip))


def _advanced(
    graph: Graph, h: Value, decays: Sequence[Value], added: Sequence[Value]
) -> list[Value]:
    """The state h, then the state after each step: h <- decay h + added."""
    states = [h]
    for decay, each in zip(decays, added, strict=True):
        states.append(graph.node("Add", graph.node("Mul", decay, states[-1]), each))
    return states


def _unbound(graph: Graph, value: Value, count: int) -> list[Value]:
    """One value per step of a chunk, or per part of a group, along the second to last axis."""
    return graph.nodes_of("Split", value, np.ones(count, np.int64), count=count, axis=-2)


def _steps(graph: Graph, layer: Scanned, pooled: Value, plan: Plan) -> list[Value]:
    """dt and dt u, (batch, 4, channel, 1, chunk, step, block); B, C, (batch, 4, 1, state, ...).

    The projections of the pooled map and of the step sizes are one matrix product.
    """
    channel, rank = layer.dt_weight.shape[1:]
    rows = layer.x_proj.double().view(DIRECTIONS, rank + 2 * STATE, channel)[list(ORDER)]
    of_dt = layer.dt_weight.double()[list(ORDER)] @ rows[:, :rank]
    # By row and by column: dt forward and backward, then B and C forward and backward.
    matrices = [each.reshape(2, -1, channel).numpy() for each in (of_dt, rows[:, rank:])]
    weight = np.concatenate(matrices, axis=1)
    bias = layer.dt_bias[list(ORDER)].reshape(2, -1, 1).numpy()

    flat = np.array([0, 1, channel, -1])
    by_row = graph.node("Reshape", pooled, flat)
    by_column = graph.node("Reshape", graph.node("Transpose", pooled, perm=[0, 1, 3, 2]), flat)
    u = graph.node("Concat", by_row, by_column, axis=1)  # (batch, 2, channel, length)
    product = graph.node("MatMul", graph.constant(weight), u)
    halves = np.array([2 * channel, 4 * STATE])
    dt, others = graph.nodes_of("Split", product, halves, count=2, axis=2)
    dt = _softplus(graph, graph.node("Add", dt, bias))
    dt = graph.node("Reshape", dt, np.array([0, 2, 2, channel, -1]))
    others = graph.node("Reshape", others, np.array([0, 2, 2, 2 * STATE, -1]))
    drive = graph.node("Mul", dt, graph.node("Unsqueeze", u, np.array([2])))
    sequences = graph.node("Concat", dt, drive, others, axis=3)
    there, back = graph.nodes_of("Split", sequences, np.array([1, 1]), count=2, axis=2)
    sequences = graph.node("Concat", there, _reversed(graph, back), axis=2)

    # dt is 0 in the padding, so the state does not change there.
    filled = graph.node("Pad", sequences, plan.fill)
    n = 2 * channel + 2 * STATE
    cut = graph.node("Reshape", filled, np.array([0, DIRECTIONS, n, -1, CHUNKS * STEPS]))
    cut = graph.node("Transpose", cut, perm=[0, 1, 2, 4, 3])
    shapes = [[channel, 1], [channel, 1], [1, STATE], [1, STATE]]
    parts = graph.nodes_of("Split", cut, np.prod(shapes, axis=1), count=4, axis=2)
    return [
        graph.node("Reshape", part, np.array([0, DIRECTIONS, *shape, CHUNKS, STEPS, -1]))
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _reversed(graph: Graph, sequence: Value) -> Value:
    """(batch, 2, 1, n, length), reversed along the last axis."""
    bounds = (np.array([bound]) for bound in (-1, TO_THE_FIRST, 4, -1))
    return graph.node("Slice", sequence, *bounds)


def _before(
    graph: Graph, dt: Value, added: Value, rates: Array, plan: Plan, levels: Sequence[Level]
) -> Value:
    """The state before each chunk, from that before each group, from that before each block.

    dt: the sum of a chunk's step sizes. added: the state it leaves when it starts from zero. All
    with axes (batch, direction and channel, state, groups around, parts of one, block).
    """
    rows = len(rates)
    if not levels:
        return _before_blocks(graph, dt, added, rates, plan)
    (around, count), *larger = levels

    def arranged(value: Value, states: int, parts: int) -> Value:
        return graph.node("Reshape", value, np.array([0, rows, states, around, parts, -1]))

    dt = arranged(dt, 1, count)
    parts = _unbound(graph, arranged(added, STATE, count), count)
    decays = _unbound(graph, graph.node("Exp", graph.node("Mul", dt, rates)), count)
    total = graph.node("ReduceSum", dt, np.array([4]))
    left = _advanced(graph, parts[0], decays[1:], parts[1:])[-1]
    before = arranged(_before(graph, total, left, rates, plan, larger), STATE, 1)
    return graph.node("Concat", *_advanced(graph, before, decays[:-1], parts[:-1]), axis=4)


def _before_blocks(graph: Graph, dt: Value, added: Value, rates: Array, plan: Plan) -> Value:
    """The state before each block: what all earlier blocks leave, decayed by those between."""
    rows = len(rates)
    dt = graph.node("Reshape", dt, np.array([0, rows, 1, 1, -1]))
    added = graph.node("Reshape", added, np.array([0, rows, STATE, 1, -1]))
    # For a pair (i, j) the sum over i < k < j, as a product: what follows a CumSum is wrong in
    # OpenVINO (2026.4) for maps of any size.
    between = graph.node("MatMul", graph.node("Mul", dt, plan.later), plan.later)
    between = graph.node("Add", between, plan.never)
    decay = graph.node("Exp", graph.node("Mul", between, rates[..., 0]))
    return graph.node("MatMul", added, decay)


def _softplus(graph: Graph, x: Value) -> Value:
    """log(1 + e**x) in operations that are fast in every runtime; exact to float32 for any x.

    For small z = e**x, 1 + z loses digits of z; log(1 + z) / ((1 + z) - 1) loses the same ones.
    """
    z = graph.node("Exp", graph.node("Min", x, np.array(SOFTPLUS_LINEAR)))
    sum_ = graph.node("Max", graph.node("Add", z, np.array(1.0)), np.array(1 + 2.0**-23))
    ratio = graph.node("Div", graph.node("Log", sum_), graph.node("Sub", sum_, np.array(1.0)))
    return graph.node("Max", graph.node("Mul", z, ratio), x)


def _image(graph: Graph, y: Value, channel: int, plan: Plan) -> Value:
    """The sum of the four directions, (batch, channel, h, w).

    y: (batch, 4, channel, chunk, step, block).
    """
    y = graph.node("Reshape", y, np.array([0, DIRECTIONS, channel, CHUNKS * STEPS, -1]))
    y = graph.node("Transpose", y, perm=[0, 1, 2, 4, 3])
    y = graph.node("Reshape", y, np.array([0, 2, 2, channel, -1]))
    y = graph.node("Slice", y, np.array([0]), plan.length, np.array([4]))
    there, back = graph.nodes_of("Split", y, np.array([1, 1]), count=2, axis=2)
    y = graph.node("Add", there, _reversed(graph, back))  # (batch, 2, 1, channel, length)
    by_row, by_column = (
        graph.node("Squeeze", each, np.array([1, 2]))
        for each in graph.nodes_of("Split", y, np.array([1, 1]), count=2, axis=1)
    )
    # Give the number of channels: without it, OpenVINO resizes the map wrongly.
    by_row = graph.node("Reshape", by_row, graph.vector([0, channel, plan.height, plan.width]))
    across = graph.vector([0, channel, plan.width, plan.height])
    by_column = graph.node("Reshape", by_column, across)
    return graph.node("Add", by_row, graph.node("Transpose", by_column, perm=[0, 1, 3, 2]))
