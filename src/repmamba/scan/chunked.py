"""The selective scan in plain torch: runs on every device, with gradients, and can be exported.

The sequence is computed block by block, each small enough for a fast cache, and the state is
carried from block to block. Decays and inputs of a whole block take one operator each. A block is
cut into chunks of equal length, and one step is taken in all of them at once, from a state of zero;
then the states at the ends follow from chunk to chunk; then the effect of each state on the next
chunk is added to all of its steps at once. Every factor is an exp of something <= 0 or a product of
such, so no dt and no A can overflow: small decays become 0, and nothing is ever divided by them.

For the backward pass only the states between blocks are kept; the others are computed again, and
the gradient of the states is the same recurrence in reverse. Values are laid out as (step, group,
state, channel), as channels_last maps are.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from repmamba.scan.selective import scan_map_as_sequences
from repmamba.scan.sizes import DIRECTIONS, STATE

LOG2_E = 1.4426950408889634  # torch's exp2 takes a third of the time of its exp
CPU_BLOCK = 2**19  # values of the state in a block: 2 MiB, which stay in the caches of two cores
# 64 MiB: on a GPU every operator is a launch, so blocks are as large as memory allows
OTHER_BLOCK = 2**24

GRAPH_STEPS = 16  # steps in a chunk of an exported graph: each becomes nodes
# longest sequence of a graph with symbolic length: 16 * 2**16, a pooled map of 1024 x 1024
GRAPH_DOUBLINGS = 16


def scan_in_chunks(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan; arguments, result and source as `definition.scan_by_definition`."""
    if torch.compiler.is_compiling():
        return _scan_as_graph(u, dt, A, B, C, D)
    batch, rows, length = u.shape
    groups = B.shape[1]

    def by_step(x: Tensor) -> Tensor:
        """(batch, groups * n or groups, n, length) -> (length, batch, groups, n)."""
        return x.reshape(batch, groups, -1, length).permute(3, 0, 1, 2).contiguous()

    y = _scan_by_step(by_step(u), by_step(dt), A, by_step(B), by_step(C), D)
    return y.permute(1, 2, 3, 0).reshape(batch, rows, length)


def scan_map_in_chunks(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """The scan of a map in four directions; arguments and result as `selective.scan_map`."""
    if torch.compiler.is_compiling():
        return scan_map_as_sequences(scan_in_chunks, p, projected, dt_weight, dt_bias, A, D)
    batch, channel, height, width = p.shape
    rank = dt_weight.shape[2]
    u = _to_steps(p.unsqueeze(1).expand(batch, DIRECTIONS, channel, height, width))
    rows = _to_steps(projected.reshape(batch, DIRECTIONS, rank + 2 * STATE, height, width))
    r, B, C = rows[..., :rank], rows[..., rank : rank + STATE], rows[..., rank + STATE :]
    raw = dt_bias.expand_as(u)
    # products and sums instead of a matmul, which autocast would compute in half precision
    for j in range(rank):
        raw = torch.addcmul(raw, r[..., j, None], dt_weight[..., j])
    y = _scan_by_step(u, softplus(raw), A, B, C, D)
    by_row = (y[:, :, 0] + y[:, :, 2].flip(0)).reshape(height, width, batch, channel)
    by_column = (y[:, :, 1] + y[:, :, 3].flip(0)).reshape(width, height, batch, channel)
    y = (by_row + by_column.transpose(0, 1)).permute(2, 3, 0, 1)
    return y.contiguous(memory_format=torch.channels_last)


def _to_steps(maps: Tensor) -> Tensor:
    """`directions.to_sequences`, steps first: (batch, 4, n, h, w) -> (h * w, batch, 4, n)."""
    by_row = maps.permute(3, 4, 0, 1, 2).flatten(0, 1)
    by_column = maps.permute(4, 3, 0, 1, 2).flatten(0, 1)
    return torch.stack(
        (by_row[:, :, 0], by_column[:, :, 1], by_row[:, :, 2].flip(0), by_column[:, :, 3].flip(0)),
        dim=2,
    )


def _scan_by_step(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan of u and dt (length, batch, groups, channel); the result is shaped as u.

    B, C: (length, batch, groups, state).
    """
    batch, groups, channel = u.shape[1:]
    rates = (A * LOG2_E).reshape(groups, channel, -1).transpose(1, 2).repeat(batch, 1, 1)
    delta, drive, b, c = (x.flatten(1, 2) for x in (dt, dt * u, B, C))
    y: Tensor = _BlockByBlock.apply(delta, drive, rates, b, c)  # type: ignore[no-untyped-call]
    return torch.addcmul(y.reshape(u.shape), D.reshape(groups, channel), u)


class _BlockByBlock(torch.autograd.Function):
    """y = <c, h> of h[t] = 2 ** (delta[t] rates) h[t - 1] + drive[t] b[t].

    delta, drive, y: (length, groups, channel).  rates: (groups, state, channel).  b, c: (length,
    groups, state).
    """

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, drive: Tensor, rates: Tensor, b: Tensor, c: Tensor
    ) -> Tensor:
        blocks = list(_blocks(len(delta), rates))
        longest = max(block.stop - block.start for block, _ in blocks)
        room = delta.new_empty(2, longest, *rates.shape)
        y = torch.empty_like(delta)
        before = torch.zeros_like(rates)
        kept = []
        for block, steps in blocks:
            kept.append(before)
            decay, h = room[:, : block.stop - block.start]
            torch.mul(delta[block, :, None], rates, out=decay).exp2_()
            torch.mul(drive[block, :, None], b[block, ..., None], out=h)
            before = _run(decay, h, before, steps).clone()
            torch.sum(h.mul_(c[block, ..., None]), 2, out=y[block])
        ctx.save_for_backward(delta, drive, rates, b, c, *kept)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        delta, drive, rates, b, c, *kept = ctx.saved_tensors
        ddelta, ddrive, db, dc = (torch.empty_like(x) for x in (delta, drive, b, c))
        drates, after = torch.zeros_like(rates), torch.zeros_like(rates)
        # from the gradient of a state to that of the one before: its decay
        delta_after = pad(delta[1:], (0, 0, 0, 0, 0, 1))
        for (block, steps), before in zip(
            reversed(list(_blocks(len(delta), rates))), reversed(kept), strict=True
        ):
            decay = torch.exp2(delta[block, :, None] * rates)
            h = drive[block, :, None] * b[block, ..., None]
            _run(decay.clone(), h, before, steps)

            # In reverse: dh[t] = decay[t + 1] dh[t + 1] + dy[t] c[t].
            room = torch.exp2(delta_after[block].flip(0)[:, :, None] * rates)
            dh = dy[block].flip(0)[:, :, None] * c[block].flip(0)[..., None]
            after = _run(room, dh, after, steps).clone()
            dh = dh.flip(0)

            torch.sum(torch.mul(h, dy[block, :, None], out=room), 3, out=dc[block])
            torch.sum(torch.mul(dh, drive[block, :, None], out=room), 3, out=db[block])
            torch.sum(torch.mul(dh, b[block, ..., None], out=room), 2, out=ddrive[block])
            of_exponent = decay.mul_(dh)  # times the state before, and later ln 2
            of_exponent[0].mul_(before)
            of_exponent[1:].mul_(h[:-1])
            torch.sum(torch.mul(of_exponent, rates, out=room), 2, out=ddelta[block])
            drates += of_exponent.mul_(delta[block, :, None]).sum(0)
        return ddelta.mul_(math.log(2)), ddrive, drates.mul_(math.log(2)), db, dc


def _blocks(length: int, rates: Tensor) -> Iterator[tuple[slice, int]]:
    """The blocks of a sequence, whole numbers of chunks, and the steps per chunk of each."""
    values = CPU_BLOCK if rates.device.type == "cpu" else OTHER_BLOCK
    longest = min(length, max(1, values // rates.numel()))
    steps = math.isqrt(longest)
    start = 0
    while start < length:
        left = length - start
        size = min(longest, left) // steps * steps or left
        yield slice(start, start + size), min(steps, left)
        start += size


def _run(decay: Tensor, h: Tensor, before: Tensor, steps: int) -> Tensor:
    """h[t] <- decay[t] h[t - 1] + h[t] along the first axis, in place, h[-1] = before; the last h.

    Chunks have `steps` steps. Also replaces decay by the product of decays since the chunk's start.
    """
    for t in range(1, steps):
        h[t::steps].addcmul_(decay[t::steps], h[t - 1 :: steps])
        decay[t::steps].mul_(decay[t - 1 :: steps])
    last = before
    for end, joint in zip(h[steps - 1 :: steps], decay[steps - 1 :: steps], strict=True):
        last = end.addcmul_(joint, last)
    h, decay = (x.view(-1, steps, *x.shape[1:]) for x in (h, decay))
    h[0, :-1].addcmul_(decay[0, :-1], before)
    h[1:, :-1].addcmul_(decay[1:, :-1], h[:-1, -1:])
    return last


def _scan_as_graph(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`scan_in_chunks` for torch.export: nothing in place, and loops of a fixed length.

    The whole sequence is one block. Each step is taken in all chunks, twice: first for what a chunk
    adds to its last state, then from its true first state. In between the states follow by
    doubling; with a symbolic length, the number of doublings is that of the longest sequence
    allowed.
    """
    batch, rows, length = u.shape
    groups, state = B.shape[1:3]
    symbolic = not isinstance(length, int)
    # Symbolic: at least two chunks and some padding, so that no length becomes a special case.
    chunks = length // GRAPH_STEPS + 2 if symbolic else -(-length // GRAPH_STEPS)

    def by_step(x: Tensor, axis: int) -> tuple[Tensor, ...]:
        """(batch, groups, n, length) -> per step (batch, groups, n, chunks), and a new axis."""
        # dt = 0: the state stays
        x = pad(x.reshape(batch, groups, -1, length), (0, chunks * GRAPH_STEPS - length))
        x = x.reshape(batch, groups, -1, chunks, GRAPH_STEPS).permute(4, 0, 1, 2, 3).contiguous()
        return x.unsqueeze(axis).unbind(0)

    delta, drive = by_step(dt, 4), by_step(dt * u, 4)  # each (batch, groups, channel, 1, chunks)
    b, c = by_step(B, 3), by_step(C, 3)  # each (batch, groups, 1, state, chunks)
    rates = A.reshape(groups, -1, state, 1) * LOG2_E

    def advance(h: Tensor, t: int) -> Tensor:
        return torch.addcmul(drive[t] * b[t], torch.exp2(delta[t] * rates), h)

    last = drive[0] * b[0]
    for t in range(1, GRAPH_STEPS):
        last = advance(last, t)
    total = torch.exp2(torch.stack(delta).sum(0) * rates)  # the decay over a whole chunk
    h = _states_before(total, last, GRAPH_DOUBLINGS if symbolic else (chunks - 1).bit_length())

    ys = []
    for t in range(GRAPH_STEPS):
        h = advance(h, t)
        ys.append((h * c[t]).sum(3))
    y = torch.stack(ys, dim=-1).reshape(batch, rows, chunks * GRAPH_STEPS)[..., :length]
    return y + D[:, None] * u


def _states_before(decay: Tensor, added: Tensor, doublings: int) -> Tensor:
    """The state before each chunk: h[i] = decay[i] h[i - 1] + added[i] on the last axis, h[-1] = 0.

    After the k-th doubling, `added` holds the effect of the last 2**k chunks, and `decay` the
    product of their decays.
    """
    chunks = decay.shape[-1]
    for k in range(doublings):
        earlier = pad(added, (2**k, 0))[..., :chunks]
        added = torch.addcmul(added, decay, earlier)
        decay = decay * pad(decay, (2**k, 0))[..., :chunks]
    return pad(added, (1, 0))[..., :chunks]
