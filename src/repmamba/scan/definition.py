"""The selective scan as published, one step at a time: slow, and the reference for all backends.

Gradients come from autograd through the steps; nothing is derived by hand.
"""

import torch
from torch import Tensor


def scan_by_definition(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan, one step at a time: h <- exp(dt A) h + dt B u; y = <C, h> + D u.

    u, dt, y: (batch, groups * channel, length), dt >= 0.  A: (groups * channel, state), negative.
    B, C: (batch, groups, state, length), shared by the channels of a group.  D: (groups *
    channel,).
    The state h starts at zero. Source: Gu and Dao 2023, eq. 2 and algorithm 2, B discretised as dt
    B.
    """
    batch, rows, length = u.shape
    groups, state = B.shape[1:3]
    u, dt = (x.reshape(batch, groups, -1, length) for x in (u, dt))
    A, D = A.reshape(groups, -1, state), D.reshape(groups, -1)
    h = u.new_zeros(*u.shape[:3], state)
    steps = []
    for u_t, dt_t, B_t, C_t in zip(
        u.unbind(-1), dt.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True
    ):
        decay = torch.exp(dt_t[..., None] * A)  # (batch, groups, channel, state)
        h = decay * h + (dt_t * u_t)[..., None] * B_t[..., None, :]
        steps.append((h * C_t[..., None, :]).sum(-1))
    y = torch.stack(steps, dim=-1) + D[..., None] * u
    return y.reshape(batch, rows, length)
