"""Graph: an ONNX graph, written node by node.

Values are names. A length is an int if it is known, else a value of one int64, known when the file
runs; only then does arithmetic on lengths become nodes. Equal constants are stored once.

No converter is used: it would follow every torch operation, giving several times as many nodes and
a scan of fixed length.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # that of opset 17

Value: TypeAlias = str
Length: TypeAlias = int | str
Operand: TypeAlias = "Value | NDArray[Any]"

INT64 = np.dtype(np.int64)


class Graph:
    """The nodes and constants so far.

    half: store the matrices passed to `weight` in float16; computation is in float32.
    """

    def __init__(self, *, half: bool = False) -> None:
        self.half = half
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
        self._scope: list[str] = []
        self._vectors: dict[tuple[Length, ...], Value] = {}
        self._values = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name the nodes written within after this part of the network."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def node(self, kind: str, *inputs: Operand, **attributes: Any) -> Value:
        """Add a node and return its one result; arrays among the inputs become constants."""
        return self.nodes_of(kind, *inputs, count=1, **attributes)[0]

    def nodes_of(self, kind: str, *inputs: Operand, count: int, **attributes: Any) -> list[Value]:
        """Add a node and return its `count` results."""
        from onnx import helper

        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        results = [f"v{self._values + number}" for number in range(count)]
        self._values += count
        name = "/".join([*self._scope, f"{kind}_{len(self.nodes)}"])
        self.nodes.append(helper.make_node(kind, names, results, name=name, **attributes))
        return results

    def constant(self, array: NDArray[Any], name: str | None = None) -> Value:
        """Add a constant; float32, unless it is an integer or float16."""
        from onnx import numpy_helper

        if array.dtype.kind == "f" and array.dtype != np.float16:
            array = array.astype(np.float32)
        array = np.ascontiguousarray(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            number = len(self.constants)
            own = f"{name}.{number}" if name else f"c{number}"
            self.constants[key] = numpy_helper.from_array(array, own)
        found: str = self.constants[key].name
        return found

    def rename(self, value: Value, name: str) -> None:
        """Rename the result of the last node, to its name outside of the graph."""
        (last,) = self.nodes[-1].output
        assert last == value
        self.nodes[-1].output[0] = name

    def weight(self, matrix: Tensor | NDArray[Any], name: str) -> Value:
        """Add a matrix or kernel of the network; with half, in float16 and cast."""
        array = np.asarray(matrix.detach().numpy() if isinstance(matrix, Tensor) else matrix)
        full = "/".join([*self._scope, name])
        if not self.half:
            return self.constant(array, full)
        return self.node("Cast", self.constant(array.astype(np.float16), full), to=1)

    # Lengths

    def vector(self, lengths: Sequence[Length]) -> Operand:
        """Lengths as one vector: a shape, or the pads of an axis."""
        if all(isinstance(length, int) for length in lengths):
            return np.array(lengths, INT64)
        key = tuple(lengths)
        if key not in self._vectors:
            parts = (self._one(length) for length in lengths)
            self._vectors[key] = self.node("Concat", *parts, axis=0)
        return self._vectors[key]

    def plus(self, a: Length, b: Length) -> Length:
        """a + b."""
        return self._of_two("Add", operator.add, a, b)

    def minus(self, a: Length, b: Length) -> Length:
        """a - b."""
        return self._of_two("Sub", operator.sub, a, b)

    def times(self, a: Length, b: Length) -> Length:
        """a * b."""
        return self._of_two("Mul", operator.mul, a, b)

    def pieces(self, length: Length, size: int) -> Length:
        """The number of pieces of this size that hold the length: the quotient, rounded up."""
        if isinstance(length, int):
            return -(-length // size)
        return self.node("Div", self._one(self.plus(length, size - 1)), self._one(size))

    def _of_two(self, kind: str, known: Callable[[int, int], int], a: Length, b: Length) -> Length:
        if isinstance(a, int) and isinstance(b, int):
            return known(a, b)
        return self.node(kind, self._one(a), self._one(b))

    def _one(self, length: Length) -> Operand:
        return np.array([length], INT64) if isinstance(length, int) else length
