"""The selective scan in plain torch, fast enough to use: works on every device, with gradients, and can be exported.

The sequence is cut into chunks of equal length, and one step is taken in all chunks at once. First from a state of
zero, which gives what each chunk adds to its last state; then the states between chunks follow by doubling; then the
steps are taken again, each chunk from its true first state. Every factor is an exp of something <= 0 or a product of
such, so no dt and no A can overflow: small decays become 0, and nothing is ever divided by them.

Work: two visits per element and step, plus log2(chunks) for one element in `steps`. The loops have lengths that do not
depend on the data, so that torch.export can follow them; with a length that is symbolic there, the number of doublings
is that of the longest sequence allowed.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG2_E = 1.4426950408889634  # torch's exp2 takes a third of the time of its exp
EAGER_STEPS = 64  # steps in a chunk: the loop in Python has this length, whatever the sequence
SYMBOLIC_STEPS = 16  # shorter when exported with a symbolic length: each step becomes nodes of the graph
SYMBOLIC_DOUBLINGS = 16  # longest sequence of an exported graph: 16 * 2**16, a pooled map of 1024 x 1024


def scan_in_chunks(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan; arguments, result and source as `repmamba.scan.definition.scan_by_definition`."""
    batch, rows, length = u.shape
    groups, state = B.shape[1:3]
    symbolic = not isinstance(length, int)
    steps = SYMBOLIC_STEPS if symbolic else min(EAGER_STEPS, max(1, int(length**0.5)))
    # Symbolic: at least two chunks and something to pad, so that no length is a special case with a graph of its own.
    chunks = length // steps + 2 if symbolic else -(-length // steps)

    def by_step(x: Tensor, axis: int) -> tuple[Tensor, ...]:
        """(batch, groups, n, length) -> per step (batch, groups, n, chunks), and a broadcast axis."""
        x = pad(x.reshape(batch, groups, -1, length), (0, chunks * steps - length))  # dt = 0: the state stays
        x = x.reshape(batch, groups, -1, chunks, steps).permute(4, 0, 1, 2, 3).contiguous()
        return x.unsqueeze(axis).unbind(0)

    delta, drive = by_step(dt, 4), by_step(dt * u, 4)  # each (batch, groups, channel, 1, chunks)
    b, c = by_step(B, 3), by_step(C, 3)  # each (batch, groups, 1, state, chunks)
    rates = A.reshape(groups, -1, state, 1) * LOG2_E
    room = None if symbolic or _needs_a_graph(u, dt, A, B, C, D) else torch.empty_like(delta[0] * rates)

    def advance(h: Tensor, t: int) -> Tensor:
        """The t-th step of every chunk; without a graph in the memory of h, which is a third faster."""
        if room is None:
            return torch.addcmul(drive[t] * b[t], torch.exp2(delta[t] * rates), h)
        decay = torch.mul(delta[t], rates, out=room).exp2_()
        return h.mul_(decay).addcmul_(drive[t], b[t])

    last = drive[0] * b[0]
    for t in range(1, steps):
        last = advance(last, t)
    total = torch.exp2(torch.stack(delta).sum(0) * rates)  # the decay over a whole chunk
    h = _states_before(total, last, SYMBOLIC_DOUBLINGS if symbolic else (chunks - 1).bit_length()).contiguous()

    ys = []
    for t in range(steps):
        h = advance(h, t)
        ys.append(torch.mul(h, c[t], out=room).sum(3))
    y = torch.stack(ys, dim=-1).reshape(batch, rows, chunks * steps)[..., :length]
    return y + D[:, None] * u


def _needs_a_graph(*tensors: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return recorded or torch.compiler.is_compiling()


def _states_before(decay: Tensor, added: Tensor, doublings: int) -> Tensor:
    """The state before each chunk, of h[i] = decay[i] h[i - 1] + added[i] with h[-1] = 0, along the last axis.

    After the k-th doubling, `added` holds what the last 2**k chunks leave behind, and `decay` their joint decay.
    """
    chunks = decay.shape[-1]
    for k in range(doublings):
        earlier = pad(added, (2**k, 0))[..., :chunks]
        added = torch.addcmul(added, decay, earlier)
        decay = decay * pad(decay, (2**k, 0))[..., :chunks]
    return pad(added, (1, 0))[..., :chunks]
