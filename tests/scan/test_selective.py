"""Every backend against the definition, through the two entries, and what the entries promise by
themselves.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor

from repmamba.errors import ShapeMismatch, UsageError
from repmamba.scan.backends import BACKENDS
from repmamba.scan.selective import scan_map, selective_scan

from ..near import DOUBLE, GRADIENT, VALUE, assert_near

ON_CPU = [backend.name for backend in BACKENDS if backend.serves(torch.device("cpu"))]
FASTER = [name for name in ON_CPU if name != "definition"]
MAP_TENSORS = ("p", "projected", "dt_weight", "dt_bias", "A", "D")


def assert_backend_is_the_definition(
    backend: str, inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Values and all six gradients, against the definition in float64 on the same numbers."""
    inputs = [x.to(dtype) for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    ours = [x.clone().requires_grad_() for x in inputs]
    expected, found = scan_map(*exact, backend="definition"), scan_map(*ours, backend=backend)
    assert found.dtype == dtype
    value, gradient = (DOUBLE, DOUBLE) if dtype == torch.float64 else (VALUE, GRADIENT)
    assert_near(found, expected, value, "value")
    dy = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    pairs = zip(
        torch.autograd.grad(found, ours, dy.to(dtype)),
        torch.autograd.grad(expected, exact, dy),
        strict=True,
    )
    for name, (mine, true) in zip(MAP_TENSORS, pairs, strict=True):
        assert mine.dtype == dtype
        assert_near(mine, true, gradient, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("channel", "rank"), [(8, 1), (16, 1), (32, 1), (64, 2), (5, 1), (48, 3), (1, 2)]
)
@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_backend_agrees_with_the_definition_at_every_width(backend, channel, rank, dtype, map_case):
    assert_backend_is_the_definition(backend, map_case(2, channel, 5, 7, rank), dtype)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 65), (63, 1), (8, 8), (13, 5), (3, 43), (11, 24)], ids=str
)
@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_backend_agrees_with_the_definition_at_one_step_around_a_segment_and_at_many(
    backend, size, map_case
):
    assert_backend_is_the_definition(backend, map_case(1, 8, *size, 1), torch.float32)


@pytest.mark.parametrize("backend", FASTER)
def test_second_derivatives_are_refused(backend, map_case):
    inputs = [x.float().requires_grad_() for x in map_case(1, 8, 3, 4, 1)]
    gradients = torch.autograd.grad(
        scan_map(*inputs, backend=backend).square().sum(), inputs, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"once_differentiable|no autograd formula"):
        gradients[0].square().sum().backward()


@pytest.mark.parametrize("backend", FASTER)
def test_forward_mode_derivatives_are_refused(backend, map_case):
    p, *others = map_case(1, 8, 3, 4, 1)
    with pytest.raises((UsageError, RuntimeError), match=r"forward mode|functorch transforms"):
        torch.func.jvp(lambda p: scan_map(p, *others, backend=backend), (p,), (p,))


@pytest.mark.parametrize("backend", FASTER)
def test_default_dtype_and_device_of_torch_change_nothing(backend, map_case):
    inputs = [x.float() for x in map_case(1, 8, 3, 4, 1)]
    expected = scan_map(*inputs, backend=backend)
    with torch.device("meta"):
        assert torch.equal(scan_map(*inputs, backend=backend), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(scan_map(*inputs, backend=backend), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", FASTER)
def test_backend_agrees_with_the_definition_where_decays_vanish_and_where_they_are_one(
    backend, dtype, map_case
):
    inputs = map_case(1, 16, 9, 10, 2, spread=15.0)  # raw dt to either side of 40
    raw = torch.einsum("kcr,bkrhw->bkchw", inputs[2], inputs[1].reshape(1, 4, 34, 9, 10)[:, :, :2])
    assert raw.min() < -30
    assert raw.max() > 30
    assert_backend_is_the_definition(backend, inputs, dtype)


@pytest.mark.parametrize("backend", FASTER)
@settings(max_examples=15)
@given(
    batch=integers(1, 3),
    channel=integers(1, 40),
    height=integers(1, 12),
    width=integers(1, 12),
    rank=integers(1, 3),
    dtype=sampled_from([torch.float32, torch.float64]),
)
def test_backend_agrees_with_the_definition_on_any_shape(
    backend, batch, channel, height, width, rank, dtype
):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [normal(batch, channel, height, width), normal(batch, 4 * (rank + 32), height, width)]
    inputs += [
        normal(4, channel, rank),
        normal(4, channel),
        -torch.exp(normal(4 * channel, 16)),
        normal(4 * channel),
    ]
    assert_backend_is_the_definition(backend, inputs, dtype)


@pytest.mark.parametrize("backend", ON_CPU)
def test_memory_order_and_strides_of_the_inputs_change_nothing(backend, map_case):
    inputs = [x.float() for x in map_case(2, 8, 4, 6, 1)]
    expected = scan_map(*inputs, backend=backend)
    dense = [x.contiguous() for x in inputs]
    torch.testing.assert_close(scan_map(*dense, backend=backend), expected)
    wide = [torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0] for x in inputs]
    assert not wide[0].is_contiguous()
    torch.testing.assert_close(scan_map(*wide, backend=backend), expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_half_precision_input_gives_float32_also_under_autocast(backend, map_case):
    inputs = map_case(1, 8, 4, 4, 1)
    halves = [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        found = scan_map(*halves, backend=backend)
    assert found.dtype == torch.float32
    assert_near(
        found, scan_map(*(x.double() for x in halves), backend="definition"), VALUE, "value"
    )


@pytest.mark.parametrize("backend", FASTER)
def test_a_map_is_its_four_sequences(backend, map_case):
    """scan_map of one direction's parameters, the other three silent, is selective_scan along that
    direction.
    """
    p, projected, dt_weight, dt_bias, A, D = map_case(1, 8, 3, 5, 1)
    projected = projected.clone().reshape(1, 4, 33, 3, 5)
    projected[:, [0, 2, 3], 17:] = 0  # C
    D = D.clone().reshape(4, 8)
    D[[0, 2, 3]] = 0
    found = scan_map(
        p, projected.flatten(1, 2), dt_weight, dt_bias, A, D.flatten(), backend=backend
    )

    down_columns = projected[:, 1].transpose(-1, -2).flatten(2)
    u = p.transpose(-1, -2).flatten(2)
    r, B, C = down_columns[:, :1], down_columns[:, 1:17], down_columns[:, 17:]
    y = selective_scan(
        u,
        dt_weight[1] @ r,
        A[8:16],
        B.unsqueeze(1),
        C.unsqueeze(1),
        D[1],
        dt_bias=dt_bias[1],
        backend=backend,
    )
    torch.testing.assert_close(found, y.reshape(1, 8, 5, 3).transpose(-1, -2))


@pytest.mark.parametrize("backend", ON_CPU)
def test_without_a_bias_dt_is_used_as_it_is(backend):
    torch.manual_seed(1)
    u, raw, D = torch.rand(2, 6, 10), torch.randn(2, 6, 10), torch.rand(6)
    A, B, C = -torch.rand(6, 16), torch.rand(2, 3, 16, 10), torch.rand(2, 3, 16, 10)
    softened = torch.nn.functional.softplus(raw + 0.5)
    torch.testing.assert_close(
        selective_scan(u, softened, A, B, C, D, backend=backend),
        selective_scan(u, raw, A, B, C, D, dt_bias=torch.full((6,), 0.5), backend=backend),
    )


@pytest.mark.parametrize("name", MAP_TENSORS[1:])
def test_a_map_argument_of_a_wrong_shape_is_named(name, map_case):
    inputs = dict(zip(MAP_TENSORS, map_case(1, 8, 3, 4, 1), strict=True))
    inputs[name] = inputs[name][:-1] if name != "projected" else inputs[name][:, :-1]
    with pytest.raises(ShapeMismatch, match=rf"(got|and) {name} \(.*expected"):
        scan_map(**inputs)


def test_sequences_whose_rows_do_not_fill_their_groups_are_refused():
    u, B = torch.rand(1, 5, 3), torch.rand(1, 2, 16, 3)
    with pytest.raises(ShapeMismatch, match="5 rows of length 3 in 2 groups"):
        selective_scan(u, u, -torch.rand(5, 16), B, B, torch.rand(5))


def test_no_pixels_are_refused(map_case):
    inputs = map_case(1, 8, 3, 4, 1)
    with pytest.raises(ShapeMismatch, match="none of C, h, w zero"):
        scan_map(inputs[0][:, :, :0], *inputs[1:])
