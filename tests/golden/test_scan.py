"""The bare scan against the golden numbers: plain and extreme dt, L from 1 to 1000, values and all
gradients.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from repmamba.scan.backends import BACKENDS
from repmamba.scan.selective import selective_scan

from ..near import DOUBLE, GRADIENT, VALUE, assert_near

INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias")
ON_CPU = [backend.name for backend in BACKENDS if backend.serves(torch.device("cpu"))]
BOUNDS = {torch.float32: (VALUE, GRADIENT), torch.float64: (DOUBLE, DOUBLE)}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("length", [1, 7, 64, 1000])
@pytest.mark.parametrize("kind", ["plain", "extreme"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_the_scan_matches_the_golden_numbers_in_value_and_gradient(
    backend, kind, length, dtype, golden: Path
):
    case = f"{kind}.L{length}."
    numbers = {
        name.removeprefix(case): x
        for name, x in load_file(golden / "scan.safetensors").items()
        if name.startswith(case)
    }
    inputs = [numbers[name].to(dtype).requires_grad_() for name in INPUTS]
    y = selective_scan(*inputs[:6], dt_bias=inputs[6], backend=backend)
    gradients = torch.autograd.grad(y, inputs, numbers["dy"].to(dtype))
    value, gradient = BOUNDS[dtype]
    assert_near(y, numbers["y"], value)
    for name, found in zip(INPUTS, gradients, strict=True):
        assert_near(found, numbers[f"grad_{name}"], gradient)  # exactly zero for A at L = 1
