"""The CPU kernels of the scan: which channels, which steps, and the vector code of one step, forward and backward.

Imported by `numba_cpu` when that backend starts; what the steps are written with is in `vector_code`.

Lanes are channels. A block of LANES channels keeps its 16 states in 16 registers; B_t[n] and C_t[n] are broadcast to
all lanes, so that y needs no sum across lanes. Maps are channels-last, (pixels, channels), and a direction is a table
of pixels in the order of visits: nothing is flipped or copied. A sequence goes in segments of SEGMENT steps. The
backward pass starts a segment from the state that the forward pass kept there, computes its states again, then walks
it backwards; sums over channels (the gradients of B, C and r) are made within a step, by a tree of shuffles.

Everything is added in one fixed order, whatever the number of threads: a unit of work owns what it writes to.

Shapes, as the code of a segment's steps reads them; lanes are those of a block, steps at most SEGMENT:

| visits | (steps): pixels |
| u, dt, dy, du, y | (pixels, lanes) |
| rows, drows | (pixels, rank + 32): r, B, C |
| constants | (18 + rank, lanes): A log2(e), D, dt_bias, dt_weight |
| dconstants | the same: the gradients of A, D, dt_bias, dt_weight |
| sizes, slopes, dsizes | (steps or more, lanes): dt, its derivative after that of softplus's argument, its gradient |
| h, adjoint | (16, lanes) |
| states | (steps + 1 or more, 16 lanes): before each step, and after the last |
| decays | (steps or more, 16 lanes): exp(dt A) |
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from repmamba.scan.compiled import load
from repmamba.scan.sizes import STATE
from repmamba.scan.vector_code import (
    CACHE_LINE,
    I64,
    LANES,
    LN_2,
    LOG2_E,
    SOFTPLUS_LINEAR,
    Rows,
    Vectors,
    carve,
    counting,
    counting_down,
    element_of,
    under_the_name_of_this_version,
    vector_code,
    whole_vector_code,
)

AT_ONCE = 4  # blocks that go through a segment after one another
AHEAD = 6  # steps at which a pixel is asked for before its turn: down a column, each lies far from the one before
SEGMENT = 64  # steps between kept states: these cost 16 / 64 of a map each direction, and a segment fits the L2 cache
D_ROW, BIAS_ROW, WEIGHT_ROWS = STATE, STATE + 1, STATE + 2  # of a block's constants; rows 0 to 15 are A log2(e)


# Vector code: the steps of a segment


def _visited(v: Vectors, visits: Rows, t: Any) -> Any:
    return v.builder.load(v.builder.bitcast(visits.at(t), I64.as_pointer()))


def _at_most(v: Vectors, value: Any, limit: Any) -> Any:
    return v.builder.select(v.builder.icmp_signed("<", value, limit), value, limit)


@vector_code
def step_sizes(v: Vectors, constants: Rows, visits: Rows, rows: Rows, rank: Any, sizes: Rows, slopes: Rows) -> None:
    """dt = softplus(W r + bias) of the visited pixels into `sizes`, and its derivative into `slopes`."""
    b = v.builder
    with counting(b, visits.count) as t:
        row = rows.at(_visited(v, visits, t))
        raw = v.variable(v.load(constants.at(BIAS_ROW)))
        with counting(b, rank) as j:
            weight = v.load(constants.at(b.add(j, I64(WEIGHT_ROWS))))
            b.store(v.fma(weight, v.splat(element_of(b, row, j)), b.load(raw)), raw)
        size, slope = v.softplus(b.load(raw))
        v.store(size, sizes.at(t))
        with b.if_then(b.icmp_signed(">", slopes.count, I64(0))):
            v.store(slope, slopes.at(t))


def _step(v: Vectors, n: int, h: Any, size: Any, drive: Any, row: Any, rank: Any, constants: Rows) -> tuple[Any, Any]:
    """h <- exp(dt A) h + (dt u) B for state n of a block; the decay and the new h."""
    b = v.builder
    decay = v.exp2_of_product(size, v.load(constants.at(n)))
    added = b.fmul(drive, v.splat(element_of(b, row, b.add(rank, I64(n)))))
    return decay, v.fma(decay, h, added)


@vector_code
def forward_steps(
    v: Vectors, h: Rows, visits: Rows, u: Rows, sizes: Rows, rows: Rows, rank: Any, constants: Rows, y: Rows
) -> None:
    """Take the steps of a segment: h from its first to its last state, and <C, h> + D u added to y."""
    b = v.builder
    states = [v.variable(v.load(h.at(n))) for n in range(STATE)]
    last = b.sub(visits.count, I64(1))
    with counting(b, visits.count) as t:
        pixel = _visited(v, visits, t)
        row, size, u_t = rows.at(pixel), v.load(sizes.at(t)), v.load(u.at(pixel))
        later = _visited(v, visits, _at_most(v, b.add(t, I64(AHEAD)), last))
        v.prefetch(rows.at(later), 2 * STATE + CACHE_LINE)
        v.prefetch(u.at(later), v.lanes)
        v.prefetch(y.at(later), v.lanes)
        drive = b.fmul(size, u_t)
        result = [b.fmul(v.load(constants.at(D_ROW)), u_t), v.load(y.at(pixel))]
        for n, state in enumerate(states):
            _, new = _step(v, n, b.load(state), size, drive, row, rank, constants)
            b.store(new, state)
            weight = v.splat(element_of(b, row, b.add(rank, I64(STATE + n))))
            result[n % 2] = v.fma(weight, new, result[n % 2])
        v.store(b.fadd(*result), y.at(pixel))
    for n, state in enumerate(states):
        v.store(b.load(state), h.at(n))


@whole_vector_code
def recompute_steps(
    v: Vectors,
    visits: Rows,
    u: Rows,
    sizes: Rows,
    rows: Rows,
    rank: Any,
    constants: Rows,
    states: Rows,
    decays: Rows,
) -> None:
    """The steps of a segment again, from states[0]: every state into states[t + 1], every decay into decays[t]."""
    b = v.builder
    h = [v.variable(v.load(states.at(0, n * LANES))) for n in range(STATE)]
    with counting(b, visits.count) as t:
        pixel = _visited(v, visits, t)
        row, size = rows.at(pixel), v.load(sizes.at(t))
        drive = b.fmul(size, v.load(u.at(pixel)))
        kept, kept_decay = states.at(b.add(t, I64(1))), decays.at(t)
        for n in range(STATE):
            decay, new = _step(v, n, b.load(h[n]), size, drive, row, rank, constants)
            b.store(new, h[n])
            v.store(new, element_of(b, kept, n * LANES))
            v.store(decay, element_of(b, kept_decay, n * LANES))


@whole_vector_code
def backward_steps(
    v: Vectors,
    adjoint: Rows,
    visits: Rows,
    dy: Rows,
    u: Rows,
    sizes: Rows,
    rows: Rows,
    rank: Any,
    constants: Rows,
    states: Rows,
    decays: Rows,
    du: Rows,
    dsizes: Rows,
    drows: Rows,
    dconstants: Rows,
) -> None:
    """Walk a segment backwards with the adjoint of h: gradients of u, B, C added to, of dt stored, of A, D added to.

    With g = dy and l = C g + (adjoint from the step after): dC = <g, h>, dB = <l, dt u>, du = D g + dt <l, B>,
    ddt = u <l, B> + <l a h', A>, dA += l a h' dt, and l a goes to the step before; a the decay, h' the state before.
    """
    b, zero = v.builder, v.constant(0)
    carried = [v.variable(v.load(adjoint.at(n))) for n in range(STATE)]
    dD = v.variable(v.load(dconstants.at(D_ROW)))
    with counting_down(b, visits.count) as t:
        pixel = _visited(v, visits, t)
        row, drow, size = rows.at(pixel), drows.at(pixel), v.load(sizes.at(t))
        g, u_t = v.load(dy.at(pixel)), v.load(u.at(pixel))
        drive = b.fmul(size, u_t)
        before, after, decay_at = states.at(t), states.at(b.add(t, I64(1))), decays.at(t)
        along_B, along_A = zero, zero
        for first in range(0, STATE, LANES):
            dB, dC = [], []
            for n in range(first, min(first + LANES, STATE)):
                B_n = v.splat(element_of(b, row, b.add(rank, I64(n))))
                C_n = v.splat(element_of(b, row, b.add(rank, I64(STATE + n))))
                dC.append(b.fmul(g, v.load(element_of(b, after, n * LANES))))
                total = v.fma(C_n, g, b.load(carried[n]))
                dB.append(b.fmul(total, drive))
                along_B = v.fma(total, B_n, along_B)
                passed = b.fmul(total, v.load(element_of(b, decay_at, n * LANES)))
                b.store(passed, carried[n])
                decayed = b.fmul(passed, v.load(element_of(b, before, n * LANES)))
                along_A = v.fma(decayed, v.load(constants.at(n)), along_A)
                v.store(v.fma(decayed, size, v.load(dconstants.at(n))), dconstants.at(n))
            v.add_to(element_of(b, drow, b.add(rank, I64(first))), v.sums(dB))
            v.add_to(element_of(b, drow, b.add(rank, I64(STATE + first))), v.sums(dC))
        v.store(v.fma(u_t, along_B, b.fmul(along_A, v.constant(LN_2))), dsizes.at(t))
        skip = b.fmul(v.load(constants.at(D_ROW)), g)
        v.add_to(du.at(pixel), v.fma(size, along_B, skip))
        b.store(v.fma(g, u_t, b.load(dD)), dD)
    v.store(b.load(dD), dconstants.at(D_ROW))
    for n in range(STATE):
        v.store(b.load(carried[n]), adjoint.at(n))


@whole_vector_code
def step_sizes_backward(
    v: Vectors,
    visits: Rows,
    rows: Rows,
    rank: Any,
    constants: Rows,
    dsizes: Rows,
    slopes: Rows,
    drows: Rows,
    dconstants: Rows,
) -> None:
    """From the gradients of dt to those of r, of the weights and of the bias, added to what is there."""
    b = v.builder
    with counting(b, visits.count) as t:
        pixel = _visited(v, visits, t)
        draw = b.fmul(v.load(dsizes.at(t)), v.load(slopes.at(t)))
        v.add_to(dconstants.at(BIAS_ROW), draw)
        with counting(b, rank) as j:
            r, dr = rows.at(pixel, j), drows.at(pixel, j)
            line = b.add(j, I64(WEIGHT_ROWS))
            v.add_to(dconstants.at(line), b.fmul(draw, v.splat(r)))
            along = v.sum(b.fmul(draw, v.load(constants.at(line))))
            b.store(b.fadd(v.scalar(dr), along), dr)


# Kernels


@njit(nogil=True)
def block_constants(constants, rank, dt_weight, dt_bias, A, D, first):  # type: ignore[no-untyped-def]
    """What a block of channels needs of the parameters of one direction, lane by lane; 0 beyond the last channel."""
    constants[:] = 0
    for lane in range(min(constants.shape[1], A.shape[0] - first)):
        channel = first + lane
        for n in range(STATE):
            constants[n, lane] = A[channel, n] * np.float32(LOG2_E)
        constants[D_ROW, lane] = D[channel]
        if rank:
            constants[BIAS_ROW, lane] = dt_bias[channel]
            for j in range(rank):
                constants[WEIGHT_ROWS + j, lane] = dt_weight[channel, j]


@njit(nogil=True)
def segment_sizes(visits, dt, rows, rank, constants, sizes, slopes):  # type: ignore[no-untyped-def]
    """The dt of a segment: computed from r, or, with rank 0, gathered from the given ones; slopes may have no rows."""
    if rank:
        step_sizes(constants, visits, rows, rank, sizes, slopes)
    else:
        for t in range(len(visits)):
            for lane in range(sizes.shape[1]):
                sizes[t, lane] = dt[visits[t], lane]


def scratch_size(rank: int) -> int:
    """Float32 numbers of scratch that a thread needs for one call of `forward` or `backward`."""
    constants = WEIGHT_ROWS + rank
    rows_forward = SEGMENT + AT_ONCE * (STATE + constants)
    rows_backward = 2 * (SEGMENT + 1) * STATE + 3 * SEGMENT + STATE + constants
    return max(rows_forward, rows_backward) * LANES


def forward(  # type: ignore[no-untyped-def]
    first, last, slabs, visits, u, dt, rows, rank, dt_weight, dt_bias, A, D, kept, y, scratch
):
    """Units first .. last - 1 of the forward pass, of batch * slabs * blocks; a unit is a block of channels of a slab.

    visits: (groups, length) pixels.  u, dt: (batch, groups, length, channels), channels a multiple of LANES, or 8 for
    16 lanes, which are half registers then; dt is read when rank is 0.  rows: (batch, groups, length, rank + 32): r,
    B, C.  dt_weight: (groups, C, rank).  dt_bias, D: (groups, C).  A: (groups, C, 16).  kept: (batch, groups,
    segments, blocks, 16, lanes), for the states before each segment, or 0 segments of it.  y: (batch, slabs, length,
    channels); group k adds to slab k mod slabs.  scratch: scratch_size(rank) numbers.
    """
    groups, length = visits.shape
    lanes = min(LANES, u.shape[3])
    blocks = u.shape[3] // lanes
    sizes, rest = carve(scratch, SEGMENT, lanes)
    no_slopes = sizes[:0]
    h, rest = carve(rest, AT_ONCE * STATE, lanes)
    constants, rest = carve(rest, AT_ONCE * (WEIGHT_ROWS + rank), lanes)
    while first < last:
        block, slab, b = first % blocks, first // blocks % slabs, first // blocks // slabs
        # The blocks of a slab go along together: what they read of a pixel is in the first cache after one of them.
        several = min(AT_ONCE, blocks - block, last - first)
        lo = block * lanes
        y[b, slab, :, lo : lo + several * lanes] = 0
        for k in range(slab, groups, slabs):
            for each in range(several):
                own = constants[each * (WEIGHT_ROWS + rank) : (each + 1) * (WEIGHT_ROWS + rank)]
                block_constants(own, rank, dt_weight[k], dt_bias[k], A[k], D[k], lo + each * lanes)
            h[:] = 0
            for t in range(0, length, SEGMENT):
                segment = visits[k, t : t + SEGMENT]
                for each in range(several):
                    own = constants[each * (WEIGHT_ROWS + rank) : (each + 1) * (WEIGHT_ROWS + rank)]
                    state = h[each * STATE : (each + 1) * STATE]
                    left = lo + each * lanes
                    right = left + lanes
                    if kept.shape[2]:
                        kept[b, k, t // SEGMENT, block + each] = state
                    segment_sizes(segment, dt[b, k, :, left:right], rows[b, k], rank, own, sizes, no_slopes)
                    forward_steps(
                        state, segment, u[b, k, :, left:right], sizes, rows[b, k], rank, own, y[b, slab, :, left:right]
                    )
        first += several


def backward(  # type: ignore[no-untyped-def]
    first,
    last,
    slabs,
    visits,
    u,
    dt,
    rows,
    rank,
    dt_weight,
    dt_bias,
    A,
    D,
    kept,
    dy,
    du,
    ddt,
    drows,
    dconstants,
    scratch,
):
    """Units first .. last - 1 of the backward pass, of batch * slabs; a unit is a slab of an image, all channels.

    Arguments as `forward`, and dy: (batch, groups, length, channels).  du: (batch, slabs, length, channels).
    drows: as rows.  dconstants: (batch, groups, blocks, 18 + rank, LANES): A, D, dt_bias, dt_weight.  All three zero,
    added to.  ddt: as dt, written when rank is 0.
    """
    groups, length = visits.shape
    blocks = u.shape[3] // LANES
    adjoint, rest = carve(scratch, STATE, LANES)
    states, rest = carve(rest, SEGMENT + 1, STATE * LANES)
    decays, rest = carve(rest, SEGMENT, STATE * LANES)
    sizes, rest = carve(rest, SEGMENT, LANES)
    slopes, rest = carve(rest, SEGMENT, LANES)
    dsizes, rest = carve(rest, SEGMENT, LANES)
    constants, rest = carve(rest, WEIGHT_ROWS + rank, LANES)
    for unit in range(first, last):
        slab, b = unit % slabs, unit // slabs
        for k in range(slab, groups, slabs):
            for block in range(blocks):
                lo, hi = block * LANES, (block + 1) * LANES
                u_block, du_block, gradients = u[b, k, :, lo:hi], du[b, slab, :, lo:hi], dconstants[b, k, block]
                block_constants(constants, rank, dt_weight[k], dt_bias[k], A[k], D[k], lo)
                adjoint[:] = 0
                for t in range((length - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                    segment = visits[k, t : t + SEGMENT]
                    states[0] = kept[b, k, t // SEGMENT, block].ravel()
                    segment_sizes(segment, dt[b, k, :, lo:hi], rows[b, k], rank, constants, sizes, slopes)
                    recompute_steps(segment, u_block, sizes, rows[b, k], rank, constants, states, decays)
                    backward_steps(
                        adjoint, segment, dy[b, k, :, lo:hi], u_block, sizes, rows[b, k], rank, constants,
                        states, decays, du_block, dsizes, drows[b, k], gradients,
                    )  # fmt: skip
                    if rank:
                        step_sizes_backward(
                            segment, rows[b, k], rank, constants, dsizes, slopes, drows[b, k], gradients
                        )
                    else:
                        for step in range(len(segment)):
                            ddt[b, k, segment[step], lo:hi] = dsizes[step]


@njit(nogil=True)
def size_float64(row, rank, weight, bias, given):  # type: ignore[no-untyped-def]
    """dt of one pixel and channel, and its derivative: softplus(W r + bias), or with rank 0 the given one."""
    if rank == 0:
        return given, 1.0
    raw = bias
    for j in range(rank):
        raw += weight[j] * row[j]
    if raw > SOFTPLUS_LINEAR:
        return raw, 1.0
    z = math.exp(-abs(raw))
    return max(raw, 0.0) + math.log1p(z), (1.0 if raw > 0 else z) / (1.0 + z)


def forward_float64(  # type: ignore[no-untyped-def]
    first, last, slabs, visits, u, dt, rows, rank, dt_weight, dt_bias, A, D, kept, y, scratch
):
    """As `forward`, for float64: plain loops and the exact exp. Nothing is kept."""
    groups = len(visits)
    blocks = u.shape[3] // LANES
    h = np.empty(STATE)
    for unit in range(first, last):
        block, slab, b = unit % blocks, unit // blocks % slabs, unit // blocks // slabs
        for k in range(slab, groups, slabs):
            for c in range(block * LANES, min((block + 1) * LANES, A.shape[1])):
                h[:] = 0
                if k == slab:
                    y[b, slab, :, c] = 0
                for pixel in visits[k]:
                    row, x = rows[b, k, pixel], u[b, k, pixel, c]
                    size, _ = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    total = D[k, c] * x
                    for n in range(STATE):
                        h[n] = math.exp(size * A[k, c, n]) * h[n] + size * x * row[rank + n]
                        total += row[rank + STATE + n] * h[n]
                    y[b, slab, pixel, c] += total


def backward_float64(  # type: ignore[no-untyped-def]
    first,
    last,
    slabs,
    visits,
    u,
    dt,
    rows,
    rank,
    dt_weight,
    dt_bias,
    A,
    D,
    kept,
    dy,
    du,
    ddt,
    drows,
    dconstants,
    scratch,
):
    """As `backward`, for float64: plain loops, the states of one channel computed again from the first."""
    groups, length = visits.shape
    states, adjoint = np.empty((length + 1, STATE)), np.empty(STATE)
    for unit in range(first, last):
        slab, b = unit % slabs, unit // slabs
        for k in range(slab, groups, slabs):
            for c in range(A.shape[1]):
                gradients = dconstants[b, k, c // LANES, :, c % LANES]
                states[0] = 0
                for t in range(length):
                    pixel = visits[k, t]
                    row = rows[b, k, pixel]
                    size, _ = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    for n in range(STATE):
                        added = size * u[b, k, pixel, c] * row[rank + n]
                        states[t + 1, n] = math.exp(size * A[k, c, n]) * states[t, n] + added
                adjoint[:] = 0
                for t in range(length - 1, -1, -1):
                    pixel = visits[k, t]
                    row, drow = rows[b, k, pixel], drows[b, k, pixel]
                    g, x = dy[b, k, pixel, c], u[b, k, pixel, c]
                    size, slope = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    along_B = along_A = 0.0
                    for n in range(STATE):
                        total = row[rank + STATE + n] * g + adjoint[n]
                        adjoint[n] = math.exp(size * A[k, c, n]) * total
                        decayed = adjoint[n] * states[t, n]
                        along_B += total * row[rank + n]
                        along_A += decayed * A[k, c, n]
                        gradients[n] += decayed * size
                        drow[rank + n] += total * size * x
                        drow[rank + STATE + n] += g * states[t + 1, n]
                    dsize = x * along_B + along_A
                    du[b, slab, pixel, c] += D[k, c] * g + size * along_B
                    gradients[D_ROW] += g * x
                    if rank == 0:
                        ddt[b, k, pixel, c] = dsize
                    gradients[BIAS_ROW] += dsize * slope
                    for j in range(rank):
                        gradients[WEIGHT_ROWS + j] += dsize * slope * row[j]
                        drow[j] += dsize * slope * dt_weight[k, c, j]


_SHARED = "int64, int64, int64, int64[:,:], {4}, {4}, {4}, int64, {3}, {2}, {3}, {2}, {6}, "
_FORWARD, _BACKWARD = _SHARED + "{4}, {1}", _SHARED + "{4}, {4}, {4}, {4}, {5}, {1}"
_KERNELS: dict[tuple[str, str], tuple[Callable[..., None], str]] = {
    ("forward", "float32"): (forward, _FORWARD),
    ("forward", "float64"): (forward_float64, _FORWARD),
    ("backward", "float32"): (backward, _BACKWARD),
    ("backward", "float64"): (backward_float64, _BACKWARD),
}
for _function, _ in _KERNELS.values():
    under_the_name_of_this_version(_function, STATE)


@cache
def kernel(way: str, dtype: str) -> Callable[..., None]:
    """One of the four kernels, compiled when first asked for, or loaded from numba's cache.

    It has one signature, of arrays with any strides: whatever views it meets, nothing is compiled again.
    """
    function, arguments = _KERNELS[way, dtype]
    arrays = {axes: f"{dtype}[{','.join(':' * axes)}]" for axes in range(2, 7)} | {1: f"{dtype}[::1]"}
    signature = arguments.format(None, *(arrays[axes] for axes in range(1, 7)))
    return load(function, f"void({signature})")
