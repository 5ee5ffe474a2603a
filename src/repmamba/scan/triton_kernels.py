"""The GPU kernels of the scan, forward and backward, in Triton.

Only `triton_gpu` imports this module, when that backend starts: no other module needs Triton.

A sequence is cut into chunks of STEPS positions, so that one small map fills a device. The states
at the ends of the chunks, each starting at zero, are computed in parallel (`chunk_ends`), carried
from chunk to chunk (`carry`), and the steps are taken again from the true states (`outputs`).
Gradients of the states go the same way in reverse, then `gradients` takes each chunk backwards,
SEGMENT steps at a time: it recomputes their states from the one that `outputs` kept before them.
Every factor is an exp of something <= 0: nothing can overflow.

A program is one warp. It holds the 16 states of a block of channels, (state, channel), one channel
per thread in the widest block: sums over states stay within a thread, and dt is computed once. Maps
are channels-last and stay as they are: a direction is arithmetic on positions (`pixel_at`). A
position counts pixels by row, or by column in directions 1 and 3; directions 2 and 3 walk from the
last to the first. No atomics are used: a result is the same, bit by bit, in every run. Directions 0
and 2 of a map, which visit the same pixels, add to one slab of the result, 1 and 3 to another; each
sequence has a slab of its own.

Everything is computed in the type of A, whatever the type of the maps. Shapes, as the kernels read
them:

| u, dt, dy | map: (batch, length, channel) |
|           | sequences: (batch, groups, length, channel); dt is read when RANK is 0 |
| rows      | map: (batch, length, groups, RANK + 32): r, B, C |
|           | sequences: (batch, groups, length, 32): B, C |
| dt_weight | (groups, channel, RANK) |
| dt_bias   | (groups, channel); D too |
| A         | (groups, channel, 16) |
| states    | (batch, groups, chunks, 16, channel): at the ends, then at the starts of chunks |
| spans     | (batch, groups, chunks, channel): the sum of dt over a chunk |
| y, du     | (batch, slabs, length, channel) |
| kept      | (batch, groups, segments, 16, channel) |
"""

# mypy does not know Triton's language
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

import triton
import triton.language as tl

from repmamba.scan import sizes

INTERPRETED = triton.knobs.runtime.interpret  # on any device, step by step in Python: for tests

STATE = tl.constexpr(sizes.STATE)
# exp2 is a processor instruction; exp is exp2 and a product
LOG2_E = tl.constexpr(1.4426950408889634)

SOFTPLUS_LINEAR = tl.constexpr(20.0)  # softplus(v) is v beyond this, as published
# Rows of a chunk's gradients of constants: 16 of A, then D, dt_bias, and RANK of dt_weight.
D_LINE, BIAS_LINE, WEIGHT_LINES = tl.constexpr(16), tl.constexpr(17), tl.constexpr(18)


@triton.jit
def softplus(raw):
    """log(1 + exp(raw)), raw itself beyond 20; and its derivative."""
    power = tl.exp(tl.minimum(raw, SOFTPLUS_LINEAR))
    grown = 1.0 + power
    # 1 + power rounds a small power; the quotient restores what the rounding lost.
    rounded = tl.where(grown == 1.0, 1.0, grown - 1.0)
    value = tl.where(grown == 1.0, power, tl.log(grown) * (power / rounded))
    return tl.where(raw > SOFTPLUS_LINEAR, raw, value), tl.where(
        raw > SOFTPLUS_LINEAR, 1.0, power / grown
    )


@triton.jit
def pixel_at(position, direction, height, width, MAP: tl.constexpr):
    """The pixel, counted by row, at a position of a direction; of a sequence the step itself."""
    if not MAP:
        return position
    column = position // height
    return tl.where(direction % 2 == 1, (position - column * height) * width + column, position)


@triton.jit
def is_reversed(direction, MAP: tl.constexpr):
    """Whether a direction visits the last position first."""
    if not MAP:
        return False
    return direction >= 2


@triton.jit
def walk(chunk, length, backwards, STEPS: tl.constexpr):
    """The first position visited in a chunk, the step (1 or -1), and the number of positions."""
    first = chunk * STEPS
    count = tl.minimum(STEPS, length - first)
    return tl.where(backwards, first + count - 1, first), tl.where(backwards, -1, 1), count


@triton.jit
def state_tile(index, channel, channels):
    """Offsets of the (16, channels) states at an index of (..., 16, channel)."""
    return (index * STATE + tl.arange(0, STATE)[:, None]) * channel + channels[None, :]


@triton.jit
def rate_tile(A, direction, channel, channels, known):
    """A of a block as (16, channels); padded channels have rate 0."""
    offsets = (direction * channel + channels[None, :]) * STATE + tl.arange(0, STATE)[:, None]
    return tl.load(A + offsets, mask=known[None, :], other=0.0)


@triton.jit
def weight_tile(
    dt_weight, direction, channel, channels, known, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr
):
    """dt_weight of a block as (RANK_BLOCK, channels), zero beyond RANK."""
    ranks = tl.arange(0, RANK_BLOCK)
    offsets = (direction * channel + channels[None, :]) * RANK + ranks[:, None]
    return tl.load(dt_weight + offsets, mask=known[None, :] & (ranks[:, None] < RANK), other=0.0)


@triton.jit
def load_r(row, live, number: tl.constexpr, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    """r of a step: (RANK_BLOCK,), zero beyond RANK."""
    ranks = tl.arange(0, RANK_BLOCK)
    return tl.load(row + ranks, mask=(ranks < RANK) & live, other=0.0).to(number)


@triton.jit
def load_dt(
    dt, offsets, row, weight, bias, known, live, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr
):
    """dt of a step, (channels,), and the derivative of softplus; both 0 beyond the last step."""
    number: tl.constexpr = bias.dtype
    if RANK == 0:
        size = tl.load(dt + offsets, mask=known & live, other=0.0).to(number)
        return size, size
    r = load_r(row, live, number, RANK, RANK_BLOCK)
    size, slope = softplus(bias + tl.sum(weight * r[:, None], axis=0))
    return tl.where(live, size, 0.0), tl.where(live, slope, 0.0)


@triton.jit
def chunk_ends(
    source,
    dt,
    rows,
    dt_weight,
    dt_bias,
    A,
    states,
    spans,
    groups,
    length,
    height,
    width,
    channel,
    MAP: tl.constexpr,
    ADJOINT: tl.constexpr,
    RANK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each chunk adds to its last state, and its span.

    ADJOINT: to the gradient of the state before it. source: u, or dy. Programs: (chunks times
    blocks of channels, groups, batch).
    """
    chunks = tl.cdiv(length, STEPS)
    chunk, direction = tl.program_id(0) % chunks, tl.program_id(1)
    channels = tl.program_id(0) // chunks * BLOCK + tl.arange(0, BLOCK)
    known = channels < channel
    sequence = tl.program_id(2).to(tl.int64) * groups + direction
    image = tl.program_id(2).to(tl.int64) if MAP else sequence

    A_tile = rate_tile(A, direction, channel, channels, known)
    number: tl.constexpr = A_tile.dtype
    rates = A_tile * LOG2_E
    weight = weight_tile(dt_weight, direction, channel, channels, known, RANK, RANK_BLOCK)
    bias = tl.load(dt_bias + direction * channel + channels, mask=known, other=0.0)

    position, way, count = walk(chunk, length, is_reversed(direction, MAP) != ADJOINT, STEPS)
    h = tl.zeros([STATE, BLOCK], number)
    span = tl.zeros([BLOCK], number)
    for _ in range(count):
        at = image * length + pixel_at(position, direction, height, width, MAP)
        row = rows + (at * groups + direction if MAP else at) * (RANK + 2 * STATE)
        size, _slope = load_dt(
            dt, at * channel + channels, row, weight, bias, known, True, RANK, RANK_BLOCK
        )
        x = tl.load(source + at * channel + channels, mask=known, other=0.0).to(number)
        of_states = tl.load(row + RANK + (STATE if ADJOINT else 0) + tl.arange(0, STATE)).to(number)
        decay = tl.exp2(size[None, :] * rates)
        if ADJOINT:
            h = decay * (h + x[None, :] * of_states[:, None])
        else:
            h = decay * h + (size * x)[None, :] * of_states[:, None]
        span += size
        position += way
    index = sequence * chunks + chunk
    tl.store(states + state_tile(index, channel, channels), h, mask=known[None, :])
    tl.store(spans + index * channel + channels, span, mask=known)


@triton.jit
def carry(
    states,
    spans,
    A,
    groups,
    chunks,
    channel,
    MAP: tl.constexpr,
    ADJOINT: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From what each chunk adds to the state that it starts from, in place.

    AHEAD chunks are loaded before the first of them is stored, so that their loads wait for memory
    together. Programs: (blocks, groups, batch).
    """
    direction = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channels < channel
    sequence = tl.program_id(2).to(tl.int64) * groups + direction
    backwards = is_reversed(direction, MAP) != ADJOINT

    rates = rate_tile(A, direction, channel, channels, known) * LOG2_E
    h = tl.zeros([STATE, BLOCK], rates.dtype)
    for first in range(0, chunks, AHEAD):
        added, sizes = (), ()
        for ahead in tl.static_range(AHEAD):
            index = sequence * chunks + tl.where(
                backwards, chunks - 1 - first - ahead, first + ahead
            )
            live = known & (first + ahead < chunks)
            added += (
                tl.load(
                    states + state_tile(index, channel, channels), mask=live[None, :], other=0.0
                ),
            )
            sizes += (tl.load(spans + index * channel + channels, mask=live, other=0.0),)
        for ahead in tl.static_range(AHEAD):
            index = sequence * chunks + tl.where(
                backwards, chunks - 1 - first - ahead, first + ahead
            )
            live = known & (first + ahead < chunks)
            tl.store(states + state_tile(index, channel, channels), h, mask=live[None, :])
            h = tl.exp2(sizes[ahead][None, :] * rates) * h + added[ahead]


@triton.jit
def outputs(
    u,
    dt,
    rows,
    dt_weight,
    dt_bias,
    A,
    D,
    starts,
    y,
    kept,
    groups,
    length,
    height,
    width,
    channel,
    MAP: tl.constexpr,
    KEEP: tl.constexpr,
    RANK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y of each slab, and, if KEEP, the state before every SEGMENT steps.

    Programs: (chunks times blocks of channels, slabs, batch).
    """
    chunks, segments = tl.cdiv(length, STEPS), tl.cdiv(length, SEGMENT)
    chunk, slab = tl.program_id(0) % chunks, tl.program_id(1)
    channels = tl.program_id(0) // chunks * BLOCK + tl.arange(0, BLOCK)
    known = channels < channel
    batch = tl.program_id(2).to(tl.int64)
    number: tl.constexpr = A.dtype.element_ty

    for turn in range(2 if MAP else 1):
        direction = slab + 2 * turn
        sequence = batch * groups + direction
        image = batch if MAP else sequence
        rates = rate_tile(A, direction, channel, channels, known) * LOG2_E
        weight = weight_tile(dt_weight, direction, channel, channels, known, RANK, RANK_BLOCK)
        bias = tl.load(dt_bias + direction * channel + channels, mask=known, other=0.0)
        skip = tl.load(D + direction * channel + channels, mask=known, other=0.0)

        position, way, count = walk(chunk, length, is_reversed(direction, MAP), STEPS)
        h = tl.load(
            starts + state_tile(sequence * chunks + chunk, channel, channels),
            mask=known[None, :],
            other=0.0,
        )
        for step in range(count):
            if KEEP and step % SEGMENT == 0:
                index = sequence * segments + (chunk * STEPS + step) // SEGMENT
                tl.store(kept + state_tile(index, channel, channels), h, mask=known[None, :])
            pixel = pixel_at(position, direction, height, width, MAP)
            at = image * length + pixel
            row = rows + (at * groups + direction if MAP else at) * (RANK + 2 * STATE)
            size, _slope = load_dt(
                dt, at * channel + channels, row, weight, bias, known, True, RANK, RANK_BLOCK
            )
            x = tl.load(u + at * channel + channels, mask=known, other=0.0).to(number)
            B = tl.load(row + RANK + tl.arange(0, STATE)).to(number)
            C = tl.load(row + RANK + STATE + tl.arange(0, STATE)).to(number)
            h = tl.exp2(size[None, :] * rates) * h + (size * x)[None, :] * B[:, None]
            place = y + ((batch * tl.num_programs(1) + slab) * length + pixel) * channel + channels
            before = tl.load(place, mask=known & (turn > 0), other=0.0)
            tl.store(place, before + skip * x + tl.sum(h * C[:, None], axis=0), mask=known)
            position += way
        # The second direction adds to what other threads wrote for the first.
        tl.debug_barrier()


@triton.jit
def gradients(
    u,
    dt,
    rows,
    dt_weight,
    dt_bias,
    A,
    D,
    kept,
    ends,
    dy,
    du,
    ddt,
    drows,
    dconstants,
    groups,
    length,
    height,
    width,
    channel,
    MAP: tl.constexpr,
    RANK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients: those of the rows per block of channels, those of constants per chunk.

    ends: gradients of the states at the ends of the chunks, as `starts`.
    ddt: (batch, groups, length, channel).
    drows: (blocks, *rows).
    dconstants: (batch, chunks, groups, 18 + RANK, channel).

    Programs: as `outputs`.
    """
    chunks, segments = tl.cdiv(length, STEPS), tl.cdiv(length, SEGMENT)
    chunk, slab = tl.program_id(0) % chunks, tl.program_id(1)
    block = tl.program_id(0) // chunks
    channels = block * BLOCK + tl.arange(0, BLOCK)
    states, ranks = tl.arange(0, STATE), tl.arange(0, RANK_BLOCK)
    known = channels < channel
    batch = tl.program_id(2).to(tl.int64)
    number: tl.constexpr = A.dtype.element_ty
    # All rows of a block: as many as the maps have pixels, times the directions, whose rows are
    # adjacent.
    row_block = block * tl.num_programs(2).to(tl.int64) * groups * length

    for turn in range(2 if MAP else 1):
        direction = slab + 2 * turn
        sequence = batch * groups + direction
        image = batch if MAP else sequence
        A_tile = rate_tile(A, direction, channel, channels, known)
        rates = A_tile * LOG2_E
        weight = weight_tile(dt_weight, direction, channel, channels, known, RANK, RANK_BLOCK)
        bias = tl.load(dt_bias + direction * channel + channels, mask=known, other=0.0)
        skip = tl.load(D + direction * channel + channels, mask=known, other=0.0)

        origin, way, count = walk(chunk, length, is_reversed(direction, MAP), STEPS)
        dh = tl.load(
            ends + state_tile(sequence * chunks + chunk, channel, channels),
            mask=known[None, :],
            other=0.0,
        )
        dA = tl.zeros([STATE, BLOCK], number)
        dweight = tl.zeros([RANK_BLOCK, BLOCK], number)
        dD, dbias = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)

        for nth in range(tl.cdiv(count, SEGMENT)):
            first = (tl.cdiv(count, SEGMENT) - 1 - nth) * SEGMENT
            index = sequence * segments + (chunk * STEPS + first) // SEGMENT
            h = tl.load(kept + state_tile(index, channel, channels), mask=known[None, :], other=0.0)
            before = ()
            for ahead in tl.static_range(SEGMENT):
                before += (h,)
                live = first + ahead < count
                at = image * length + pixel_at(
                    origin + way * (first + ahead), direction, height, width, MAP
                )
                row = rows + (at * groups + direction if MAP else at) * (RANK + 2 * STATE)
                size, _slope = load_dt(
                    dt, at * channel + channels, row, weight, bias, known, live, RANK, RANK_BLOCK
                )
                x = tl.load(u + at * channel + channels, mask=known & live, other=0.0).to(number)
                B = tl.load(row + RANK + states, mask=live, other=0.0).to(number)
                h = tl.exp2(size[None, :] * rates) * h + (size * x)[None, :] * B[:, None]
            for back in tl.static_range(SEGMENT):
                step = first + SEGMENT - 1 - back
                live = step < count
                pixel = pixel_at(origin + way * step, direction, height, width, MAP)
                at = image * length + pixel
                row_index = (at * groups + direction if MAP else at) * (RANK + 2 * STATE)
                row = rows + row_index
                size, slope = load_dt(
                    dt, at * channel + channels, row, weight, bias, known, live, RANK, RANK_BLOCK
                )
                x = tl.load(u + at * channel + channels, mask=known & live, other=0.0).to(number)
                dy_here = tl.load(dy + at * channel + channels, mask=known & live, other=0.0).to(
                    number
                )
                B = tl.load(row + RANK + states, mask=live, other=0.0).to(number)
                C = tl.load(row + RANK + STATE + states, mask=live, other=0.0).to(number)
                decay = tl.exp2(size[None, :] * rates)
                decayed = decay * before[SEGMENT - 1 - back]
                drive = size * x

                dC = tl.sum((decayed + drive[None, :] * B[:, None]) * dy_here[None, :], axis=1)
                dh += C[:, None] * dy_here[None, :]
                dB = tl.sum(dh * drive[None, :], axis=1)
                ddrive = tl.sum(dh * B[:, None], axis=0)
                dexponent = dh * decayed  # gradient of dt A
                dA += dexponent * size[None, :]
                dsize = ddrive * x + tl.sum(dexponent * A_tile, axis=0)
                dD += dy_here * x
                dh *= decay

                place = (
                    du + ((batch * tl.num_programs(1) + slab) * length + pixel) * channel + channels
                )
                earlier = tl.load(place, mask=known & live & (turn > 0), other=0.0)
                tl.store(place, earlier + ddrive * size + skip * dy_here, mask=known & live)
                drow = drows + row_block * (RANK + 2 * STATE) + row_index
                tl.store(drow + RANK + states, dB, mask=live)
                tl.store(drow + RANK + STATE + states, dC, mask=live)
                if RANK == 0:
                    tl.store(ddt + at * channel + channels, dsize, mask=known & live)
                else:
                    draw = dsize * slope
                    r = load_r(row, live, number, RANK, RANK_BLOCK)
                    dweight += r[:, None] * draw[None, :]
                    dbias += draw
                    dr = tl.sum(weight * draw[None, :], axis=1)
                    tl.store(drow + ranks, dr, mask=(ranks < RANK) & live)

        line = ((batch * chunks + chunk) * groups + direction) * (WEIGHT_LINES + RANK)
        tl.store(
            dconstants + (line + states[:, None]) * channel + channels[None, :],
            dA,
            mask=known[None, :],
        )
        tl.store(dconstants + (line + D_LINE) * channel + channels, dD, mask=known)
        tl.store(dconstants + (line + BIAS_LINE) * channel + channels, dbias, mask=known)
        tl.store(
            dconstants + (line + WEIGHT_LINES + ranks[:, None]) * channel + channels[None, :],
            dweight,
            mask=known[None, :] & (ranks[:, None] < RANK),
        )
        # The second direction adds to what other threads wrote for the first.
        tl.debug_barrier()
