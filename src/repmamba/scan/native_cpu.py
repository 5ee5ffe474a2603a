"""The selective scan on the CPU in float32, by the compiled kernels (kernels/scan.cpp).

This module prepares the kernels' arguments; `operators` makes torch operators of them. Each unit of
work owns what it writes, so the result is the same, bit by bit, for any number of threads. The
threads are ours (`threads`), at most torch.get_num_threads().
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from repmamba.kernels.library import fields, library
from repmamba.scan.directions import visits
from repmamba.scan.layout import own, pixels, steps_first
from repmamba.scan.operators import MAP_SLABS, Gradients, Scan, register, wants_gradients
from repmamba.scan.sizes import DIRECTIONS, STATE
from repmamba.scan.threads import split_work

# steps times channels below which a second thread costs more than it saves
WORK_FOR_THREADS = 2**15

# as in scan.cpp: the rows of a block's constants
SEGMENT, AT_ONCE = 64, 4
D_ROW, BIAS_ROW, WEIGHT_ROWS = STATE, STATE + 1, STATE + 2


def start() -> None:
    """Load the kernels. Raises OSError."""
    library()


def scan_sequences(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan; arguments, result and source as `definition.scan_by_definition`."""
    tensors = (u, dt, A, B, C, D)
    y: Tensor = torch.ops.repmamba.scan_sequences(*tensors, wants_gradients("native", *tensors))[0]
    return y


def scan_map(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """The scan of a map in four directions; arguments and result as `selective.scan_map`."""
    tensors = (p, projected, dt_weight, dt_bias, A, D)
    y: Tensor = torch.ops.repmamba.scan_map(*tensors, wants_gradients("native", *tensors))[0]
    return y


class ScanArguments(ctypes.Structure):
    """struct Scan of scan.h."""

    _fields_ = fields(
        "slabs groups length channels used rank *visits *u *dt u_batch u_group "
        "*rows rows_batch rows_group rows_pixel *dt_weight *dt_bias *A *D *kept *y"
    )


class GradientsArguments(ctypes.Structure):
    """struct ScanGradients of scan.h."""

    _fields_ = (
        ("scan", ScanArguments),
        *fields(
            "*dy dy_batch dy_group *du *drows *dconstants *ddt drows_batch drows_group drows_pixel"
        ),
    )


def map_pass(
    p: Tensor,
    projected: Tensor,
    height: int,
    width: int,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    y: Tensor,
) -> tuple[ScanArguments, int, int]:
    """The scan of maps in the caller's memory, as work for `scan_forward`.

    p: (batch h w, C), C as `lanes_of` allows.
    projected: (batch h w, 4 (R + 32) or more), of which the first are read.
    dt_weight, dt_bias, A, D: as those of `scan_map`, contiguous.
    y: (batch, 2, h w, C); the result is the sum over axis 1.

    All float32. The caller keeps them alive, and `visits(height, width)` too. Returns the kernel's
    arguments, its units of work and its scratch memory in float32 numbers.
    """
    batch, _, length, channels = y.shape
    rank = dt_weight.shape[2]
    columns = DIRECTIONS * (rank + 2 * STATE)
    rows = projected[:, :columns].view(batch, length, DIRECTIONS, -1).transpose(1, 2)
    u = p.view(batch, 1, length, channels).expand(-1, DIRECTIONS, -1, -1)
    problem = _Problem(MAP_SLABS, visits(height, width), u, u, rows, rank, dt_weight, dt_bias, A, D)
    return problem.arguments(y=y), batch * MAP_SLABS * problem.blocks, problem.scratch


def lanes_of(channels: int) -> int:
    """Channels of a block: a register, or half of one if there are no more; others are padded."""
    whole = library().lanes
    return whole if channels > whole // 2 else whole // 2


@dataclass(frozen=True, slots=True)
class _Problem:
    """What the kernels of both entries share; channels are padded to whole blocks."""

    slabs: int
    visits: np.ndarray  # (groups, length)
    u: Tensor  # (batch, groups, length, channels)
    dt: Tensor  # the same; read when rank is 0
    rows: Tensor  # (batch, groups, length, rank + 32)
    rank: int
    dt_weight: Tensor  # (groups, C, rank)
    dt_bias: Tensor  # (groups, C)
    A: Tensor  # (groups C, 16)
    D: Tensor  # (groups C)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(batch, groups, length, channels)."""
        batch, groups, length, channels = self.u.shape
        return batch, groups, length, channels

    @property
    def used(self) -> int:
        """C, the number of channels before padding."""
        return self.dt_bias.shape[1]

    @property
    def lanes(self) -> int:
        return lanes_of(self.u.shape[3])

    @property
    def blocks(self) -> int:
        return self.u.shape[3] // self.lanes

    @property
    def scratch(self) -> int:
        """float32 numbers of scratch memory per kernel call."""
        constants = WEIGHT_ROWS + self.rank
        forward = SEGMENT + AT_ONCE * (STATE + constants)
        backward = 2 * (SEGMENT + 1) * STATE + 3 * SEGMENT + STATE + constants
        return max(forward, backward) * self.lanes

    def arguments(self, **outputs: Tensor | None) -> ScanArguments:
        """The kernel's arguments; outputs: kept, y."""
        _, groups, length, channels = self.sizes
        u_batch, u_group = self.u.stride()[:2]
        rows_batch, rows_group, rows_pixel = self.rows.stride()[:3]
        pointers = {
            name: getattr(self, name).data_ptr()
            for name in ("u", "dt", "rows", "dt_weight", "dt_bias", "A", "D")
        }
        pointers |= {
            name: tensor.data_ptr() for name, tensor in outputs.items() if tensor is not None
        }
        return ScanArguments(
            slabs=self.slabs,
            groups=groups,
            length=length,
            channels=channels,
            used=self.used,
            rank=self.rank,
            visits=self.visits.ctypes.data,
            u_batch=u_batch,
            u_group=u_group,
            rows_batch=rows_batch,
            rows_group=rows_group,
            rows_pixel=rows_pixel,
            **pointers,
        )


def _map_problem(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> _Problem:
    batch, _, height, width = p.shape
    rank = dt_weight.shape[2]
    u = _whole_blocks(pixels(p)).unsqueeze(1).expand(-1, DIRECTIONS, -1, -1)
    rows = (
        pixels(projected).view(batch, height * width, DIRECTIONS, rank + 2 * STATE).transpose(1, 2)
    )
    parameters = (x.contiguous() for x in (dt_weight, dt_bias, A, D))
    return _Problem(MAP_SLABS, visits(height, width), u, u, rows, rank, *parameters)


def _sequence_problem(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> _Problem:
    groups, length = B.shape[1], u.shape[2]
    in_order = np.tile(np.arange(length), (groups, 1))
    rows = torch.cat((B, C), dim=2).transpose(2, 3).contiguous()
    A, D = A.contiguous(), D.contiguous()
    no_bias = D.view(groups, -1)
    no_weight = A.new_empty(*no_bias.shape, 0)
    u, dt = (_whole_blocks(steps_first(x, groups)) for x in (u, dt))
    return _Problem(groups, in_order, u, dt, rows, 0, no_weight, no_bias, A, D)


def _whole_blocks(maps: Tensor) -> Tensor:
    """Zeros added after the last channel, to whole blocks."""
    missing = -maps.shape[-1] % lanes_of(maps.shape[-1])
    return pad(maps, (0, missing)) if missing else maps


def _forward(problem: _Problem, keep: bool) -> tuple[Tensor, Tensor]:
    """y of each slab, (batch, slabs, length, channels), and the kept states, if `keep`."""
    batch, groups, length, channels = problem.sizes
    kept = problem.u.new_empty(
        _kept_shape(batch, groups, length if keep else 0, problem.used, problem.u.dtype)
    )
    y = problem.u.new_empty(batch, problem.slabs, length, channels)
    arguments = problem.arguments(kept=kept if keep else None, y=y)
    _in_threads("scan_forward", batch * problem.slabs * problem.blocks, problem, arguments)
    return y, kept


def _backward(problem: _Problem, kept: Tensor, dy: Tensor) -> Gradients:
    of_map = dy.ndim == 3
    dy = _whole_blocks(dy)
    dy = dy.unsqueeze(1).expand(-1, DIRECTIONS, -1, -1) if of_map else dy
    batch, groups, length, channels = problem.sizes
    du = dy.new_zeros(batch, problem.slabs, length, channels)
    ddt = torch.empty_like(problem.dt) if problem.rank == 0 else problem.dt
    # The rows of all directions of a pixel are adjacent, as in the projection that they come from.
    drows = dy.new_zeros(batch, length, groups, problem.rank + 2 * STATE).transpose(1, 2)
    lines = WEIGHT_ROWS + problem.rank
    dconstants = dy.new_zeros(batch, groups, problem.blocks, lines, problem.lanes)
    arguments = GradientsArguments(
        problem.arguments(kept=kept),
        dy.data_ptr(),
        *dy.stride()[:2],
        *(tensor.data_ptr() for tensor in (du, drows, dconstants, ddt)),
        *drows.stride()[:3],
    )
    _in_threads("scan_backward", batch * problem.slabs, problem, arguments)
    by_line = (
        dconstants.sum(0).transpose(1, 2).reshape(groups, lines, channels)[..., : problem.used]
    )
    return Gradients(
        u=du,
        dt=ddt,
        rows=drows.transpose(1, 2).flatten(2) if of_map else drows,
        dt_weight=own(by_line[:, WEIGHT_ROWS:].transpose(1, 2)),
        dt_bias=own(by_line[:, BIAS_ROW]),
        A=own(by_line[:, :STATE].transpose(1, 2)).view(-1, STATE),
        D=own(by_line[:, D_ROW]).view(-1),
    )


def _in_threads(name: str, units: int, problem: _Problem, arguments: ctypes.Structure) -> None:
    """Run all units of work in torch.get_num_threads() threads; the split changes no result."""
    kernel = library().kernel(name)
    work = problem.sizes[0] * problem.sizes[2] * problem.sizes[3]
    threads = min(torch.get_num_threads(), units) if work >= WORK_FOR_THREADS else 1

    def run(first: int, last: int) -> None:
        scratch = problem.u.new_empty(problem.scratch)
        kernel(first, last, ctypes.byref(arguments), scratch.data_ptr())

    split_work(run, units, threads)


def _kept_shape(
    batch: int, groups: int, length: int, channel: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """Shape of the states before every segment, by blocks of channels."""
    lanes = lanes_of(channel)
    return batch, groups, -(-length // SEGMENT), -(-channel // lanes), STATE, lanes


register(Scan(_map_problem, _sequence_problem, _forward, _backward, _kept_shape), device="cpu")
