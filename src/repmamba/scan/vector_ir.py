"""Vector code for the CPU kernels: float32 registers of several lanes, written with llvmlite's builder.

LLVM does not turn the scan's loops into vector code by itself, so `numba_kernels` writes the vectors out; this module
has the few operations it needs. The same code becomes AVX-512, AVX2, SSE or NEON: LLVM translates vectors to what the
processor has. Polynomials are minimax fits of the relative error, stated beside each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

# 2**f for |f| <= 1/2 is 1 + f * poly(f), within 9.2e-8. With exactly 1 at f = 0, slow decays keep their accuracy.
EXP2 = (0.6931469776146085, 0.24022242082764403, 0.05550733727942721, 0.009671512761332228, 0.0013264730964927358)
# log(1 + z) for 0 <= z <= 1 is s * poly(s**2) with s = z / (2 + z), within 4e-9.
LOG1P = (2.0000000079208777, 0.6666631468540538, 0.40024910199809216, 0.27960603195802536, 0.2817833530517101)
# Added to x, this leaves round(x) + 127 in the low bits of the sum, the exponent field of 2**round(x).
ROUNDING = 1.5 * 2**23 + 127
SOFTPLUS_LINEAR = 20.0  # softplus(v) is v beyond, as published


class Vectors:
    """Writes operations on vectors of `lanes` float32 at the builder's place. Values are llvmlite's, hence Any."""

    def __init__(self, builder: Any, lanes: int):
        self.builder, self.lanes = builder, lanes
        self.type = ir.VectorType(F32, lanes)
        self.bits = ir.VectorType(I32, lanes)

    def constant(self, value: float) -> Any:
        """The value in every lane, rounded to float32."""
        return ir.Constant(self.type, [float(np.float32(value))] * self.lanes)

    def load(self, address: Any) -> Any:
        """The lanes at an address, which need not be aligned."""
        return self.builder.load(self.builder.bitcast(address, self.type.as_pointer()), align=4)

    def store(self, vector: Any, address: Any) -> None:
        """Write the lanes to an address, which need not be aligned."""
        self.builder.store(vector, self.builder.bitcast(address, self.type.as_pointer()), align=4)

    def add_to(self, address: Any, vector: Any) -> None:
        """Add the lanes to those at an address."""
        self.store(self.builder.fadd(self.load(address), vector), address)

    def scalar(self, address: Any) -> Any:
        """One float32 from memory."""
        return self.builder.load(self.builder.bitcast(address, F32.as_pointer()))

    def splat(self, address: Any) -> Any:
        """One float32 from memory, in every lane."""
        first = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), self.scalar(address), I32(0))
        return self.builder.shuffle_vector(first, first, ir.Constant(self.bits, [0] * self.lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, in one rounding where the processor can."""
        kind = ir.FunctionType(self.type, [self.type] * 3)
        name = f"llvm.fmuladd.v{self.lanes}f32"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def polynomial(self, x: Any, coefficients: tuple[float, ...]) -> Any:
        """The polynomial in x, lowest coefficient first, by Horner's rule."""
        value = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def exp2(self, x: Any) -> Any:
        """2**x for x <= 0, within 1e-7 relative; 0 where the result would be below the normal numbers."""
        b = self.builder
        lowest = self.constant(-127)  # the exponent field is 0 there, and the factor with it
        x = b.select(b.fcmp_ordered(">", lowest, x), lowest, x)
        rounded = b.fadd(x, self.constant(ROUNDING))
        fraction = b.fsub(x, b.fsub(rounded, self.constant(ROUNDING)))
        mantissa = self.polynomial(fraction, (1.0, *EXP2))
        exponent = b.shl(b.bitcast(rounded, self.bits), ir.Constant(self.bits, [23] * self.lanes))
        return b.fmul(mantissa, b.bitcast(exponent, self.type))

    def softplus(self, v: Any) -> tuple[Any, Any]:
        """log(1 + e**v), and its derivative; v and 1 beyond 20."""
        b, one = self.builder, self.constant(1)
        positive = b.fcmp_ordered(">", v, self.constant(0))
        magnitude = b.select(positive, v, b.fneg(v))
        z = self.exp2(b.fmul(magnitude, self.constant(-LOG2_E)))
        s = b.fdiv(z, b.fadd(z, self.constant(2)))
        log1p = b.fmul(s, self.polynomial(b.fmul(s, s), LOG1P))
        value = b.fadd(b.select(positive, v, self.constant(0)), log1p)
        slope = b.fdiv(b.select(positive, one, z), b.fadd(one, z))
        linear = b.fcmp_ordered(">", v, self.constant(SOFTPLUS_LINEAR))
        return b.select(linear, v, value), b.select(linear, one, slope)

    def sum(self, vector: Any) -> Any:
        """The sum of the lanes, a scalar, added in the order of a fixed tree."""
        b, half = self.builder, self.lanes // 2
        while half:
            mask = [lane + half if lane < half else lane for lane in range(self.lanes)]
            vector = b.fadd(vector, b.shuffle_vector(vector, vector, ir.Constant(self.bits, mask)))
            half //= 2
        return b.extract_element(vector, I32(0))

    def sums(self, vectors: list[Any]) -> Any:
        """The sum of the lanes of each of `lanes` vectors, as one vector: the n-th sum in lane n.

        Each round folds two vectors into one that holds half-finished sums of both, so 16 vectors of 16 lanes take
        15 additions instead of 64.
        """
        b, stride = self.builder, 1
        while len(vectors) > 1:
            of_first = [lane if not lane & stride else self.lanes + lane - stride for lane in range(self.lanes)]
            of_second = [lane + stride if not lane & stride else self.lanes + lane for lane in range(self.lanes)]
            vectors = [
                b.fadd(
                    b.shuffle_vector(first, second, ir.Constant(self.bits, of_first)),
                    b.shuffle_vector(first, second, ir.Constant(self.bits, of_second)),
                )
                for first, second in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            stride *= 2
        return vectors[0]

    def variable(self, value: Any) -> Any:
        """A vector that a loop changes, kept in a register."""
        return cgutils.alloca_once_value(self.builder, value)


class Rows:
    """A two-dimensional array in memory, seen as addresses: the elements of a row lie side by side."""

    def __init__(self, builder: Any, array: Any):
        """`array` is the structure that numba passes for an array."""
        self.builder = builder
        self.data = builder.bitcast(array.data, cgutils.voidptr_t)
        self.stride = cgutils.unpack_tuple(builder, array.strides)[0]
        self.count = cgutils.unpack_tuple(builder, array.shape)[0]

    def at(self, row: Any, element: Any = None) -> Any:
        """The address of an element of a row; the first one unless told."""
        b = self.builder
        row = I64(row) if isinstance(row, int) else row
        address = b.gep(self.data, [b.mul(row, self.stride)])
        return address if element is None else element_of(b, address, element)


def element_of(builder: Any, address: Any, element: Any) -> Any:
    """The address of the float32 `element` places further on."""
    element = I64(element) if isinstance(element, int) else element
    return builder.gep(builder.bitcast(address, F32.as_pointer()), [element])


@contextmanager
def counting(builder: Any, count: Any) -> Iterator[Any]:
    """A loop over 0 .. count - 1."""
    with cgutils.for_range(builder, count) as loop:
        yield loop.index


@contextmanager
def counting_down(builder: Any, count: Any) -> Iterator[Any]:
    """A loop over count - 1 .. 0."""
    with cgutils.for_range(builder, count) as loop:
        yield builder.sub(builder.sub(count, I64(1)), loop.index)
