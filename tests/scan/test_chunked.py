"""What holds for the chunked scan alone: blocks that do not show, no overflow, and a graph of
torch's own operators.
"""

import pytest
import torch
from torch import Tensor, nn

from repmamba.scan import chunked
from repmamba.scan.chunked import scan_in_chunks, scan_map_in_chunks
from repmamba.scan.definition import scan_by_definition
from repmamba.scan.selective import scan_map


def sequences(length: int, *, dt: float, rate: float) -> list[Tensor]:
    torch.manual_seed(2)
    u, B, C = (
        torch.randn(1, 4, length),
        torch.randn(1, 2, 16, length),
        torch.randn(1, 2, 16, length),
    )
    return [u, torch.full_like(u, dt), torch.full((4, 16), -rate), B, C, torch.randn(4)]


@pytest.mark.parametrize("rate", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("dt", [0.0, 1e-30, 1.0, 1e4])
@pytest.mark.parametrize("length", [1, 4097])
def test_results_are_finite_for_all_sizes_of_dt_and_A(length: int, dt: float, rate: float):
    inputs = [x.requires_grad_() for x in sequences(length, dt=dt, rate=rate)]
    y = scan_in_chunks(*inputs)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), inputs))


@pytest.mark.parametrize("positions", [1, 3, 16, 100])
@pytest.mark.parametrize("length", [1, 2, 17, 97])
def test_it_agrees_with_the_definition_for_any_number_of_blocks(length, positions, monkeypatch):
    # batch, groups, state, channel
    monkeypatch.setattr(chunked, "CPU_BLOCK", 2 * 2 * 16 * 2 * positions)
    torch.manual_seed(length)
    u, dt = torch.randn(2, 4, length), torch.rand(2, 4, length)
    inputs = [
        u,
        dt,
        -3 * torch.rand(4, 16),
        torch.randn(2, 2, 16, length),
        torch.randn(2, 2, 16, length),
    ]
    inputs = [x.double().requires_grad_() for x in (*inputs, torch.randn(4))]
    y, expected = scan_in_chunks(*inputs), scan_by_definition(*inputs)
    torch.testing.assert_close(y, expected)
    of_y, of_expected = (torch.autograd.grad(each.square().sum(), inputs) for each in (y, expected))
    torch.testing.assert_close(of_y, of_expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scan_of_a_map_keeps_the_type_and_layout_of_the_map(map_case, dtype):
    case = [x.to(dtype) for x in map_case(2, 8, 5, 7, 3)]
    y = scan_map_in_chunks(*case)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, scan_map(*case, backend="definition"), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("positions", [2, 8])
def test_its_gradients_are_the_numerical_ones(positions, monkeypatch):
    monkeypatch.setattr(chunked, "CPU_BLOCK", 2 * 16 * 2 * positions)  # groups, state, channel
    inputs = [x.double().requires_grad_() for x in sequences(11, dt=0.3, rate=1.5)]
    inputs[1].data += torch.rand(1, 4, 11)
    assert torch.autograd.gradcheck(scan_in_chunks, inputs, fast_mode=True)


class ChunkedMap(nn.Module):
    """The operator as a network contains it."""

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        for name, value in zip(("dt_weight", "dt_bias", "A", "D"), parameters, strict=True):
            self.register_buffer(name, value)

    def forward(self, p: Tensor, projected: Tensor) -> Tensor:
        return scan_map(
            p, projected, self.dt_weight, self.dt_bias, self.A, self.D, backend="chunked"
        )


def test_an_exported_graph_only_has_torch_operators_and_works_for_other_sizes(map_case):
    p, projected, *parameters = (x.float() for x in map_case(1, 8, 6, 7, 1))
    network = ChunkedMap(parameters)
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        network, (p, projected), dynamic_shapes={"p": sides, "projected": sides}
    )
    called = {
        node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")
    }
    assert called == {"aten"}
    for height, width in ((6, 7), (5, 4), (31, 33), (1, 400)):
        other, its_rows, *_ = (x.float() for x in map_case(1, 8, height, width, 1))
        expected = scan_map(other, its_rows, *parameters, backend="definition")
        torch.testing.assert_close(
            program.module()(other, its_rows), expected, rtol=1e-5, atol=1e-4
        )
