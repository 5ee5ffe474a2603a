"""The selective scan for the rest of repmamba: checks shapes, converts types, chooses a backend.

Two entries for the same operation: `selective_scan` takes sequences, as the literature does;
`scan_map` takes a feature map, in four directions, as the network does. Both compute in float32 for
any input (also under autocast), except float64 for float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from repmamba.errors import ShapeMismatch
from repmamba.scan.backends import choose
from repmamba.scan.directions import to_image, to_sequences
from repmamba.scan.sizes import DIRECTIONS, STATE


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    dt_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The selective scan over grouped sequences: h <- exp(dt A) h + dt B u; y = <C, h> + D u.

    u, dt, y: (batch, groups * channel, length).  A: (groups * channel, 16), negative.
    B, C: (batch, groups, 16, length).  D, dt_bias: (groups * channel,).

    h starts at zero. With dt_bias, dt is raw and becomes softplus(dt + dt_bias); without, it is
    used as it is (>= 0). Returns float32, or float64 when u is float64; differentiable in every
    argument. Raises ShapeMismatch. Source: Gu and Dao 2023, algorithm 2; softplus(v) is v beyond
    20, as published.
    """
    _check_sequences(u, dt, A, B, C, D, dt_bias)
    working = _working_dtype(u)
    u, dt, A, B, C, D = (x.to(working) for x in (u, dt, A, B, C, D))
    if dt_bias is not None:
        dt = softplus(dt + dt_bias.to(working)[:, None])
    return choose(u.device, backend, working).sequences(u, dt, A, B, C, D)


def scan_map(
    p: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """The sum of the selective scans of a map in four directions (`repmamba.scan.directions`).

    p: (batch, C, h, w).
    projected: (batch, 4 (R + 32), h, w), the pointwise projection of p: for each direction R rows
    of dt, 16 of B, 16 of C.
    dt_weight: (4, C, R).  dt_bias: (4, C).  A: (4 C, 16), negative.  D: (4 C,).

    dt is softplus(dt_weight r + dt_bias). Returns (batch, C, h, w), float32, or float64 when p is
    float64. Both maps should be torch.channels_last, which native and triton read without a copy.
    Raises ShapeMismatch.
    """
    _check_map(p, projected, dt_weight, dt_bias, A, D)
    working = _working_dtype(p)
    loaded = choose(p.device, backend, working)
    halves = loaded.backend.halves
    p, projected = (x if x.dtype in halves else x.to(working) for x in (p, projected))
    dt_weight, dt_bias, A, D = (x.to(working) for x in (dt_weight, dt_bias, A, D))
    if loaded.maps is not None:
        return loaded.maps(p, projected, dt_weight, dt_bias, A, D)
    return scan_map_as_sequences(loaded.sequences, p, projected, dt_weight, dt_bias, A, D)


def scan_map_as_sequences(
    scan: Callable[..., Tensor],
    p: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> Tensor:
    """`scan_map` by a scan of sequences: laid out in the four orders, scanned, and summed."""
    batch, channel, height, width = p.shape
    rank = dt_weight.shape[2]
    rows = to_sequences(projected.reshape(batch, DIRECTIONS, rank + 2 * STATE, height, width))
    r, B, C = rows[:, :, :rank], rows[:, :, rank : rank + STATE], rows[:, :, rank + STATE :]
    # A product and a sum instead of a matmul, which autocast would compute in half precision. raw:
    # (batch, 4, C, length)
    raw = (dt_weight.unsqueeze(-1) * r.unsqueeze(2)).sum(3) + dt_bias.unsqueeze(-1)
    u = to_sequences(p.unsqueeze(1).expand(batch, DIRECTIONS, channel, height, width))
    y = scan(u.flatten(1, 2), softplus(raw).flatten(1, 2), A, B, C, D)
    return to_image(y.reshape(batch, DIRECTIONS, channel, height * width), height, width)


def _working_dtype(first: Tensor) -> torch.dtype:
    return torch.float64 if first.dtype == torch.float64 else torch.float32


def _check_sequences(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor | None
) -> None:
    if u.ndim != 3 or B.ndim != 4:
        raise ShapeMismatch(
            f"selective_scan got u {tuple(u.shape)} and B {tuple(B.shape)}; expected u (batch, "
            "rows, length) and B (batch, groups, 16, length)."
        )
    batch, rows, length = u.shape
    groups = B.shape[1]
    if length < 1 or rows < 1 or groups < 1 or rows % groups:
        raise ShapeMismatch(
            f"selective_scan got {rows} rows of length {length} in {groups} groups; expected at "
            "least one of each, and the same number of rows in every group."
        )
    expected = {
        "dt": (dt, (batch, rows, length)),
        "A": (A, (rows, STATE)),
        "B": (B, (batch, groups, STATE, length)),
        "C": (C, (batch, groups, STATE, length)),
        "D": (D, (rows,)),
    }
    if dt_bias is not None:
        expected["dt_bias"] = (dt_bias, (rows,))
    _compare("selective_scan", f"u {tuple(u.shape)}", expected)


def _check_map(
    p: Tensor, projected: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> None:
    if p.ndim != 4 or dt_weight.ndim != 3 or min(p.shape[1:]) < 1:
        raise ShapeMismatch(
            f"scan_map got p {tuple(p.shape)} and dt_weight {tuple(dt_weight.shape)}; expected p "
            "(batch, C, h, w), none of C, h, w zero, and dt_weight (4, C, R)."
        )
    batch, channel, height, width = p.shape
    rank = dt_weight.shape[2]
    expected = {
        "projected": (projected, (batch, DIRECTIONS * (rank + 2 * STATE), height, width)),
        "dt_weight": (dt_weight, (DIRECTIONS, channel, rank)),
        "dt_bias": (dt_bias, (DIRECTIONS, channel)),
        "A": (A, (DIRECTIONS * channel, STATE)),
        "D": (D, (DIRECTIONS * channel,)),
    }
    _compare("scan_map", f"p {tuple(p.shape)}", expected)


def _compare(
    function: str, given: str, expected: dict[str, tuple[Tensor, tuple[int, ...]]]
) -> None:
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            found = f"{name} {tuple(tensor.shape)} with {given}"
            raise ShapeMismatch(f"{function} got {found}; expected {name} {shape}.")
