"""A process whose Triton kernels run step by step in Python, on the CPU: it answers what
test_triton_gpu.py asks.

A process of its own, for TRITON_INTERPRET has to be set before triton is imported, and holds for
all that imports it. It reads pickled (function, arguments) from stdin and writes pickled (result,
fault) to stdout; what fresh memory holds is NaN, so that a place which a kernel forgets is seen.
"""

import os
import pickle
import sys
import traceback
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor
from torch.autograd import forward_ad

from repmamba.errors import UsageError
from repmamba.scan import backends, triton_gpu
from repmamba.scan.selective import scan_map, selective_scan


def gradients(
    operator: str, inputs: list[Tensor], dy: Tensor, steps: int, segment: int
) -> list[Tensor]:
    """The result of scan_map or selective_scan, and the gradients of its inputs, with chunks of so
    many steps.
    """
    triton_gpu.STEPS, triton_gpu.SEGMENT = steps, segment
    leaves = [x.clone().requires_grad_() for x in inputs]
    if operator == "scan_map":
        y = scan_map(*leaves, backend="triton")
    else:
        y = selective_scan(*leaves[:6], dt_bias=leaves[6], backend="triton")
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def value(inputs: list[Tensor]) -> Tensor:
    """The result of scan_map where no gradient is asked for, under autocast."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return scan_map(*inputs, backend="triton")


def said_of_a_tangent(operator: str, inputs: list[Tensor]) -> str:
    """The error of an entry whose first input has a tangent."""
    first, *others = inputs
    try:
        with forward_ad.dual_level():
            getattr(triton_gpu, operator)(forward_ad.make_dual(first, first), *others)
    except UsageError as fault:
        return str(fault)
    return "nothing"


def keeps_the_rules_of_torch(operator: str, inputs: list[Tensor]) -> None:
    """Schema, fake tensors and autograd registration, as torch.library.opcheck tests them."""
    # opcheck compares kept states, and NaN counts as a difference
    torch.use_deterministic_algorithms(False)
    called = getattr(torch.ops.repmamba, operator)
    torch.library.opcheck(called, (*(x.requires_grad_() for x in inputs), True))
    torch.use_deterministic_algorithms(True)


class Map(torch.nn.Module):
    """The operator as a network contains it."""

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        self.scan_parameters = torch.nn.ParameterList([torch.nn.Parameter(x) for x in parameters])

    def forward(self, p: Tensor, projected: Tensor) -> Tensor:
        return scan_map(2 * p, projected, *self.scan_parameters, backend="triton")


def compiled_and_plain(inputs: list[Tensor]) -> list[list[Tensor]]:
    """Result and gradient of p, by torch.compile of the whole graph and without it."""
    p, projected, *parameters = inputs
    network = Map(parameters)
    p.requires_grad_()
    results = []
    for way in (torch.compile(network, fullgraph=True, backend="aot_eager"), network):
        y = way(p, projected)
        results.append(
            [y.detach(), *torch.autograd.grad(y.square().sum(), [p, *network.parameters()])]
        )
    return results


def exported(inputs: list[Tensor], others: list[Tensor]) -> tuple[list[str], Tensor, Tensor]:
    """The operators of an exported program, and what it and the module make of inputs of another
    size.
    """
    p, projected, *parameters = inputs
    network = Map(parameters)
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        network, (p, projected), dynamic_shapes={"p": sides, "projected": sides}
    )
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    with torch.no_grad():
        return called, program.module()(*others[:2]), network(*others[:2])


def _call_without_patching_again(function: Any, *arguments: Any, **named: Any) -> Any:
    if id(function.fn.__globals__) not in _PATCHED:
        _PATCHED.add(id(function.fn.__globals__))
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*arguments, **named)


# Triton's interpreter wraps its whole language again at every call of a function inside a kernel,
# and never removes that: without this the tests take ten times as long.
_PATCHED: set[int] = set()
interpreter.InterpretedFunction.__call__ = _call_without_patching_again


def main() -> None:
    """Answer until stdin ends."""
    # printing must not disturb the answers
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    backends.BACKENDS = tuple(
        replace(backend, devices=("cpu",)) if backend.name == "triton" else backend
        for backend in backends.BACKENDS
    )
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (globals()[function](*arguments), None)
        except Exception:
            answer = (None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
