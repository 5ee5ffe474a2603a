"""The CPU kernels of the scan: which channels, which steps, and the vector code of one step, forward and backward.

Imported by `numba_cpu` when that backend starts, and by the network's compiled passes (`network.inference_numba`,
`network.training_numba`), which are written with the same `Vectors`: all of them need numba.

Lanes are channels. A block of LANES channels keeps its 16 states in 16 registers; B_t[n] and C_t[n] are broadcast to
all lanes, so that y needs no sum across lanes. Maps are channels-last, (pixels, channels), and a direction is a table
of pixels in the order of visits: nothing is flipped or copied. A sequence goes in segments of SEGMENT steps. The
backward pass starts a segment from the state that the forward pass kept there, computes its states again, then walks
it backwards; sums over channels (the gradients of B, C and r) are made within a step, by a tree of shuffles.

Everything is added in one fixed order, whatever the number of threads: a unit of work owns what it writes to.

LLVM does not turn these loops into vector code by itself, so a step is written as vectors with llvmlite's builder
(`Vectors`); LLVM makes AVX-512, AVX2, SSE or NEON of it. Numba's cache compiles again when the file of a kernel
changes, and would not see a change in another: all of the scan stands in this one file, and kernels elsewhere that use
its vector code carry its digest in their name (`under_the_name_of_this_version`). The cache keeps processors apart by
itself.

Shapes, as the code of a segment's steps reads them; lanes are those of a block, steps at most SEGMENT:

| visits | (steps): pixels |
| u, dt, dy, du, y | (pixels, lanes) |
| rows, drows | (pixels, rank + 32): r, B, C |
| constants | (18 + rank, lanes): A log2(e), D, dt_bias, dt_weight |
| dconstants | the same: the gradients of A, D, dt_bias, dt_weight |
| sizes, slopes, dsizes | (steps or more, lanes): dt, its derivative after that of softplus's argument, its gradient |
| h, adjoint | (16, lanes) |
| states | (steps + 1 or more, 16 lanes): before each step, and after the last |
| decays | (steps or more, 16 lanes): exp(dt A) |
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from repmamba.scan.compiled import load
from repmamba.scan.sizes import STATE

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and vector code runs compiled or not at all")

AT_ONCE = 4  # blocks that go through a segment after one another
CACHE_LINE = 16  # float32 numbers
AHEAD = 6  # steps at which a pixel is asked for before its turn: down a column, each lies far from the one before
SEGMENT = 64  # steps between kept states: these cost 16 / 64 of a map each direction, and a segment fits the L2 cache
D_ROW, BIAS_ROW, WEIGHT_ROWS = STATE, STATE + 1, STATE + 2  # of a block's constants; rows 0 to 15 are A log2(e)

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
AVX512_LANES = 16
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

# 2**f for |f| <= 1/2 is 1 + f * poly(f), within 9.2e-8. With exactly 1 at f = 0, slow decays keep their accuracy.
EXP2 = (0.6931469776146085, 0.24022242082764403, 0.05550733727942721, 0.009671512761332228, 0.0013264730964927358)
# log(1 + z) for 0 <= z <= 1 is s * poly(s**2) with s = z / (2 + z), within 4e-9.
LOG1P = (2.0000000079208777, 0.6666631468540538, 0.40024910199809216, 0.27960603195802536, 0.2817833530517101)
# The normal distribution's tail beyond x >= 0 is exp(-x^2 / 2) t poly(t) with t = 1 / (1 + TAIL x), within 4e-9 / x.
TAIL = 0.28
TAIL_POLYNOMIAL = (
    *(0.11711906506669244, 0.0637222643650924, 0.27837123603337927),
    *(-0.24877396869464297, 0.397162292892567, -0.10760095996915225),
)
# Added to x, this leaves round(x) + 127 in the low bits of the sum, the exponent field of 2**round(x).
ROUNDING = 1.5 * 2**23 + 127
# 2**f for |f| <= 1/64, within 2.2e-7; not the best such polynomial, but exact where a decay is slow.
EXP2_NEAR_0 = (1.0, LN_2, LN_2**2 / 2)
# The powers between 1 and 2 that such an f leads on from. Added to x, ROUNDING_TO_POWERS leaves POWERS x, rounded, in
# the low bits of the sum, and so in the last five the place of a power in the table.
POWERS = 32
ROUNDING_TO_POWERS = 1.5 * 2**23 / POWERS
SOFTPLUS_LINEAR = 20.0  # softplus(v) is v beyond, as published


FEATURES: list[str] = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
"""Of the processor that numba compiles for, its own settings respected; it keeps cached kernels apart for each set."""

LANES = AVX512_LANES if "+avx512f" in FEATURES else 8 if "+avx2" in FEATURES else 4
"""Float32 numbers of a register."""

HAS_PAIRS = LANES == AVX512_LANES and "+avx512bf16" in FEATURES
"""Whether products of pairs of bfloat16 are an instruction."""


VERSION = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=4).hexdigest()


def under_the_name_of_this_version(function: Callable[..., Any], *constants: object) -> Callable[..., Any]:
    """The function, named so that numba's cache keeps what is compiled of it apart for every version of this file.

    constants: what the compiled code holds of still other files.
    """
    of_others = hashlib.blake2b(repr(constants).encode(), digest_size=4).hexdigest()
    function.__qualname__ += f"_with_vectors_{VERSION}_{of_others}"
    return function


class _BFloat16(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOAT_PAIRS = ir.VectorType(_BFloat16(), 2 * AVX512_LANES)


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

    def prefetch(self, address: Any, numbers: int) -> None:
        """Bring so many float32 numbers from an address on towards the first cache, while other work goes on."""
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        to_read, to_every_cache, data = I32(0), I32(3), I32(1)
        for line in range(0, numbers, CACHE_LINE):
            place = self.builder.bitcast(element_of(self.builder, address, line), cgutils.voidptr_t)
            self.builder.call(function, [place, to_read, to_every_cache, data])

    def splat(self, address: Any) -> Any:
        """One float32 from memory, in every lane."""
        return self.everywhere(self.scalar(address))

    def everywhere(self, number: Any) -> Any:
        """A float32 in every lane."""
        first = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), number, I32(0))
        return self.builder.shuffle_vector(first, first, ir.Constant(self.bits, [0] * self.lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, in one rounding where the processor can."""
        return self._call(f"llvm.fmuladd.v{self.lanes}f32", a, b, c)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of LLVM that returns a vector."""
        kind = ir.FunctionType(self.type, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def fma_of_pairs(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, a and b two bfloat16 in each lane, whose products are added; 16 lanes of a processor that has it."""
        pairs = BFLOAT_PAIRS
        a, b = (self.builder.bitcast(value, pairs) for value in (a, b))
        return self._call("llvm.x86.avx512bf16.dpbf16ps.512", c, a, b)

    def to_pairs(self, low: Any, high: Any) -> Any:
        """Two vectors after one another, rounded to bfloat16, two in each lane."""
        pairs = BFLOAT_PAIRS
        kind = ir.FunctionType(pairs, [self.type, self.type])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
        return self.builder.bitcast(self.builder.call(function, [high, low]), self.type)

    def polynomial(self, x: Any, coefficients: tuple[float, ...]) -> Any:
        """The polynomial in x, lowest coefficient first, by Horner's rule."""
        value = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def exp2(self, x: Any) -> Any:
        """2**x for x <= 0, within 4e-7 relative; 0 for what is far below the normal numbers."""
        return self.exp2_of_product(x, self.constant(1))

    def exp2_of_product(self, a: Any, b: Any) -> Any:
        """2**(a b), as `exp2`."""
        if self.lanes == AVX512_LANES:
            return self._exp2_by_avx512(a, b)
        return self._exp2_by_exponent_bits(self.builder.fmul(a, b))

    def _exp2_by_avx512(self, a: Any, b: Any) -> Any:
        """By a table and the instruction that scales by a power of two: eight operations with the product's own."""
        builder = self.builder
        rounded = self.fma(a, b, self.constant(ROUNDING_TO_POWERS))
        exponent = builder.fsub(rounded, self.constant(ROUNDING_TO_POWERS))
        beyond = self.polynomial(self.fma(a, b, builder.fneg(exponent)), EXP2_NEAR_0)
        powers = [float(np.float32(2 ** (n / POWERS))) for n in range(POWERS)]
        low, high = (ir.Constant(self.type, powers[n : n + AVX512_LANES]) for n in (0, AVX512_LANES))
        power = self._call("llvm.x86.avx512.vpermi2var.ps.512", low, builder.bitcast(rounded, self.bits), high)
        mantissa = builder.fmul(beyond, power)
        every_lane, rounding_as_set = ir.Constant(ir.IntType(16), -1), I32(4)
        scale = "llvm.x86.avx512.mask.scalef.ps.512"  # by 2**floor(exponent)
        return self._call(scale, mantissa, exponent, mantissa, every_lane, rounding_as_set)

    def _exp2_by_exponent_bits(self, x: Any) -> Any:
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

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + e**-x)."""
        b, one = self.builder, self.constant(1)
        positive = b.fcmp_ordered(">", x, self.constant(0))
        magnitude = b.select(positive, x, b.fneg(x))
        z = self.exp2(b.fmul(magnitude, self.constant(-LOG2_E)))  # exp(-|x|), which cannot overflow
        return b.fdiv(b.select(positive, one, z), b.fadd(one, z))

    def normal(self, x: Any) -> tuple[Any, Any]:
        """The normal distribution below x, and exp(-x**2 / 2)."""
        b, one = self.builder, self.constant(1)
        positive = b.fcmp_ordered(">", x, self.constant(0))
        magnitude = b.select(positive, x, b.fneg(x))
        t = b.fdiv(one, self.fma(magnitude, self.constant(TAIL), one))
        bell = self.exp2(b.fmul(b.fmul(x, x), self.constant(-LOG2_E / 2)))
        tail = b.fmul(b.fmul(bell, t), self.polynomial(t, TAIL_POLYNOMIAL))
        return b.select(positive, b.fsub(one, tail), tail), bell

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
        self.count, *rest = cgutils.unpack_tuple(builder, array.shape)
        self.width = rest[0] if rest else None

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


def lane_choices(builder: Any, channels: Any) -> Iterator[Vectors]:
    """Code for whole registers, and code for half ones where eight channels are all there is; one of them runs."""
    if LANES < AVX512_LANES:
        yield Vectors(builder, LANES)
        return
    whole = builder.icmp_signed("==", builder.urem(channels, I64(LANES)), I64(0))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            yield Vectors(builder, LANES)
        with otherwise:
            yield Vectors(builder, LANES // 2)


def rows_of(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """Arrays as Rows, other arguments as they are."""
    return [
        Rows(builder, make_array(kind)(context, builder, value)) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, args, strict=True)
    ]


def _visited(builder: Any, visits: Rows, t: Any) -> Any:
    return builder.load(builder.bitcast(visits.at(t), I64.as_pointer()))


def _at_most(builder: Any, value: Any, limit: Any) -> Any:
    return builder.select(builder.icmp_signed("<", value, limit), value, limit)


@intrinsic  # type: ignore[untyped-decorator]
def step_sizes(
    typing: Any, visits: Any, rows: Any, rank: Any, constants: Any, sizes: Any, slopes: Any
) -> tuple[Any, Any]:
    """dt = softplus(W r + bias) of the visited pixels into `sizes`, and its derivative into `slopes`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        visits, rows, rank, constants, sizes, slopes = rows_of(context, builder, signature, args)
        for v in lane_choices(builder, constants.width):
            with counting(builder, visits.count) as t:
                row = rows.at(_visited(builder, visits, t))
                raw = v.variable(v.load(constants.at(BIAS_ROW)))
                with counting(builder, rank) as j:
                    weight = v.load(constants.at(builder.add(j, I64(WEIGHT_ROWS))))
                    builder.store(v.fma(weight, v.splat(element_of(builder, row, j)), builder.load(raw)), raw)
                size, slope = v.softplus(builder.load(raw))
                v.store(size, sizes.at(t))
                with builder.if_then(builder.icmp_signed(">", slopes.count, I64(0))):
                    v.store(slope, slopes.at(t))
        return context.get_dummy_value()

    return types.void(visits, rows, rank, constants, sizes, slopes), emit


def _step(v: Vectors, n: int, h: Any, size: Any, drive: Any, row: Any, rank: Any, constants: Rows) -> tuple[Any, Any]:
    """h <- exp(dt A) h + (dt u) B for state n of a block; the decay and the new h."""
    builder = v.builder
    decay = v.exp2_of_product(size, v.load(constants.at(n)))
    added = builder.fmul(drive, v.splat(element_of(builder, row, builder.add(rank, I64(n)))))
    return decay, v.fma(decay, h, added)


@intrinsic  # type: ignore[untyped-decorator]
def forward_steps(
    typing: Any, h: Any, visits: Any, u: Any, sizes: Any, rows: Any, rank: Any, constants: Any, y: Any
) -> tuple[Any, Any]:
    """Take the steps of a segment: h from its first to its last state, and <C, h> + D u added to y."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        h, visits, u, sizes, rows, rank, constants, y = rows_of(context, builder, signature, args)
        for v in lane_choices(builder, h.width):
            states = [v.variable(v.load(h.at(n))) for n in range(STATE)]
            last = builder.sub(visits.count, I64(1))
            with counting(builder, visits.count) as t:
                pixel = _visited(builder, visits, t)
                row, size, u_t = rows.at(pixel), v.load(sizes.at(t)), v.load(u.at(pixel))
                later = _visited(builder, visits, _at_most(builder, builder.add(t, I64(AHEAD)), last))
                v.prefetch(rows.at(later), 2 * STATE + CACHE_LINE)
                v.prefetch(u.at(later), v.lanes)
                v.prefetch(y.at(later), v.lanes)
                drive = builder.fmul(size, u_t)
                result = [builder.fmul(v.load(constants.at(D_ROW)), u_t), v.load(y.at(pixel))]
                for n, state in enumerate(states):
                    _, new = _step(v, n, builder.load(state), size, drive, row, rank, constants)
                    builder.store(new, state)
                    weight = v.splat(element_of(builder, row, builder.add(rank, I64(STATE + n))))
                    result[n % 2] = v.fma(weight, new, result[n % 2])
                v.store(builder.fadd(*result), y.at(pixel))
            for n, state in enumerate(states):
                v.store(builder.load(state), h.at(n))
        return context.get_dummy_value()

    return types.void(h, visits, u, sizes, rows, rank, constants, y), emit


@intrinsic  # type: ignore[untyped-decorator]
def recompute_steps(
    typing: Any, visits: Any, u: Any, sizes: Any, rows: Any, rank: Any, constants: Any, states: Any, decays: Any
) -> tuple[Any, Any]:
    """The steps of a segment again, from states[0]: every state into states[t + 1], every decay into decays[t]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        visits, u, sizes, rows, rank, constants, states, decays = rows_of(context, builder, signature, args)
        v = Vectors(builder, LANES)
        h = [v.variable(v.load(states.at(0, n * LANES))) for n in range(STATE)]
        with counting(builder, visits.count) as t:
            pixel = _visited(builder, visits, t)
            row, size = rows.at(pixel), v.load(sizes.at(t))
            drive = builder.fmul(size, v.load(u.at(pixel)))
            kept, kept_decay = states.at(builder.add(t, I64(1))), decays.at(t)
            for n in range(STATE):
                decay, new = _step(v, n, builder.load(h[n]), size, drive, row, rank, constants)
                builder.store(new, h[n])
                v.store(new, element_of(builder, kept, n * LANES))
                v.store(decay, element_of(builder, kept_decay, n * LANES))
        return context.get_dummy_value()

    return types.void(visits, u, sizes, rows, rank, constants, states, decays), emit


@intrinsic  # type: ignore[untyped-decorator]
def backward_steps(
    typing: Any,
    adjoint: Any,
    visits: Any,
    dy: Any,
    u: Any,
    sizes: Any,
    rows: Any,
    rank: Any,
    constants: Any,
    states: Any,
    decays: Any,
    du: Any,
    dsizes: Any,
    drows: Any,
    dconstants: Any,
) -> tuple[Any, Any]:
    """Walk a segment backwards with the adjoint of h: gradients of u, B, C added to, of dt stored, of A, D added to.

    With g = dy and l = C g + (adjoint from the step after): dC = <g, h>, dB = <l, dt u>, du = D g + dt <l, B>,
    ddt = u <l, B> + <l a h', A>, dA += l a h' dt, and l a goes to the step before; a the decay, h' the state before.
    """
    signature = types.void(
        adjoint, visits, dy, u, sizes, rows, rank, constants, states, decays, du, dsizes, drows, dconstants
    )

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        adjoint, visits, dy, u, sizes, rows, rank, *rest = rows_of(context, builder, signature, args)
        constants, states, decays, du, dsizes, drows, dconstants = rest
        v = Vectors(builder, LANES)
        zero = v.constant(0)
        carried = [v.variable(v.load(adjoint.at(n))) for n in range(STATE)]
        dD = v.variable(v.load(dconstants.at(D_ROW)))
        with counting_down(builder, visits.count) as t:
            pixel = _visited(builder, visits, t)
            row, drow, size = rows.at(pixel), drows.at(pixel), v.load(sizes.at(t))
            g, u_t = v.load(dy.at(pixel)), v.load(u.at(pixel))
            drive = builder.fmul(size, u_t)
            before, after, decay_at = states.at(t), states.at(builder.add(t, I64(1))), decays.at(t)
            along_B, along_A = zero, zero
            for first in range(0, STATE, LANES):
                dB, dC = [], []
                for n in range(first, min(first + LANES, STATE)):
                    B_n = v.splat(element_of(builder, row, builder.add(rank, I64(n))))
                    C_n = v.splat(element_of(builder, row, builder.add(rank, I64(STATE + n))))
                    dC.append(builder.fmul(g, v.load(element_of(builder, after, n * LANES))))
                    total = v.fma(C_n, g, builder.load(carried[n]))
                    dB.append(builder.fmul(total, drive))
                    along_B = v.fma(total, B_n, along_B)
                    passed = builder.fmul(total, v.load(element_of(builder, decay_at, n * LANES)))
                    builder.store(passed, carried[n])
                    decayed = builder.fmul(passed, v.load(element_of(builder, before, n * LANES)))
                    along_A = v.fma(decayed, v.load(constants.at(n)), along_A)
                    v.store(v.fma(decayed, size, v.load(dconstants.at(n))), dconstants.at(n))
                v.add_to(element_of(builder, drow, builder.add(rank, I64(first))), v.sums(dB))
                v.add_to(element_of(builder, drow, builder.add(rank, I64(STATE + first))), v.sums(dC))
            v.store(v.fma(u_t, along_B, builder.fmul(along_A, v.constant(LN_2))), dsizes.at(t))
            skip = builder.fmul(v.load(constants.at(D_ROW)), g)
            v.add_to(du.at(pixel), v.fma(size, along_B, skip))
            builder.store(v.fma(g, u_t, builder.load(dD)), dD)
        v.store(builder.load(dD), dconstants.at(D_ROW))
        for n in range(STATE):
            v.store(builder.load(carried[n]), adjoint.at(n))
        return context.get_dummy_value()

    return signature, emit


@intrinsic  # type: ignore[untyped-decorator]
def step_sizes_backward(
    typing: Any,
    visits: Any,
    rows: Any,
    rank: Any,
    constants: Any,
    dsizes: Any,
    slopes: Any,
    drows: Any,
    dconstants: Any,
) -> tuple[Any, Any]:
    """From the gradients of dt to those of r, of the weights and of the bias, added to what is there."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        visits, rows, rank, constants, dsizes, slopes, drows, dconstants = rows_of(context, builder, signature, args)
        v = Vectors(builder, LANES)
        with counting(builder, visits.count) as t:
            pixel = _visited(builder, visits, t)
            draw = builder.fmul(v.load(dsizes.at(t)), v.load(slopes.at(t)))
            v.add_to(dconstants.at(BIAS_ROW), draw)
            with counting(builder, rank) as j:
                r, dr = rows.at(pixel, j), drows.at(pixel, j)
                line = builder.add(j, I64(WEIGHT_ROWS))
                v.add_to(dconstants.at(line), builder.fmul(draw, v.splat(r)))
                along = v.sum(builder.fmul(draw, v.load(constants.at(line))))
                builder.store(builder.fadd(v.scalar(dr), along), dr)
        return context.get_dummy_value()

    return types.void(visits, rows, rank, constants, dsizes, slopes, drows, dconstants), emit


@njit(nogil=True)
def block_constants(constants, rank, dt_weight, dt_bias, A, D, first):  # type: ignore[no-untyped-def]
    """What a block of channels needs of the parameters of one direction, lane by lane; 0 beyond the last channel."""
    constants[:] = 0
    for lane in range(min(constants.shape[1], A.shape[0] - first)):
        channel = first + lane
        for n in range(STATE):
            constants[n, lane] = A[channel, n] * np.float32(LOG2_E)
        constants[D_ROW, lane] = D[channel]
        if rank:
            constants[BIAS_ROW, lane] = dt_bias[channel]
            for j in range(rank):
                constants[WEIGHT_ROWS + j, lane] = dt_weight[channel, j]


@njit(nogil=True)
def segment_sizes(visits, dt, rows, rank, constants, sizes, slopes):  # type: ignore[no-untyped-def]
    """The dt of a segment: computed from r, or, with rank 0, gathered from the given ones; slopes may have no rows."""
    if rank:
        step_sizes(visits, rows, rank, constants, sizes, slopes)
    else:
        for t in range(len(visits)):
            for lane in range(sizes.shape[1]):
                sizes[t, lane] = dt[visits[t], lane]


@njit(nogil=True)
def carve(scratch, rows, columns):  # type: ignore[no-untyped-def]
    """The front of a scratch array as (rows, columns), and the rest."""
    return scratch[: rows * columns].reshape(rows, columns), scratch[rows * columns :]


def scratch_size(rank: int) -> int:
    """Float32 numbers of scratch that a thread needs for one call of `forward` or `backward`."""
    constants = WEIGHT_ROWS + rank
    rows_forward = SEGMENT + AT_ONCE * (STATE + constants)
    rows_backward = 2 * (SEGMENT + 1) * STATE + 3 * SEGMENT + STATE + constants
    return max(rows_forward, rows_backward) * LANES


def forward(  # type: ignore[no-untyped-def]
    first, last, slabs, visits, u, dt, rows, rank, dt_weight, dt_bias, A, D, kept, y, scratch
):
    """Units first .. last - 1 of the forward pass, of batch * slabs * blocks; a unit is a block of channels of a slab.

    visits: (groups, length) pixels.  u, dt: (batch, groups, length, channels), channels a multiple of LANES, or 8 for
    16 lanes, which are half registers then; dt is read when rank is 0.  rows: (batch, groups, length, rank + 32): r,
    B, C.  dt_weight: (groups, C, rank).  dt_bias, D: (groups, C).  A: (groups, C, 16).  kept: (batch, groups,
    segments, blocks, 16, lanes), for the states before each segment, or 0 segments of it.  y: (batch, slabs, length,
    channels); group k adds to slab k mod slabs.  scratch: scratch_size(rank) numbers.
    """
    groups, length = visits.shape
    lanes = min(LANES, u.shape[3])
    blocks = u.shape[3] // lanes
    sizes, rest = carve(scratch, SEGMENT, lanes)
    no_slopes = sizes[:0]
    h, rest = carve(rest, AT_ONCE * STATE, lanes)
    constants, rest = carve(rest, AT_ONCE * (WEIGHT_ROWS + rank), lanes)
    while first < last:
        block, slab, b = first % blocks, first // blocks % slabs, first // blocks // slabs
        # The blocks of a slab go along together: what they read of a pixel is in the first cache after one of them.
        several = min(AT_ONCE, blocks - block, last - first)
        lo = block * lanes
        y[b, slab, :, lo : lo + several * lanes] = 0
        for k in range(slab, groups, slabs):
            for each in range(several):
                own = constants[each * (WEIGHT_ROWS + rank) : (each + 1) * (WEIGHT_ROWS + rank)]
                block_constants(own, rank, dt_weight[k], dt_bias[k], A[k], D[k], lo + each * lanes)
            h[:] = 0
            for t in range(0, length, SEGMENT):
                segment = visits[k, t : t + SEGMENT]
                for each in range(several):
                    own = constants[each * (WEIGHT_ROWS + rank) : (each + 1) * (WEIGHT_ROWS + rank)]
                    state = h[each * STATE : (each + 1) * STATE]
                    left = lo + each * lanes
                    right = left + lanes
                    if kept.shape[2]:
                        kept[b, k, t // SEGMENT, block + each] = state
                    segment_sizes(segment, dt[b, k, :, left:right], rows[b, k], rank, own, sizes, no_slopes)
                    forward_steps(
                        state, segment, u[b, k, :, left:right], sizes, rows[b, k], rank, own, y[b, slab, :, left:right]
                    )
        first += several


def backward(  # type: ignore[no-untyped-def]
    first,
    last,
    slabs,
    visits,
    u,
    dt,
    rows,
    rank,
    dt_weight,
    dt_bias,
    A,
    D,
    kept,
    dy,
    du,
    ddt,
    drows,
    dconstants,
    scratch,
):
    """Units first .. last - 1 of the backward pass, of batch * slabs; a unit is a slab of an image, all channels.

    Arguments as `forward`, and dy: (batch, groups, length, channels).  du: (batch, slabs, length, channels).
    drows: as rows.  dconstants: (batch, groups, blocks, 18 + rank, LANES): A, D, dt_bias, dt_weight.  All three zero,
    added to.  ddt: as dt, written when rank is 0.
    """
    groups, length = visits.shape
    blocks = u.shape[3] // LANES
    adjoint, rest = carve(scratch, STATE, LANES)
    states, rest = carve(rest, SEGMENT + 1, STATE * LANES)
    decays, rest = carve(rest, SEGMENT, STATE * LANES)
    sizes, rest = carve(rest, SEGMENT, LANES)
    slopes, rest = carve(rest, SEGMENT, LANES)
    dsizes, rest = carve(rest, SEGMENT, LANES)
    constants, rest = carve(rest, WEIGHT_ROWS + rank, LANES)
    for unit in range(first, last):
        slab, b = unit % slabs, unit // slabs
        for k in range(slab, groups, slabs):
            for block in range(blocks):
                lo, hi = block * LANES, (block + 1) * LANES
                u_block, du_block, gradients = u[b, k, :, lo:hi], du[b, slab, :, lo:hi], dconstants[b, k, block]
                block_constants(constants, rank, dt_weight[k], dt_bias[k], A[k], D[k], lo)
                adjoint[:] = 0
                for t in range((length - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                    segment = visits[k, t : t + SEGMENT]
                    states[0] = kept[b, k, t // SEGMENT, block].ravel()
                    segment_sizes(segment, dt[b, k, :, lo:hi], rows[b, k], rank, constants, sizes, slopes)
                    recompute_steps(segment, u_block, sizes, rows[b, k], rank, constants, states, decays)
                    backward_steps(
                        adjoint, segment, dy[b, k, :, lo:hi], u_block, sizes, rows[b, k], rank, constants,
                        states, decays, du_block, dsizes, drows[b, k], gradients,
                    )  # fmt: skip
                    if rank:
                        step_sizes_backward(
                            segment, rows[b, k], rank, constants, dsizes, slopes, drows[b, k], gradients
                        )
                    else:
                        for step in range(len(segment)):
                            ddt[b, k, segment[step], lo:hi] = dsizes[step]


@njit(nogil=True)
def size_float64(row, rank, weight, bias, given):  # type: ignore[no-untyped-def]
    """dt of one pixel and channel, and its derivative: softplus(W r + bias), or with rank 0 the given one."""
    if rank == 0:
        return given, 1.0
    raw = bias
    for j in range(rank):
        raw += weight[j] * row[j]
    if raw > SOFTPLUS_LINEAR:
        return raw, 1.0
    z = math.exp(-abs(raw))
    return max(raw, 0.0) + math.log1p(z), (1.0 if raw > 0 else z) / (1.0 + z)


def forward_float64(  # type: ignore[no-untyped-def]
    first, last, slabs, visits, u, dt, rows, rank, dt_weight, dt_bias, A, D, kept, y, scratch
):
    """As `forward`, for float64: plain loops and the exact exp. Nothing is kept."""
    groups = len(visits)
    blocks = u.shape[3] // LANES
    h = np.empty(STATE)
    for unit in range(first, last):
        block, slab, b = unit % blocks, unit // blocks % slabs, unit // blocks // slabs
        for k in range(slab, groups, slabs):
            for c in range(block * LANES, min((block + 1) * LANES, A.shape[1])):
                h[:] = 0
                if k == slab:
                    y[b, slab, :, c] = 0
                for pixel in visits[k]:
                    row, x = rows[b, k, pixel], u[b, k, pixel, c]
                    size, _ = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    total = D[k, c] * x
                    for n in range(STATE):
                        h[n] = math.exp(size * A[k, c, n]) * h[n] + size * x * row[rank + n]
                        total += row[rank + STATE + n] * h[n]
                    y[b, slab, pixel, c] += total


def backward_float64(  # type: ignore[no-untyped-def]
    first,
    last,
    slabs,
    visits,
    u,
    dt,
    rows,
    rank,
    dt_weight,
    dt_bias,
    A,
    D,
    kept,
    dy,
    du,
    ddt,
    drows,
    dconstants,
    scratch,
):
    """As `backward`, for float64: plain loops, the states of one channel computed again from the first."""
    groups, length = visits.shape
    states, adjoint = np.empty((length + 1, STATE)), np.empty(STATE)
    for unit in range(first, last):
        slab, b = unit % slabs, unit // slabs
        for k in range(slab, groups, slabs):
            for c in range(A.shape[1]):
                gradients = dconstants[b, k, c // LANES, :, c % LANES]
                states[0] = 0
                for t in range(length):
                    pixel = visits[k, t]
                    row = rows[b, k, pixel]
                    size, _ = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    for n in range(STATE):
                        added = size * u[b, k, pixel, c] * row[rank + n]
                        states[t + 1, n] = math.exp(size * A[k, c, n]) * states[t, n] + added
                adjoint[:] = 0
                for t in range(length - 1, -1, -1):
                    pixel = visits[k, t]
                    row, drow = rows[b, k, pixel], drows[b, k, pixel]
                    g, x = dy[b, k, pixel, c], u[b, k, pixel, c]
                    size, slope = size_float64(row, rank, dt_weight[k, c], dt_bias[k, c], dt[b, k, pixel, c])
                    along_B = along_A = 0.0
                    for n in range(STATE):
                        total = row[rank + STATE + n] * g + adjoint[n]
                        adjoint[n] = math.exp(size * A[k, c, n]) * total
                        decayed = adjoint[n] * states[t, n]
                        along_B += total * row[rank + n]
                        along_A += decayed * A[k, c, n]
                        gradients[n] += decayed * size
                        drow[rank + n] += total * size * x
                        drow[rank + STATE + n] += g * states[t + 1, n]
                    dsize = x * along_B + along_A
                    du[b, slab, pixel, c] += D[k, c] * g + size * along_B
                    gradients[D_ROW] += g * x
                    if rank == 0:
                        ddt[b, k, pixel, c] = dsize
                    gradients[BIAS_ROW] += dsize * slope
                    for j in range(rank):
                        gradients[WEIGHT_ROWS + j] += dsize * slope * row[j]
                        drow[j] += dsize * slope * dt_weight[k, c, j]


_SHARED = "int64, int64, int64, int64[:,:], {4}, {4}, {4}, int64, {3}, {2}, {3}, {2}, {6}, "
_FORWARD, _BACKWARD = _SHARED + "{4}, {1}", _SHARED + "{4}, {4}, {4}, {4}, {5}, {1}"
_KERNELS: dict[tuple[str, str], tuple[Callable[..., None], str]] = {
    ("forward", "float32"): (forward, _FORWARD),
    ("forward", "float64"): (forward_float64, _FORWARD),
    ("backward", "float32"): (backward, _BACKWARD),
    ("backward", "float64"): (backward_float64, _BACKWARD),
}
for _function, _ in _KERNELS.values():
    under_the_name_of_this_version(_function, STATE)


@cache
def kernel(way: str, dtype: str) -> Callable[..., None]:
    """One of the four kernels, compiled when first asked for, or loaded from numba's cache.

    It has one signature, of arrays with any strides: whatever views it meets, nothing is compiled again.
    """
    function, arguments = _KERNELS[way, dtype]
    arrays = {axes: f"{dtype}[{','.join(':' * axes)}]" for axes in range(2, 7)} | {1: f"{dtype}[::1]"}
    signature = arguments.format(None, *(arrays[axes] for axes in range(1, 7)))
    return load(function, f"void({signature})")
