"""Vector code through Numba, for all of our kernels on a CPU: registers, arrays in memory, loops, elementary functions.

Of loops with several windows or states LLVM itself makes slow code. So a kernel's inner loop is written as operations
on vectors, with llvmlite's builder, and LLVM makes AVX-512, AVX2, SSE or NEON of them:

    @vector_code
    def _scaled_row(v, x, scale, result):  # (pixels, channels), (1, channels), (pixels, channels)
        with strips(v, x, scale, result) as (values, factor, out), pixels(v, x) as pixel:
            out.store(v.builder.fmul(values.load(pixel), factor.load(0)), pixel)

Compiled code calls that with arrays. `v` (Vectors) writes what results in one vector; an array is seen as `Rows`, and
as many of its channels as fill a register as a `Strip`.

What is computed with all this is not here: the scan stands in `numba_kernels`, the passes over the network's maps in
`network.inference_numba`. Numba's cache compiles a kernel again when its own file changes,
and would not see a change of this one, so they carry its digest in their names (`under_the_name_of_this_version`). The
cache keeps processors apart by itself.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and vector code runs compiled or not at all")

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)

FEATURES: list[str] = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
"""Of the processor that numba compiles for, its own settings respected; it keeps cached kernels apart for each set."""

AVX512_LANES = 16

LANES = AVX512_LANES if "+avx512f" in FEATURES else 8 if "+avx2" in FEATURES else 4
"""Float32 numbers of a register."""

HAS_PAIRS = LANES == AVX512_LANES and "+avx512bf16" in FEATURES
"""Whether products of pairs of bfloat16, and rounding to it, are instructions."""

CACHE_LINE = 16  # float32 numbers

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
DENSITY_AT_0 = 0.3989422804014327  # of the normal distribution


class _BFloat16(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOAT = _BFloat16()
BFLOAT_PAIRS = ir.VectorType(BFLOAT, 2 * AVX512_LANES)


class Vectors:
    """Writes operations on vectors of `lanes` float32 at the builder's place. Values are llvmlite's, hence Any."""

    def __init__(self, builder: Any, lanes: int):
        self.builder, self.lanes = builder, lanes
        self.type = ir.VectorType(F32, lanes)
        self.bits = ir.VectorType(I32, lanes)
        self.words = ir.VectorType(I16, lanes)

    def constant(self, value: float) -> Any:
        """The value in every lane, rounded to float32."""
        return ir.Constant(self.type, [float(np.float32(value))] * self.lanes)

    def number(self, value: float) -> Any:
        """A float32 that stands alone."""
        return ir.Constant(F32, float(np.float32(value)))

    def everywhere(self, number: Any) -> Any:
        """A float32 in every lane."""
        first = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), number, I32(0))
        return self.builder.shuffle_vector(first, first, self._every(0))

    def variable(self, value: Any = None) -> Any:
        """A vector that a loop changes, kept in a register; undefined at first unless a value is given."""
        if value is None:
            return cgutils.alloca_once(self.builder, self.type)
        return cgutils.alloca_once_value(self.builder, value)

    # Memory

    def load(self, address: Any) -> Any:
        """The lanes at an address, which need not be aligned."""
        return self.builder.load(self.builder.bitcast(address, self.type.as_pointer()), align=4)

    def store(self, vector: Any, address: Any) -> None:
        """Write the lanes to an address, which need not be aligned."""
        self.builder.store(vector, self.builder.bitcast(address, self.type.as_pointer()), align=4)

    def add_to(self, address: Any, vector: Any) -> None:
        """Add the lanes to those at an address."""
        self.store(self.builder.fadd(self.load(address), vector), address)

    def load_bfloat16(self, address: Any) -> Any:
        """The lanes at an address, of bfloat16, as float32."""
        b = self.builder
        words = b.load(b.bitcast(address, self.words.as_pointer()), align=2)
        return b.bitcast(b.shl(b.zext(words, self.bits), self._every(16)), self.type)

    def store_bfloat16(self, vector: Any, address: Any) -> None:
        """Write the lanes to an address as bfloat16, rounded to nearest, halves to even."""
        b = self.builder
        if HAS_PAIRS:
            rounded = b.fptrunc(vector, ir.VectorType(BFLOAT, self.lanes))
            b.store(rounded, b.bitcast(address, rounded.type.as_pointer()), align=2)
            return
        bits = b.bitcast(vector, self.bits)
        odd = b.and_(b.lshr(bits, self._every(16)), self._every(1))
        rounded = b.lshr(b.add(b.add(bits, self._every(0x7FFF)), odd), self._every(16))
        b.store(b.trunc(rounded, self.words), b.bitcast(address, self.words.as_pointer()), align=2)

    def scalar(self, address: Any) -> Any:
        """One float32 from memory."""
        return self.builder.load(self.builder.bitcast(address, F32.as_pointer()))

    def splat(self, address: Any) -> Any:
        """One float32 from memory, in every lane."""
        return self.everywhere(self.scalar(address))

    def prefetch(self, address: Any, numbers: int) -> None:
        """Bring so many float32 numbers from an address on towards the first cache, while other work goes on."""
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        to_read, to_every_cache, data = I32(0), I32(3), I32(1)
        for line in range(0, numbers, CACHE_LINE):
            place = self.builder.bitcast(element_of(self.builder, address, line), cgutils.voidptr_t)
            self.builder.call(function, [place, to_read, to_every_cache, data])

    # Arithmetic

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, in one rounding where the processor can."""
        return self._call(f"llvm.fmuladd.v{self.lanes}f32", a, b, c)

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

    def added(self, vectors: list[Any]) -> Any:
        """The sum of vectors, a power of two of them, in the order of a tree."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.fadd(first, second) for first, second in pairs]
        return vectors[0]

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

    # Functions

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
        every_lane, rounding_as_set = I16(-1), I32(4)
        scale = "llvm.x86.avx512.mask.scalef.ps.512"  # by 2**floor(exponent)
        return self._call(scale, mantissa, exponent, mantissa, every_lane, rounding_as_set)

    def _exp2_by_exponent_bits(self, x: Any) -> Any:
        b = self.builder
        lowest = self.constant(-127)  # the exponent field is 0 there, and the factor with it
        x = b.select(b.fcmp_ordered(">", lowest, x), lowest, x)
        rounded = b.fadd(x, self.constant(ROUNDING))
        fraction = b.fsub(x, b.fsub(rounded, self.constant(ROUNDING)))
        mantissa = self.polynomial(fraction, (1.0, *EXP2))
        exponent = b.shl(b.bitcast(rounded, self.bits), self._every(23))
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

    def silu(self, x: Any) -> Any:
        """x times its sigmoid."""
        return self.builder.fmul(x, self.sigmoid(x))

    def silu_and_slope(self, x: Any) -> tuple[Any, Any]:
        """SiLU, and its derivative."""
        b, sigmoid = self.builder, self.sigmoid(x)
        value = b.fmul(x, sigmoid)
        return value, self.fma(value, b.fsub(self.constant(1), sigmoid), sigmoid)

    def gelu(self, x: Any) -> Any:
        """x times the normal distribution below x."""
        below, _ = self.normal(x)
        return self.builder.fmul(x, below)

    def gelu_and_slope(self, x: Any) -> tuple[Any, Any]:
        """GELU, and its derivative."""
        b, (below, bell) = self.builder, self.normal(x)
        return b.fmul(x, below), self.fma(b.fmul(x, self.constant(DENSITY_AT_0)), bell, below)

    def quarter_way(self, near: Any, far: Any) -> Any:
        """3/4 of one and 1/4 of the other, as a map enlarged to twice its size has it."""
        return self.fma(near, self.constant(0.75), self.builder.fmul(far, self.constant(0.25)))

    def inverse_root(self, number: Any) -> Any:
        """1 / sqrt(x) of a float32 that stands alone."""
        b = self.builder
        root = cgutils.get_or_insert_function(b.module, ir.FunctionType(F32, [F32]), "llvm.sqrt.f32")
        return b.fdiv(self.number(1), b.call(root, [number]))

    # For those above

    def _every(self, number: int) -> Any:
        """The bits of an integer in every lane."""
        return ir.Constant(self.bits, [number] * self.lanes)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of LLVM that returns a vector."""
        kind = ir.FunctionType(self.type, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)


class Rows:
    """An array in memory as addresses: `count` rows, each of `width` numbers side by side, or of one."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        """kind, value: numba's type of the array, and what it passes for one."""
        array = make_array(kind)(context, builder, value)
        self.builder = builder
        self.bfloat16 = kind.dtype == types.uint16  # seen as such by numba, which does not know it
        self.data = builder.bitcast(array.data, cgutils.voidptr_t)
        self.stride = cgutils.unpack_tuple(builder, array.strides)[0]
        self.count, *rest = cgutils.unpack_tuple(builder, array.shape)
        self.width = rest[0] if rest else None

    def at(self, row: Any, element: Any = None) -> Any:
        """The address of a row, or of a float32 in it."""
        b = self.builder
        row = I64(row) if isinstance(row, int) else row
        address = b.gep(self.data, [b.mul(row, self.stride)])
        return address if element is None else element_of(b, address, element)


def element_of(builder: Any, address: Any, element: Any) -> Any:
    """The address of the float32 `element` places further on."""
    element = I64(element) if isinstance(element, int) else element
    return builder.gep(builder.bitcast(address, F32.as_pointer()), [element])


class Strip:
    """As many channels as a register has lanes, from `first` on, of every row of an array of float32 or bfloat16."""

    def __init__(self, v: Vectors, rows: Rows, first: Any) -> None:
        self.v, self.rows, self.first = v, rows, first

    def load(self, row: Any) -> Any:
        """The channels of a row, as float32."""
        address = self._at(row)
        return self.v.load_bfloat16(address) if self.rows.bfloat16 else self.v.load(address)

    def store(self, vector: Any, row: Any) -> None:
        """Write the channels of a row, rounded where it is of bfloat16."""
        address = self._at(row)
        if self.rows.bfloat16:
            self.v.store_bfloat16(vector, address)
        else:
            self.v.store(vector, address)

    def add(self, vector: Any, row: Any) -> None:
        """Add to the channels of a row."""
        self.store(self.v.builder.fadd(self.load(row), vector), row)

    def _at(self, row: Any) -> Any:
        # One sum of bytes, and not the place in a row's address: LLVM's code differs, and this is what was timed.
        b, rows = self.v.builder, self.rows
        row = I64(row) if isinstance(row, int) else row
        return b.gep(rows.data, [b.add(b.mul(row, rows.stride), b.mul(self.first, I64(2 if rows.bfloat16 else 4)))])


class Total:
    """A sum that a loop adds to, kept in a register."""

    def __init__(self, v: Vectors) -> None:
        self.v, self.place = v, v.variable(v.constant(0))

    def add(self, vector: Any) -> None:
        """One more."""
        b = self.v.builder
        b.store(b.fadd(b.load(self.place), vector), self.place)

    def add_product(self, first: Any, second: Any) -> None:
        """One more: the product of two."""
        b = self.v.builder
        b.store(self.v.fma(first, second, b.load(self.place)), self.place)

    def value(self) -> Any:
        """The sum so far."""
        return self.v.builder.load(self.place)


# Loops


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


def in_pieces(builder: Any, count: Any, size: int) -> Iterator[tuple[Any, int]]:
    """Two loops over 0 .. count - 1: pieces of `size`, then what is left, one by one; begin and size of a piece."""
    whole = builder.udiv(count, I64(size))
    with counting(builder, whole) as piece:
        yield builder.mul(piece, I64(size)), size
    done = builder.mul(whole, I64(size))
    with counting(builder, builder.sub(count, done)) as single:
        yield builder.add(done, single), 1


def pixels(v: Vectors, rows: Rows) -> Any:
    """A loop over the pixels of a row of them, (pixels, channels)."""
    return counting(v.builder, rows.count)


@contextmanager
def registers(v: Vectors, channels: Any) -> Iterator[Any]:
    """A loop over the first channels of each register: 0, lanes, 2 lanes, ..."""
    with counting(v.builder, v.builder.udiv(channels, I64(v.lanes))) as register:
        yield v.builder.mul(register, I64(v.lanes))


@contextmanager
def strips(v: Vectors, *rows: Rows) -> Iterator[list[Strip]]:
    """A loop over the channels of the first array, a register at a time; the arrays at these channels."""
    with registers(v, rows[0].width) as first:
        yield [Strip(v, each, first) for each in rows]


# What kernels call


def vector_code(write: Callable[..., None]) -> Any:
    """What `write(v, *arguments)` writes, as a function that kernels call; arrays are Rows in it, numbers are values.

    How many channels there are is said by an argument called so, or by the width of the first one. It is written twice
    where registers are wide: for whole ones, and for half ones where eight channels are all there is.
    """
    names = list(inspect.signature(write).parameters)[1:]

    def choices(builder: Any, arguments: list[Any]) -> Iterator[Vectors]:
        channels = arguments[names.index("channels")] if "channels" in names else arguments[0].width
        return _whole_or_half(builder, channels)

    return _intrinsic(write, choices)


def whole_vector_code(write: Callable[..., None]) -> Any:
    """As `vector_code`, for whole registers alone."""
    return _intrinsic(write, lambda builder, _: [Vectors(builder, LANES)])


def _whole_or_half(builder: Any, channels: Any) -> Iterator[Vectors]:
    """Both after one another, so that code is written for either; compiled, the one runs that the channels fill."""
    if LANES < AVX512_LANES:
        yield Vectors(builder, LANES)
        return
    whole = builder.icmp_signed("==", builder.urem(channels, I64(LANES)), I64(0))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            yield Vectors(builder, LANES)
        with otherwise:
            yield Vectors(builder, LANES // 2)


def _intrinsic(write: Callable[..., None], choices: Callable[[Any, list[Any]], Iterable[Vectors]]) -> Any:
    """choices(builder, arguments): for what registers the code is written."""

    @wraps(write)  # for its signature too: numba takes arguments by name, and would make one tuple of *kinds
    def code(typing: Any, *kinds: Any) -> tuple[Any, Any]:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arguments = [
                Rows(context, builder, kind, value) if isinstance(kind, types.Array) else value
                for kind, value in zip(signature.args, args, strict=True)
            ]
            for v in choices(builder, arguments):
                write(v, *arguments)
            return context.get_dummy_value()

        return types.void(*kinds), emit

    return intrinsic(code)


@njit(nogil=True)
def carve(scratch, rows, columns):  # type: ignore[no-untyped-def]
    """The front of a scratch array as (rows, columns), and the rest."""
    return scratch[: rows * columns].reshape(rows, columns), scratch[rows * columns :]


VERSION = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=4).hexdigest()


def under_the_name_of_this_version(function: Callable[..., Any], *constants: object) -> Callable[..., Any]:
    """The function, named so that numba's cache keeps what is compiled of it apart for every version of this file.

    constants: what the compiled code holds of still other files.
    """
    of_others = hashlib.blake2b(repr(constants).encode(), digest_size=4).hexdigest()
    function.__qualname__ += f"_with_vectors_{VERSION}_{of_others}"
    return function
