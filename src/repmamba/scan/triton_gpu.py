"""The selective scan on a GPU, with Triton, which comes with CUDA builds of torch.

Triton's launcher needs a C compiler. The kernels are in `triton_kernels`; this module prepares
their arguments, and `operators` makes torch operators of them. Half-precision maps are read as they
are; states, results and all gradients but those of the maps are float32. The backward pass computes
the states again, from every SEGMENT-th, which the forward pass keeps.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from repmamba.scan.layout import own, pixels, steps_first
from repmamba.scan.operators import MAP_SLABS, Gradients, Scan, register, wants_gradients
from repmamba.scan.sizes import STATE

CONSTANTS = STATE + 2  # rows of gradients for A, D and dt_bias; those of dt_weight follow
# Positions per chunk: short enough that the 64 x 64 pooled map of a 128 x 128 tile makes 1,024
# programs of the widest scan; the states at the ends of chunks are then 16 / 32 of a map per
# direction.
STEPS = 32
# Steps between kept states: those of a segment are in registers at once, 16 per thread and step;
# 8 would spill.
SEGMENT = 4
WIDEST_BLOCK = 32  # channels per program: one per thread
# channels per program that goes over the chunks: few, because there are no chunks to fill a device
CARRY_BLOCK = 8

AHEAD = 8  # chunks whose loads are in flight


def start() -> None:
    """Start Triton's launcher, which compiles a C file. Raises whatever it raises."""
    if not _kernels().INTERPRETED:
        from triton.runtime import driver

        driver.active.get_current_target()


def scan_sequences(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan; arguments, result and source as `definition.scan_by_definition`."""
    tensors = (u, dt, A, B, C, D)
    keep = wants_gradients("triton", *tensors)
    y: Tensor = torch.ops.repmamba.scan_sequences_triton(*tensors, keep)[0]
    return y


def scan_map(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """The scan of a map in four directions; arguments and result as `selective.scan_map`.

    p and projected may have any floating-point type; the others and the result are float32, or all
    are float64.
    """
    tensors = (p, projected, dt_weight, dt_bias, A, D)
    y: Tensor = torch.ops.repmamba.scan_map_triton(*tensors, wants_gradients("triton", *tensors))[0]
    return y


@cache
def _kernels() -> ModuleType:
    from repmamba.scan import triton_kernels

    return triton_kernels


@dataclass(frozen=True, slots=True)
class _Problem:
    """The arguments that the kernels share, as `triton_kernels` names and shapes them."""

    u: Tensor  # (batch, length, channel) of a map, (batch, groups, length, channel) of sequences
    dt: Tensor  # the same; read when rank is 0
    rows: Tensor
    dt_weight: Tensor  # (groups, channel, rank)
    dt_bias: Tensor  # (groups, channel)
    A: Tensor  # (groups * channel, 16)
    D: Tensor
    height: int  # of a map
    width: int

    @property
    def read(self) -> tuple[Tensor, ...]:
        """What every kernel over chunks reads."""
        return self.dt, self.rows, self.dt_weight, self.dt_bias, self.A

    @property
    def is_map(self) -> bool:
        return self.u.ndim == 3

    @property
    def batch(self) -> int:
        return self.u.shape[0]

    @property
    def groups(self) -> int:
        return self.dt_weight.shape[0]

    @property
    def length(self) -> int:
        return self.u.shape[-2]

    @property
    def channel(self) -> int:
        return self.u.shape[-1]

    @property
    def rank(self) -> int:
        return self.dt_weight.shape[2]

    @property
    def slabs(self) -> int:
        return MAP_SLABS if self.is_map else self.groups

    @property
    def chunks(self) -> int:
        return -(-self.length // STEPS)

    @property
    def blocks(self) -> int:
        return -(-self.channel // self.block)

    @property
    def block(self) -> int:
        """Channels per program."""
        return min(_power_of_two(self.channel), WIDEST_BLOCK)

    def new(self, *shape: int) -> Tensor:
        """New memory in the type of the states."""
        return self.A.new_empty(shape)

    def launch(self, kernel: str, slabs: int, tensors: tuple[Tensor, ...], **flags: int) -> None:
        """Run a kernel over all chunks, blocks of channels, slabs (or groups) and the batch."""
        _launch(
            kernel,
            (self.chunks * self.blocks, slabs, self.batch),
            *tensors,
            *(self.groups, self.length, self.height, self.width, self.channel),
            MAP=self.is_map,
            RANK=self.rank,
            RANK_BLOCK=_power_of_two(self.rank),
            STEPS=STEPS,
            BLOCK=self.block,
            **flags,
        )


def _launch(kernel: str, grid: tuple[int, int, int], *arguments: Any, **constants: int) -> None:
    # Triton launches on the current device, not on that of the tensors.
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(_kernels(), kernel)[grid](*arguments, **constants, num_warps=1)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and 1."""
    return 1 << max(n - 1, 0).bit_length()


def _map_problem(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> _Problem:
    height, width = p.shape[2:]
    dt_weight, dt_bias, A, D = (x.contiguous() for x in (dt_weight, dt_bias, A, D))
    u = pixels(p)
    return _Problem(u, u, pixels(projected), dt_weight, dt_bias, A, D, height, width)


def _sequence_problem(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> _Problem:
    groups, length = B.shape[1], u.shape[2]
    rows = torch.cat((B, C), dim=2).transpose(2, 3).contiguous()
    no_weight, no_bias = A.new_empty(groups, u.shape[1] // groups, 0), D.contiguous()
    u, dt = steps_first(u, groups), steps_first(dt, groups)
    return _Problem(u, dt, rows, no_weight, no_bias, A.contiguous(), D.contiguous(), 1, length)


def _at_chunks(problem: _Problem, source: Tensor, *, adjoint: bool) -> Tensor:
    """The states before every chunk, (batch, groups, chunks, 16, channel).

    adjoint: instead the gradients of the states after every chunk.
    """
    shape = (problem.batch, problem.groups, problem.chunks)
    if problem.chunks == 1:
        return problem.new(*shape, STATE, problem.channel).zero_()
    states, spans = (
        problem.new(*shape, STATE, problem.channel),
        problem.new(*shape, problem.channel),
    )
    tensors = (source, *problem.read, states, spans)
    problem.launch("chunk_ends", problem.groups, tensors, ADJOINT=adjoint)
    _launch(
        "carry",
        (-(-problem.channel // CARRY_BLOCK), problem.groups, problem.batch),
        *(states, spans, problem.A, problem.groups, problem.chunks, problem.channel),
        MAP=problem.is_map,
        ADJOINT=adjoint,
        AHEAD=AHEAD,
        BLOCK=CARRY_BLOCK,
    )
    return states


def _forward(problem: _Problem, keep: bool) -> tuple[Tensor, Tensor]:
    """y of each slab, (batch, slabs, length, channel), and the kept states, if `keep`."""
    starts = _at_chunks(problem, problem.u, adjoint=False)
    y = problem.new(problem.batch, problem.slabs, problem.length, problem.channel)
    length = problem.length if keep else 0
    kept = problem.new(
        *_kept_shape(problem.batch, problem.groups, length, problem.channel, problem.A.dtype)
    )
    problem.launch(
        "outputs",
        problem.slabs,
        (problem.u, *problem.read, problem.D, starts, y, kept),
        KEEP=keep,
        SEGMENT=SEGMENT,
    )
    return y, kept


def _backward(problem: _Problem, kept: Tensor, dy: Tensor) -> Gradients:
    ends = _at_chunks(problem, dy, adjoint=True)
    du = problem.new(problem.batch, problem.slabs, problem.length, problem.channel)
    ddt = problem.new(*problem.dt.shape) if problem.rank == 0 else du
    drows = problem.new(problem.blocks, *problem.rows.shape)
    lines = CONSTANTS + problem.rank
    dconstants = problem.new(problem.batch, problem.chunks, problem.groups, lines, problem.channel)
    problem.launch(
        "gradients",
        problem.slabs,
        (problem.u, *problem.read, problem.D, kept, ends, dy, du, ddt, drows, dconstants),
        SEGMENT=SEGMENT,
    )
    by_line = dconstants.sum((0, 1))
    return Gradients(
        u=du,
        dt=ddt,
        rows=drows.sum(0),
        dt_weight=own(by_line[:, CONSTANTS:].transpose(1, 2)),
        dt_bias=own(by_line[:, STATE + 1]),
        A=own(by_line[:, :STATE].transpose(1, 2)).view(-1, STATE),
        D=own(by_line[:, STATE]).view(-1),
    )


def _kept_shape(
    batch: int, groups: int, length: int, channel: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """Shape of the states before every segment."""
    return batch, groups, -(-length // SEGMENT), STATE, channel


register(Scan(_map_problem, _sequence_problem, _forward, _backward, _kept_shape), "_triton")
