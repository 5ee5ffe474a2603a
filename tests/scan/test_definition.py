"""The reference itself, against values worked by hand and numerical gradients."""

import math

import pytest
import torch

from repmamba.scan.definition import scan_by_definition


def test_two_steps_of_one_channel_and_one_state_match_values_worked_by_hand():
    u, dt = (
        torch.tensor([[[3.0, 5.0]]], dtype=torch.float64),
        torch.tensor([[[0.5, 2.0]]], dtype=torch.float64),
    )
    A, D = torch.tensor([[-0.25]], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    B, C = (
        torch.tensor([[[[2.0, 7.0]]]], dtype=torch.float64),
        torch.tensor([[[[11.0, 13.0]]]], dtype=torch.float64),
    )
    first = 0.5 * 2 * 3
    second = math.exp(-0.25 * 2.0) * first + 2.0 * 7 * 5
    expected = [11 * first + 10 * 3, 13 * second + 10 * 5]
    assert scan_by_definition(u, dt, A, B, C, D).flatten().tolist() == pytest.approx(
        expected, rel=1e-15
    )


def test_channels_of_a_group_only_share_its_B_and_C():
    u, dt = torch.rand(1, 4, 6), torch.rand(1, 4, 6)
    A, D = -torch.rand(4, 3), torch.rand(4)
    B, C = torch.rand(1, 2, 3, 6), torch.rand(1, 2, 3, 6)
    both = scan_by_definition(u, dt, A, B, C, D)
    for group, rows in enumerate((slice(0, 2), slice(2, 4))):
        groups = slice(group, group + 1)
        alone = scan_by_definition(
            u[:, rows], dt[:, rows], A[rows], B[:, groups], C[:, groups], D[rows]
        )
        torch.testing.assert_close(both[:, rows], alone)


def test_its_gradients_are_the_numerical_ones():
    torch.manual_seed(0)
    inputs = [torch.rand(1, 4, 3), torch.rand(1, 4, 3), -torch.rand(4, 2), torch.rand(1, 2, 2, 3)]
    inputs += [torch.rand(1, 2, 2, 3), torch.rand(4)]
    assert torch.autograd.gradcheck(
        scan_by_definition, [x.double().requires_grad_() for x in inputs]
    )
