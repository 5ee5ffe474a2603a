"""The selective scan on the CPU, compiled when first used: no compiler has to be installed, no binary is shipped.

The kernels are in `numba_kernels`; here they get their arguments, and `operators` makes operators of torch of them.
Work is cut into units that own what they write, so the result is the same, bit by bit, for any number of threads. The
threads are ours (`threads`), used within torch.get_num_threads().
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from repmamba.scan.directions import visits
from repmamba.scan.layout import own, pixels, steps_first
from repmamba.scan.operators import MAP_SLABS, Gradients, Scan, register, wants_gradients
from repmamba.scan.sizes import DIRECTIONS, STATE
from repmamba.scan.threads import side_by_side

WORK_FOR_THREADS = 2**15  # steps times channels below which a second thread costs more than it brings


def start() -> None:
    """Compile the forward kernel, or load it from numba's cache. Raises whatever stands in the way."""
    _kernels().kernel("forward", "float32")


def scan_sequences(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan; arguments, result and source as `repmamba.scan.definition.scan_by_definition`."""
    tensors = (u, dt, A, B, C, D)
    y: Tensor = torch.ops.repmamba.scan_sequences(*tensors, wants_gradients("numba", *tensors))[0]
    return y


def scan_map(p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """The four-directional scan of a map; arguments and result as `repmamba.scan.selective.scan_map`."""
    tensors = (p, projected, dt_weight, dt_bias, A, D)
    y: Tensor = torch.ops.repmamba.scan_map(*tensors, wants_gradients("numba", *tensors))[0]
    return y


def map_pass(
    p: np.ndarray,
    projected: np.ndarray,
    height: int,
    width: int,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    y: np.ndarray,
) -> tuple[Callable[..., None], int, tuple[Any, ...], int]:
    """The four-directional scan of maps that are the caller's memory, float32, as work that the caller hands out.

    p: (batch h w, C), C at most a register or whole ones.  projected: (batch h w, 4 (R + 32) or more), of which the
    first are read.  The parameters as `scan_map`'s.  y: (batch, 2, h w, C), whose sum over axis 1 is the result.
    Returns kernel, units, arguments and scratch: kernel(first, last, *arguments, scratch) computes the units first ..
    last - 1, scratch being so many float32 numbers. No result depends on how units are shared.
    """
    batch, _, length, channel = y.shape
    rank, kernels = dt_weight.shape[2], _kernels()
    columns = DIRECTIONS * (rank + 2 * STATE)
    pixels = torch.from_numpy(projected)[:, :columns]
    rows = pixels.view(batch, length, DIRECTIONS, -1).transpose(1, 2)
    u = torch.from_numpy(p).view(batch, 1, length, channel).expand(-1, DIRECTIONS, -1, -1)
    A, D = A.reshape(DIRECTIONS, channel, STATE), D.reshape(DIRECTIONS, channel)
    problem = _Problem(MAP_SLABS, visits(height, width), u, u, rows, rank, dt_weight, dt_bias, A, D)
    lanes = min(channel, kernels.LANES)
    nothing_kept = np.empty((batch, DIRECTIONS, 0, channel // lanes, STATE, lanes), np.float32)
    units = batch * MAP_SLABS * (channel // lanes)
    arguments = (*problem.arrays(), nothing_kept, y)
    return kernels.kernel("forward", "float32"), units, arguments, kernels.scratch_size(rank)


@cache
def _kernels() -> ModuleType:
    from repmamba.scan import numba_kernels

    return numba_kernels


# The arguments that the kernels of both entries share, as `numba_kernels.forward` names them.


@dataclass(frozen=True, slots=True)
class _Problem:
    slabs: int
    visits: np.ndarray  # (groups, length)
    u: Tensor  # (batch, groups, length, channels)
    dt: Tensor  # the same; read when rank is 0
    rows: Tensor  # (batch, groups, length, rank + 32)
    rank: int
    dt_weight: Tensor  # (groups, C, rank)
    dt_bias: Tensor  # (groups, C)
    A: Tensor  # (groups, C, 16)
    D: Tensor  # (groups, C)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(batch, groups, length, channels), the channels padded to whole blocks."""
        batch, groups, length, channels = self.u.shape
        return batch, groups, length, channels

    def arrays(self) -> list[Any]:
        """In the order in which the kernels take them."""
        tensors = (self.dt_weight, self.dt_bias, self.A, self.D)
        return [
            *(self.slabs, self.visits, _array(self.u), _array(self.dt), _array(self.rows), self.rank),
            *map(_array, tensors),
        ]


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy()
    return array


def _map_problem(p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> _Problem:
    batch, channel, height, width = p.shape
    rank = dt_weight.shape[2]
    u = _whole_blocks(pixels(p)).unsqueeze(1).expand(-1, DIRECTIONS, -1, -1)
    rows = pixels(projected).view(batch, height * width, DIRECTIONS, rank + 2 * STATE).transpose(1, 2)
    A, D = A.reshape(DIRECTIONS, channel, STATE), D.reshape(DIRECTIONS, channel)
    return _Problem(MAP_SLABS, visits(height, width), u, u, rows, rank, dt_weight, dt_bias, A, D)


def _sequence_problem(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> _Problem:
    groups, length = B.shape[1], u.shape[2]
    in_order = np.tile(np.arange(length), (groups, 1))
    rows = torch.cat((B, C), dim=2).transpose(2, 3).contiguous()
    A, D = A.reshape(groups, -1, STATE), D.reshape(groups, -1)
    no_weight, no_bias = A.new_empty(groups, A.shape[1], 0), D
    u, dt = (_whole_blocks(steps_first(x, groups)) for x in (u, dt))
    return _Problem(groups, in_order, u, dt, rows, 0, no_weight, no_bias, A, D)


def _whole_blocks(maps: Tensor) -> Tensor:
    """Zeros added after the last channel, so that the kernels meet whole blocks alone."""
    missing = -maps.shape[-1] % _kernels().LANES
    return pad(maps, (0, missing)) if missing else maps


def _forward(problem: _Problem, keep: bool) -> tuple[Tensor, Tensor]:
    """y of each slab, (batch, slabs, length, channels), and the kept states, none unless asked for."""
    kernels = _kernels()
    batch, groups, length, channels = problem.sizes
    blocks = channels // kernels.LANES
    kept = problem.u.new_empty(_kept_shape(batch, groups, length if keep else 0, channels, problem.u.dtype))
    y = problem.u.new_empty(batch, problem.slabs, length, channels)
    _in_threads("forward", batch * problem.slabs * blocks, problem, [_array(kept), _array(y)])
    return y, kept


def _backward(problem: _Problem, kept: Tensor, dy: Tensor) -> Gradients:
    kernels, of_map = _kernels(), dy.ndim == 3
    dy = _whole_blocks(dy)
    dy = dy.unsqueeze(1).expand(-1, DIRECTIONS, -1, -1) if of_map else dy
    batch, groups, length, channels = problem.sizes
    blocks, channel = channels // kernels.LANES, problem.A.shape[1]
    du = dy.new_zeros(batch, problem.slabs, length, channels)
    ddt = torch.empty_like(problem.dt) if problem.rank == 0 else problem.dt
    # The rows of all directions of a pixel lie side by side, as the projection that they come from.
    drows = dy.new_zeros(batch, length, groups, problem.rank + 2 * STATE).transpose(1, 2)
    lines = kernels.WEIGHT_ROWS + problem.rank
    dconstants = dy.new_zeros(batch, groups, blocks, lines, kernels.LANES)
    outputs = (kept, dy, du, ddt, drows, dconstants)
    _in_threads("backward", batch * problem.slabs, problem, [_array(tensor) for tensor in outputs])
    by_line = dconstants.sum(0).transpose(1, 2).reshape(groups, lines, channels)[..., :channel]
    return Gradients(
        u=du,
        dt=ddt,
        rows=drows.transpose(1, 2).flatten(2) if of_map else drows,
        dt_weight=own(by_line[:, kernels.WEIGHT_ROWS :].transpose(1, 2)),
        dt_bias=own(by_line[:, kernels.BIAS_ROW]),
        A=own(by_line[:, :STATE].transpose(1, 2)).view(-1, STATE),
        D=own(by_line[:, kernels.D_ROW]).view(-1),
    )


def _in_threads(way: str, units: int, problem: _Problem, outputs: list[np.ndarray]) -> None:
    """All units of work, in as many threads as torch may use; which thread takes which changes no result."""
    kernel = _kernels().kernel(way, str(problem.u.dtype).removeprefix("torch."))
    arguments = [*problem.arrays(), *outputs]
    work = problem.sizes[0] * problem.sizes[2] * problem.sizes[3]
    threads = min(torch.get_num_threads(), units) if work >= WORK_FOR_THREADS else 1
    size = _kernels().scratch_size(problem.rank)

    def run(first: int, last: int) -> None:
        kernel(first, last, *arguments, _array(problem.u.new_empty(size)))

    side_by_side(run, units, threads)


def _kept_shape(batch: int, groups: int, length: int, channel: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Of the states before every segment, by blocks of channels; those of float64 are computed again from the first."""
    kernels = _kernels()
    segments = -(-length // kernels.SEGMENT) if dtype == torch.float32 else 0
    return batch, groups, segments, -(-channel // kernels.LANES), STATE, kernels.LANES


register(Scan(_map_problem, _sequence_problem, _forward, _backward, _kept_shape), device="cpu")
