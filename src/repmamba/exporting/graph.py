"""Graph: an ONNX graph as it is written, node by node.

Values are names. A length is an int where it is known, and a value of one int64 where the file
decides it when it runs; the arithmetic of lengths becomes nodes only for the latter. Equal
constants are stored once.

Written here rather than by a converter, because a converter follows every operation of torch: the
graph of this network would have several times as many nodes, and its scan a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

OPSET = 17
"""The first that has LayerNormalization."""

IR_VERSION = 8
"""The one that came with opset 17."""

Value: TypeAlias = str
Length: TypeAlias = int | str
Operand: TypeAlias = "Value | NDArray[Any]"

INT64 = np.dtype(np.int64)


class Graph:
    """Nodes and constants so far.

    half: store the matrices that `weight` is given in float16; they are computed with in float32.
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
        """Nodes written within it are named after this part of the network."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def node(self, kind: str, *inputs: Operand, **attributes: Any) -> Value:
        """The one result of a new node; an array among its inputs becomes a constant."""
        return self.nodes_of(kind, *inputs, count=1, **attributes)[0]

    def nodes_of(self, kind: str, *inputs: Operand, count: int, **attributes: Any) -> list[Value]:
        """The `count` results of a new node."""
        from onnx import helper

        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        results = [f"v{self._values + number}" for number in range(count)]
        self._values += count
        name = "/".join([*self._scope, f"{kind}_{len(self.nodes)}"])
        self.nodes.append(helper.make_node(kind, names, results, name=name, **attributes))
        return results

    def constant(self, array: NDArray[Any], name: str | None = None) -> Value:
        """A constant; float32, unless its type is an integer's or float16."""
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
        """Give the result of the last node the name that it has outside of the graph."""
        (last,) = self.nodes[-1].output
        assert last == value
        self.nodes[-1].output[0] = name

    def weight(self, matrix: Tensor | NDArray[Any], name: str) -> Value:
        """A matrix or a kernel of the network; in a graph of halves, float16 and a cast."""
        array = np.asarray(matrix.detach().numpy() if isinstance(matrix, Tensor) else matrix)
        full = "/".join([*self._scope, name])
        if not self.half:
            return self.constant(array, full)
        return self.node("Cast", self.constant(array.astype(np.float16), full), to=1)

    # Lengths

    def vector(self, lengths: Sequence[Length]) -> Operand:
        """Lengths side by side: a shape, or the pads of an axis."""
        if all(isinstance(length, int) for length in lengths):
            return np.array(lengths, INT64)
        key = tuple(lengths)
        if key not in self._vectors:
            parts = (self._one(length) for length in lengths)
            self._vectors[key] = self.node("Concat", *parts, axis=0)
        return self._vectors[key]

    def plus(self, a: Length, b: Length) -> Length:
        """The sum."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self.node("Add", self._one(a), self._one(b))

    def minus(self, a: Length, b: Length) -> Length:
        """The difference."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return self.node("Sub", self._one(a), self._one(b))

    def times(self, a: Length, b: Length) -> Length:
        """The product."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return self.node("Mul", self._one(a), self._one(b))

    def pieces(self, length: Length, size: int) -> Length:
        """How many pieces of a size hold the length: the quotient, rounded up."""
        if isinstance(length, int):
            return -(-length // size)
        return self.node("Div", self._one(self.plus(length, size - 1)), self._one(size))

    def _one(self, length: Length) -> Operand:
        return np.array([length], INT64) if isinstance(length, int) else length
