"""The fused network's stages as compiled passes over rows of pixels; imported only where Numba is, by inference_cpu.py.

A pass walks down an image row by row and keeps what it needs of the rows above in rings of three or five, so that all
between a stage's input and its results stays in the processor's second cache: a map as a whole is read once and
written once. Rows are tokens (pixels, channels), channels side by side. A pass takes the rows first .. last - 1 of a
batch, so that threads can share it; what stands at a pixel does not depend on how the rows are shared.

From the innermost outwards: vector code (`scan.vector_code`) for matrix products, stencils, normalisations and what
else goes over channels; its kernels, each compiled once; and the passes, which call them row by row.
"""

from collections.abc import Callable
from itertools import product as pairs
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from repmamba.network.config import RMB_WIDTHS, SPLIT, WIDTH
from repmamba.network.inference_amx import (
    AMX_VERSION,
    BEHIND,
    HAS_AMX,
    MOST_INPUTS,
    convolution_row_of_amx,
    product_code_of_amx,
)
from repmamba.network.repconv import EPS
from repmamba.scan.compiled import load
from repmamba.scan.vector_code import (
    HAS_PAIRS,
    I32,
    I64,
    LANES,
    Rows,
    Vectors,
    carve,
    counting,
    element_of,
    in_pieces,
    registers,
    under_the_name_of_this_version,
    vector_code,
    whole_vector_code,
)

WIDTHS = tuple(sorted({times * width for width in (*RMB_WIDTHS, *SPLIT, WIDTH) for times in (1, 2)}))
"""Channels of what is normalised: a network's widths, and twice that."""

REGISTERS = 24 if LANES == 16 else 12
"""Sums that a matrix product keeps in registers; AVX-512 has 32 of them, older sets 16."""

MOST_ROWS = 8
"""Rows that a matrix product takes at once: the address of each wants a register too, of the other 16."""

TILES = 64
"""Pieces of 2x2 pixels that a convolution takes at once: their 16 elements of 64 channels stay in the second cache."""

AT_ONCE = 4
"""Pixels that a stencil computes at once, from what is loaded once."""


# Vector code


def _as_it_is(v: Vectors, x: Any) -> Any:
    return x


def _product_code(
    start_from: str, activation: Callable[[Vectors, Any], Any], *, gate: bool = False, pairs: bool = False
) -> Any:
    """A kernel: result = activation(start + x weight), of `count` rows; as a gate, what stands there times that.

    x: rows of as many numbers as weight has rows, which may run over into the rows that follow: that is how a
    convolution is a product. weight: (inputs, outputs), outputs a multiple of LANES; with pairs, (inputs / 2, outputs),
    each number the bits of two of bfloat16, inputs a multiple of 32, and x is rounded to bfloat16 as well.
    start_from: "bias", one row for all, "result", what stands there, or "zero", and bias is not read.
    """

    @whole_vector_code
    def product(v: Vectors, count: Any, x: Rows, weight: Rows, outputs: Any, bias: Rows, result: Rows) -> None:
        b = v.builder
        vectors = b.udiv(outputs, I64(LANES))
        # Rows of x as pairs of bfloat16, a register each.
        rounded = [v.variable() for _ in range(MOST_ROWS)] if pairs else []

        def add_products(sums: list[list[Any]], inputs: list[Any], first: Any) -> None:
            """Add to the sums [row][register] the products of the rows of inputs with weight, from `first` on."""
            multiply = v.fma_of_pairs if pairs else v.fma
            columns = len(sums[0])

            def along(sources: list[Any], line: Any, k: Any) -> None:
                weights = [v.load(element_of(b, line, c * LANES)) for c in range(columns)]
                for source, row in zip(sources, sums, strict=True):
                    factor = v.splat(element_of(b, source, k))
                    for weighed, place in zip(weights, row, strict=True):
                        b.store(multiply(factor, weighed, b.load(place)), place)

            if not pairs:
                with counting(b, weight.count) as k:
                    along(inputs, weight.at(k, first), k)
                return
            with counting(b, b.udiv(weight.count, I64(LANES))) as piece:
                begin = b.mul(piece, I64(2 * LANES))
                for source, place in zip(inputs, rounded, strict=False):
                    low = element_of(b, source, begin)
                    v.store(v.to_pairs(v.load(low), v.load(element_of(b, low, LANES))), place)
                for k in range(LANES):
                    line = weight.at(b.add(b.mul(piece, I64(LANES)), I64(k)), first)
                    along(rounded[: len(inputs)], line, k)

        def rows_at_once(first_row: Any, first: Any, rows: int, columns: int) -> None:
            """`rows` times `columns` registers of the result."""
            inputs = [x.at(b.add(first_row, I64(r))) for r in range(rows)]
            targets = [
                [element_of(b, result.at(b.add(first_row, I64(r)), first), c * LANES) for c in range(columns)]
                for r in range(rows)
            ]
            starts = [
                v.load(element_of(b, bias.at(0, first), c * LANES)) if start_from == "bias" else v.constant(0)
                for c in range(columns)
            ]
            sums = [
                [v.variable(v.load(targets[r][c]) if start_from == "result" else starts[c]) for c in range(columns)]
                for r in range(rows)
            ]
            add_products(sums, inputs, first)
            for r in range(rows):
                for c in range(columns):
                    value = activation(v, b.load(sums[r][c]))
                    v.store(b.fmul(v.load(targets[r][c]), value) if gate else value, targets[r][c])

        def columns_at_once(first: Any, columns: int) -> None:
            for row, rows in in_pieces(b, count, min(REGISTERS // columns, MOST_ROWS)):
                rows_at_once(row, first, rows, columns)

        widest = 4 if LANES == 16 else 2
        with counting(b, b.udiv(vectors, I64(widest))) as block:
            columns_at_once(b.mul(block, I64(widest * LANES)), widest)
        left = b.urem(vectors, I64(widest))
        first = b.mul(b.sub(vectors, left), I64(LANES))
        for columns in range(1, widest):
            with b.if_then(b.icmp_signed("==", left, I64(columns))):
                columns_at_once(first, columns)

    return product


def _product_of_pairs_code(start_from: str, activation: Callable[[Vectors, Any], Any], *, gate: bool = False) -> Any:
    """The same of pairs, by the widest instruction that there is; where there is none, it is not called."""
    if HAS_AMX:
        return product_code_of_amx(start_from, activation, gate=gate)
    return _product_code(start_from, activation, gate=gate, pairs=HAS_PAIRS)


_product = _product_code("bias", _as_it_is)
_product_alone = _product_code("zero", _as_it_is)
_product_added = _product_code("result", _as_it_is)
_product_gate = _product_code("bias", Vectors.silu, gate=True)
_product_gelu = _product_code("bias", Vectors.gelu)
_product_of_pairs = _product_of_pairs_code("bias", _as_it_is)
_product_of_pairs_alone = _product_of_pairs_code("zero", _as_it_is)
_product_of_pairs_gate = _product_of_pairs_code("bias", Vectors.silu, gate=True)
_product_of_pairs_gelu = _product_of_pairs_code("bias", Vectors.gelu)


def _stencil(
    v: Vectors,
    count: Any,
    channels: Any,
    x: list[Rows],
    weight: Rows,
    bias: Rows,
    result: Rows,
    activation: Callable[[Vectors, Any], Any],
    *,
    add_middle: bool = False,
) -> None:
    """One row of a depthwise convolution, result = activation(bias + sum of taps) [+ the middle of x].

    x: as many rows of pixels as the window is high, (pixels + size - 1, channels) each.  weight: (size * size,
    channels).  result: (pixels, channels).
    """
    b, size = v.builder, len(x)
    with registers(v, channels) as first:
        taps = [v.load(weight.at(tap, first)) for tap in range(size * size)]
        start = v.load(bias.at(0, first))

        for pixel, pixels in in_pieces(b, count, AT_ONCE):
            sums, middles = [start] * pixels, [start] * pixels
            # What is loaded serves all of the pixels whose windows hold it.
            for row, column in pairs(range(size), range(pixels + size - 1)):
                value = v.load(x[row].at(b.add(pixel, I64(column)), first))
                for place in range(max(0, column - size + 1), min(pixels, column + 1)):
                    sums[place] = v.fma(value, taps[row * size + column - place], sums[place])
                if row == size // 2 and 0 <= column - row < pixels:
                    middles[column - row] = value
            for place, (total, middle) in enumerate(zip(sums, middles, strict=True)):
                value = activation(v, total)
                value = b.fadd(value, middle) if add_middle else value
                v.store(value, result.at(b.add(pixel, I64(place)), first))


@vector_code
def _stencil3(
    v: Vectors, count: Any, channels: Any, x0: Rows, x1: Rows, x2: Rows, weight: Rows, bias: Rows, result: Rows
) -> None:
    _stencil(v, count, channels, [x0, x1, x2], weight, bias, result, _as_it_is)


@vector_code
def _stencil3_silu(
    v: Vectors, count: Any, channels: Any, x0: Rows, x1: Rows, x2: Rows, weight: Rows, bias: Rows, result: Rows
) -> None:
    _stencil(v, count, channels, [x0, x1, x2], weight, bias, result, Vectors.silu)


@vector_code
def _stencil5_gelu_added(
    v: Vectors,
    count: Any,
    channels: Any,
    x0: Rows,
    x1: Rows,
    x2: Rows,
    x3: Rows,
    x4: Rows,
    weight: Rows,
    bias: Rows,
    result: Rows,
) -> None:
    _stencil(v, count, channels, [x0, x1, x2, x3, x4], weight, bias, result, Vectors.gelu, add_middle=True)


@whole_vector_code
def _normalised(v: Vectors, count: Any, width: Any, x: Rows, scale: Rows, shift: Rows, result: Rows) -> None:
    """Layer normalisation of `count` rows: (x - mean) / sqrt(variance + eps) * scale + shift."""
    for size in WIDTHS:
        with v.builder.if_then(v.builder.icmp_signed("==", width, I64(size))):
            _normalised_at(size, Vectors(v.builder, min(v.lanes, size)), count, x, scale, shift, result)


def _normalised_at(size: int, v: Vectors, count: Any, x: Rows, scale: Rows, shift: Rows, result: Rows) -> None:
    """Of so many channels, all of which are held in registers."""
    b = v.builder
    places = [I64(place) for place in range(0, size, v.lanes)]
    scales, shifts = ([v.load(row.at(0, place)) for place in places] for row in (scale, shift))
    with counting(b, count) as pixel:
        values = [v.load(x.at(pixel, place)) for place in places]
        mean = b.fmul(v.sum(v.added(values)), v.number(1 / size))
        values = [b.fsub(value, v.everywhere(mean)) for value in values]
        squares = [b.fmul(value, value) for value in values]
        variance = b.fmul(v.sum(v.added(squares)), v.number(1 / size))
        inverse = v.everywhere(v.inverse_root(b.fadd(variance, v.number(EPS))))
        for place, value, factor, added in zip(places, values, scales, shifts, strict=True):
            v.store(v.fma(b.fmul(value, inverse), factor, added), result.at(pixel, place))


@vector_code
def weighted_sum(v: Vectors, count: Any, channels: Any, x: Rows, gain: Rows, skip: Rows, result: Rows) -> None:
    """result = x + gain skip, row by row."""
    with registers(v, channels) as first:
        gains = v.load(gain.at(0, first))
        with counting(v.builder, count) as pixel:
            total = v.fma(gains, v.load(skip.at(pixel, first)), v.load(x.at(pixel, first)))
            v.store(total, result.at(pixel, first))


@vector_code
def copied(v: Vectors, count: Any, channels: Any, x: Rows, result: Rows) -> None:
    """result = x, row by row."""
    with registers(v, channels) as first, counting(v.builder, count) as pixel:
        v.store(v.load(x.at(pixel, first)), result.at(pixel, first))


@vector_code
def _paired(v: Vectors, count: Any, channels: Any, x: Rows, result: Rows) -> None:
    """result = x rounded to bfloat16, two in each number, row by row."""
    with registers(v, channels) as first, counting(v.builder, count) as pixel:
        v.store_bfloat16(v.load(x.at(pixel, first)), _in_pairs(v, result, pixel, first))


@vector_code
def _unpaired(v: Vectors, count: Any, channels: Any, x: Rows, result: Rows) -> None:
    """result = x, whose numbers are two of bfloat16 each, row by row."""
    with registers(v, channels) as first, counting(v.builder, count) as pixel:
        v.store(v.load_bfloat16(_in_pairs(v, x, pixel, first)), result.at(pixel, first))


def _in_pairs(v: Vectors, rows: Rows, row: Any, channel: Any) -> Any:
    """Where a channel stands in a row of pairs."""
    return rows.at(row, v.builder.udiv(channel, I64(2)))


@vector_code
def _pooled(v: Vectors, half: Any, channels: Any, above: Rows, low: Rows, means: Rows) -> None:
    """The means of 2x2 pixels of the rows above, low into `means`, and each pixel less its mean where it stood."""
    b = v.builder
    with registers(v, channels) as first, counting(b, half) as j:
        left = b.mul(j, I64(2))
        right = b.add(left, I64(1))
        places = [row.at(column, first) for row in (above, low) for column in (left, right)]
        values = [v.load(place) for place in places]
        mean = b.fmul(v.added(values), v.constant(0.25))
        v.store(mean, means.at(j, first))
        for place, value in zip(places, values, strict=True):
            v.store(b.fsub(value, mean), place)


@vector_code
def _enlarged(
    v: Vectors, half: Any, channels: Any, near0: Rows, near1: Rows, far0: Rows, far1: Rows, result: Rows
) -> None:
    """result += the row between two rows of half the size, bilinear: 3/4 of the near one, 1/4 of the far one.

    Either row is the sum of two, near0 + near1 and far0 + far1.
    """
    b = v.builder
    last = b.sub(half, I64(1))

    def between(pixel: Any, first: Any) -> Any:
        addresses = [row.at(pixel, first) for row in (near0, near1, far0, far1)]
        near, far = (b.fadd(v.load(one), v.load(other)) for one, other in (addresses[:2], addresses[2:]))
        return v.quarter_way(near, far)

    with registers(v, channels) as first:
        start = between(0, first)
        before, middle = v.variable(start), v.variable(start)
        with counting(b, half) as j:
            beyond = b.icmp_signed("<", j, last)
            after = between(b.select(beyond, b.add(j, I64(1)), last), first)
            main = b.fmul(b.load(middle), v.constant(0.75))
            for side, other in enumerate((b.load(before), after)):
                place = result.at(b.add(b.mul(j, I64(2)), I64(side)), first)
                v.add_to(place, v.fma(other, v.constant(0.25), main))
            b.store(b.load(middle), before)
            b.store(after, middle)


# A 3x3 convolution of 2x2 pixels after Winograd (F(2x2, 3x3) of Lavin and Gray 2016): A^T [(G g G^T) * (B^T d B)] A,
# * element by element, and as a sum over channels a matrix product for each of the 16 elements, in place of 36.


def _four_seen(builder: Any, d: list[Any]) -> list[Any]:
    """B^T d for four numbers."""
    return [builder.fsub(d[0], d[2]), builder.fadd(d[1], d[2]), builder.fsub(d[2], d[1]), builder.fsub(d[1], d[3])]


def _two_made(builder: Any, m: list[Any]) -> list[Any]:
    """A^T m for four numbers."""
    both = builder.fadd(m[1], m[2])
    return [builder.fadd(m[0], both), builder.fsub(builder.fsub(m[1], m[2]), m[3])]


@whole_vector_code
def _tiles_seen(v: Vectors, tiles: Any, channels: Any, x0: Rows, x1: Rows, x2: Rows, x3: Rows, result: Rows) -> None:
    """B^T d B of the 4x4 pixels from every second one of four rows: element e of tile t in row e TILES + t."""
    b = v.builder
    with counting(b, tiles) as tile, registers(v, channels) as first:
        left = b.mul(tile, I64(2))
        columns = []
        for column in range(4):
            place = b.add(left, I64(column))
            columns.append(_four_seen(b, [v.load(row.at(place, first)) for row in (x0, x1, x2, x3)]))
        for row in range(4):
            for column, value in enumerate(_four_seen(b, [values[row] for values in columns])):
                v.store(value, result.at(b.add(tile, I64((4 * row + column) * TILES)), first))


@whole_vector_code
def _tiles_made(
    v: Vectors,
    tiles: Any,
    channels: Any,
    x: Rows,
    bias: Rows,
    skip0: Rows,
    skip1: Rows,
    result0: Rows,
    result1: Rows,
    slope: Any,
) -> None:
    """A^T x A + bias + skip of every tile, x as `_tiles_seen` leaves it, as two rows of pixels; slope: below zero."""
    b = v.builder
    below = v.everywhere(slope)
    with counting(b, tiles) as tile, registers(v, channels) as first:
        left, start = b.mul(tile, I64(2)), v.load(bias.at(0, first))
        rows = []
        for row in range(4):
            elements = [v.load(x.at(b.add(tile, I64((4 * row + column) * TILES)), first)) for column in range(4)]
            rows.append(_two_made(b, elements))
        for side in range(2):
            values = _two_made(b, [row[side] for row in rows])
            pixel = b.add(left, I64(side))
            for value, skip, result in zip(values, (skip0, skip1), (result0, result1), strict=True):
                total = b.fadd(b.fadd(value, start), v.load(skip.at(pixel, first)))
                positive = b.fcmp_ordered(">", total, v.constant(0))
                v.store(b.select(positive, total, b.fmul(total, below)), result.at(pixel, first))


# Counters that threads share


def _counter(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The address of one, of arguments (counters, place)."""
    counters = Rows(context, builder, signature.args[0], args[0])
    return builder.bitcast(counters.at(args[1]), I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def _claimed(typing: Any, counters: Any, place: Any) -> tuple[Any, Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _counter(context, builder, signature, args), I64(1), "seq_cst")

    return types.int64(counters, place), emit


@intrinsic  # type: ignore[untyped-decorator]
def _seen(typing: Any, counters: Any, place: Any) -> tuple[Any, Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_counter(context, builder, signature, args), "acquire", 8)

    return types.int64(counters, place), emit


@intrinsic  # type: ignore[untyped-decorator]
def _bits(typing: Any, address: Any, place: Any) -> tuple[Any, Any]:
    """Of the float32 that lies so many places behind an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, place = args
        number = builder.gep(builder.inttoptr(address, I32.as_pointer()), [place])
        return builder.zext(builder.load(number), I64)

    return types.uint64(types.int64, types.int64), emit


# Passes

_COUNTERS = types.Array(types.int64, 1, "C")
_ROWS = types.Array(types.float32, 2, "A")
_NUMBER = types.int64


def _once(*arguments: Any) -> Any:
    """Compiled once, with the arguments given; without, such vector code would be made anew wherever it is used."""
    return _compiled_for(types.void(*arguments))


def _compiled_for(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    def compiled(function: Callable[..., Any]) -> Any:
        named = under_the_name_of_this_version(function, EPS, WIDTHS, AMX_VERSION)
        return load(named, signature, **options)

    return compiled


@_compiled_for(types.int64(_COUNTERS, _NUMBER))
def claimed(counters, place):  # type: ignore[no-untyped-def]
    """A counter's value, which is one more afterwards; each thread gets another one."""
    return _claimed(counters, place)


@_compiled_for(types.boolean(_COUNTERS, _NUMBER, _NUMBER, _NUMBER))
def reached(counters, place, wanted, looks):  # type: ignore[no-untyped-def]
    """Whether a counter gets to the wanted value while it is looked at so many times."""
    while looks and _seen(counters, place) < wanted:
        looks -= 1
    return looks > 0


@_compiled_for(types.uint64(types.Array(types.int64, 2, "C")))
def digest(places):  # type: ignore[no-untyped-def]
    """A number that changes when a float32 in memory does. places: (n, 2), an address and how many are there."""
    total, before = np.uint64(0), 0
    for place in range(places.shape[0]):
        for number in range(places[place, 1]):
            total += _bits(places[place, 0], number) * np.uint64(2 * (before + number) + 1)
        before += places[place, 1]
    return total


def fill_pairs(inputs: int) -> bool:
    """Whether so many inputs of a product fill registers in pairs, and find room there."""
    return inputs % (2 * LANES) == 0 and inputs <= MOST_INPUTS


@njit
def of_pairs(x, weight):  # type: ignore[no-untyped-def]
    """Whether the numbers of a weight are two of bfloat16 each, and half as many as those of x."""
    return 2 * weight.shape[0] == x.shape[1]


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result = bias + x weight, `count` rows; see `_product_code`."""
    if of_pairs(x, weight):
        _product_of_pairs(count, x, weight, outputs, bias, result)
    else:
        _product(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS)
def product_alone(count, x, weight, outputs, result):  # type: ignore[no-untyped-def]
    """result = x weight; see `_product_code`."""
    if of_pairs(x, weight):
        _product_of_pairs_alone(count, x, weight, outputs, result, result)
    else:
        _product_alone(count, x, weight, outputs, result, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_added(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result += x weight; see `_product_code`."""
    _product_added(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_gate(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result *= SiLU(bias + x weight); see `_product_code`."""
    if of_pairs(x, weight):
        _product_of_pairs_gate(count, x, weight, outputs, bias, result)
    else:
        _product_gate(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_gelu(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result = GELU(bias + x weight); see `_product_code`."""
    if of_pairs(x, weight):
        _product_of_pairs_gelu(count, x, weight, outputs, bias, result)
    else:
        _product_gelu(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 6)
def stencil3(count, channels, x0, x1, x2, weight, bias, result):  # type: ignore[no-untyped-def]
    """A row of a depthwise 3x3 convolution; see `_stencil`."""
    _stencil3(count, channels, x0, x1, x2, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 6)
def stencil3_silu(count, channels, x0, x1, x2, weight, bias, result):  # type: ignore[no-untyped-def]
    """A row of a depthwise 3x3 convolution, then SiLU."""
    _stencil3_silu(count, channels, x0, x1, x2, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 8)
def stencil5_gelu_added(count, channels, x0, x1, x2, x3, x4, weight, bias, result):  # type: ignore[no-untyped-def]
    """x + GELU(depthwise 5x5 convolution of x), a row of it."""
    _stencil5_gelu_added(count, channels, x0, x1, x2, x3, x4, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 2)
def paired(count, channels, x, result):  # type: ignore[no-untyped-def]
    """Rows rounded to bfloat16, two in each number; see `_paired`."""
    _paired(count, channels, x, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 2)
def unpaired(count, channels, x, result):  # type: ignore[no-untyped-def]
    """Rows of pairs as float32; see `_unpaired`."""
    _unpaired(count, channels, x, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 3)
def pooled(half, channels, above, low, means):  # type: ignore[no-untyped-def]
    """The means of 2x2 pixels of two rows, and each pixel less its mean; see `_pooled`."""
    _pooled(half, channels, above, low, means)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 5)
def enlarged(half, channels, near0, near1, far0, far1, result):  # type: ignore[no-untyped-def]
    """A row of an enlarged map, added; see `_enlarged`."""
    _enlarged(half, channels, near0, near1, far0, far1, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 5)
def tiles_seen(tiles, channels, x0, x1, x2, x3, result):  # type: ignore[no-untyped-def]
    """Winograd's transform of 4x4 pixels; see `_tiles_seen`."""
    _tiles_seen(tiles, channels, x0, x1, x2, x3, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 6, types.float32)
def tiles_made(tiles, channels, x, bias, skip0, skip1, result0, result1, slope):  # type: ignore[no-untyped-def]
    """Winograd's transform to 2x2 pixels; see `_tiles_made`."""
    _tiles_made(tiles, channels, x, bias, skip0, skip1, result0, result1, slope)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 4)
def normalised(count, width, x, scale, shift, result):  # type: ignore[no-untyped-def]
    """Layer normalisation of `count` rows; see `_normalised`."""
    _normalised(count, width, x, scale, shift, result)


if HAS_AMX:

    @_once(_NUMBER, *[_ROWS] * 4, _NUMBER, *[_ROWS] * 2, types.float32, _ROWS)
    def convolved(count, x0, x1, x2, weight, outputs, bias, skip, slope, result):  # type: ignore[no-untyped-def]
        """A row of a 3x3 convolution of pairs; see `convolution_row_of_amx`."""
        convolution_row_of_amx(count, x0, x1, x2, weight, outputs, bias, skip, slope, result)


@njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def shuffled_rows(rows, width, result):  # type: ignore[no-untyped-def]
    """Two rows of pixels (2 width, channels), each pixel's channels as scale x scale pixels of (bands, ., .)."""
    scale = result.shape[2] // width
    for row in range(2):
        for band in range(result.shape[0]):
            for i in range(scale):
                for j in range(width):
                    first = (band * scale + i) * scale
                    for k in range(scale):
                        result[band, row * scale + i, j * scale + k] = rows[row * width + j, first + k]


def front(  # type: ignore[no-untyped-def]
    first, last, height, width, v, scale, shift, in_x, bias_x, conv, conv_bias, high_conv, high_bias, x_proj,
    halves, pooled_map, projected, scratch,
):  # fmt: skip
    """The first half of an RMB, to what the scan reads: rows 2 first .. 2 last - 1 of a batch of maps.

    v: (pixels, C), rows of any stride; its norm has the affine scale, shift (1, C).  in_x: (C, 2C).  conv: (9, 2C).
    high_conv: (9, C).  x_proj: (C, directions (R + 32)), columns added up to whole registers. Biases: (1, outputs).
    halves: (pixels, 2C), the low half less its pooled means, and the high half after its second convolution; or
    (pixels, C), the same in pairs of bfloat16.
    pooled_map: (pixels / 4, C).  projected: (pixels / 4, columns of x_proj).  scratch: front_scratch numbers.
    """
    C = v.shape[1]
    n, rest = carve(scratch, width, C)
    ring, rest = carve(rest, 3 * (width + 2), 2 * C)
    inner, rest = carve(rest, 3 * (width + 2), C)
    exact = halves.shape[1] == 2 * C
    rows, rest = carve(rest, 0 if exact else 3 * width, C)  # of the low half two, of the high one
    pad = width + 2
    half = height // 2
    while first < last:
        image, start = first // half, first % half * 2
        stop = min(height, start + 2 * (last - first))
        top = image * height
        ring[:] = 0
        inner[:] = 0
        for i in range(start - 2, stop + 2):
            entering = (i + 3) % 3 * pad
            if 0 <= i < height:
                normalised(width, C, v[(top + i) * width :], scale, shift, n)
                product(width, n, in_x, 2 * C, bias_x, ring[entering + 1 :])
            else:
                ring[entering : entering + pad] = 0
            a, b = (i + 1) % 3 * pad, (i + 2) % 3 * pad  # of rows i - 2 and i - 1
            row = i - 1
            if start - 1 <= row <= stop:
                if 0 <= row < height:
                    stencil3_silu(
                        width, C, ring[a:, C:], ring[b:, C:], ring[entering:, C:], conv[:, C:], conv_bias[:, C:],
                        inner[b + 1 :],
                    )  # fmt: skip
                else:
                    inner[b : b + pad] = 0
            if start <= row < stop:
                at = (top + row) * width
                low = halves[at:] if exact else rows[row % 2 * width :]
                stencil3_silu(width, C, ring[a:], ring[b:], ring[entering:], conv, conv_bias, low)
                if row % 2:
                    means = (top // 2 + row // 2) * (width // 2)
                    pooled(width // 2, C, halves[at - width :] if exact else rows, low, pooled_map[means:])
                    if not exact:
                        paired(2 * width, C, rows, halves[at - width :])
                    product_alone(width // 2, pooled_map[means:], x_proj, x_proj.shape[1], projected[means:])
            row = i - 2
            if start <= row < stop:
                # The row above this one lies where the row after next will: three rows of a ring.
                above = (i + 3) % 3 * pad
                at = (top + row) * width
                high = halves[at:, C:] if exact else rows[2 * width :]
                stencil3(width, C, inner[above:], inner[a:], inner[b:], high_conv, high_bias, high)
                if not exact:
                    paired(width, C, high, halves[at:, C // 2 :])
        first = image * half + stop // 2


def front_scratch(width: int, C: int) -> int:
    """Numbers of scratch that a thread needs for `front`."""
    return 4 * width * C + 9 * (width + 2) * C


def tail(  # type: ignore[no-untyped-def]
    first, last, height, width, v, scale, shift, in_z, bias_z, scanned, halves, out_scale, out_shift,
    out_proj, out_bias, gain, beside, result, scratch,
):  # fmt: skip
    """The second half of an RMB, from the scan's result: rows 2 first .. 2 last - 1 of a batch of maps.

    scanned: (batch, 2, pixels / 4, C), to be added.  halves: of `front`; overwritten.
    out_scale, out_shift: (1, 2C).  in_z: (C, 2C).  out_proj: (2C, C), columns added up to whole registers.
    gain: (1, C).  beside: (pixels, n), copied behind the result, n 0 or more.  result: (pixels, C + n), rows of any
    stride; it may lie where v does.  scratch: tail_scratch numbers.
    """
    C, half = v.shape[1], height // 2
    n, rest = carve(scratch, width, C)
    y, rest = carve(rest, width, 2 * C)
    out, rest = carve(rest, width, out_proj.shape[1])
    step = width // 2
    for row in range(2 * first, 2 * last):
        image, i = row // height, row % height
        near = i // 2
        far = min(max(near + 1 if i % 2 else near - 1, 0), half - 1)
        at = row * width
        mixed = halves[at:]
        if halves.shape[1] == C:
            unpaired(width, 2 * C, mixed, y)
            mixed = y
        enlarged(
            step, C, scanned[image, 0, near * step :], scanned[image, 1, near * step :],
            scanned[image, 0, far * step :], scanned[image, 1, far * step :], mixed,
        )  # fmt: skip
        normalised(width, 2 * C, mixed, out_scale, out_shift, y)
        normalised(width, C, v[at:], scale, shift, n)
        product_gate(width, n, in_z, 2 * C, bias_z, y)
        product(width, y, out_proj, out_proj.shape[1], out_bias, out)
        weighted_sum(width, C, out, gain, v[at:], result[at:])
        if beside.shape[1]:
            copied(width, beside.shape[1], beside[at:], result[at:, C:])


def tail_scratch(width: int, C: int, outputs: int) -> int:
    """Numbers of scratch that a thread needs for `tail`; outputs: columns of out_proj."""
    return width * (3 * C + outputs)


def feed_forward(  # type: ignore[no-untyped-def]
    first, last, height, width, t, c, scale, shift, fc1, bias1, conv, conv_bias, fc2, bias2, ones, result, scratch
):
    """a + ConvFFN(LN(a)) with a = t + c: rows 2 first .. 2 last - 1 of a batch of maps.

    t, c, result: (pixels, 64).  fc1: (64, hidden).  conv: (25, hidden).  fc2: (hidden, 64).  ones: (1, 64).
    scratch: feed_forward_scratch numbers.
    """
    C, hidden, half, pad = t.shape[1], fc1.shape[1], height // 2, width + 4
    a, rest = carve(scratch, 3 * width, C)
    n, rest = carve(rest, width, C)
    ring, rest = carve(rest, 5 * pad, hidden)
    h, rest = carve(rest, width, hidden)
    out, rest = carve(rest, width, C)
    while first < last:
        image, start = first // half, first % half * 2
        stop = min(height, start + 2 * (last - first))
        top = image * height
        ring[:] = 0
        for i in range(start - 2, stop + 2):
            entering = (i + 5) % 5 * pad
            if 0 <= i < height:
                at, sum_at = (top + i) * width, i % 3 * width
                weighted_sum(width, C, t[at:], ones, c[at:], a[sum_at:])
                normalised(width, C, a[sum_at:], scale, shift, n)
                product_gelu(width, n, fc1, hidden, bias1, ring[entering + 2 :])
            else:
                ring[entering : entering + pad] = 0
            row = i - 2
            if start <= row < stop:
                r0, r1, r2, r3 = i + 1, i + 2, i + 3, i + 4  # rows i - 4 .. i - 1
                stencil5_gelu_added(
                    width, hidden, ring[r0 % 5 * pad :], ring[r1 % 5 * pad :], ring[r2 % 5 * pad :],
                    ring[r3 % 5 * pad :], ring[entering:], conv, conv_bias, h,
                )  # fmt: skip
                product(width, h, fc2, C, bias2, out)
                weighted_sum(width, C, out, ones, a[row % 3 * width :], result[(top + row) * width :])
        first = image * half + stop // 2


def feed_forward_scratch(width: int, C: int, hidden: int) -> int:
    """Numbers of scratch that a thread needs for `feed_forward`."""
    return 5 * width * C + 5 * (width + 4) * hidden + width * hidden


def first_convolution(  # type: ignore[no-untyped-def]
    first, last, height, width, x, edge, weight, bias, scale, shift, result, norm, scratch
):
    """A 3x3 convolution of few channels, and its layer normalisation: rows 2 first .. 2 last - 1 of a batch of maps.

    x: (pixels, C), seen in a frame of the values edge (1, C).  weight: (9 C, N), by row, column and channel, N a
    multiple of LANES.  bias, scale, shift: (1, N).  result, norm: (pixels, N), or norm (0, N), not wanted.
    scratch: first_convolution_scratch numbers.
    """
    C, N, half, pad = x.shape[1], weight.shape[1], height // 2, width + 2
    ring, _ = carve(scratch, 3 * pad, C)
    while first < last:
        image, start = first // half, first % half * 2
        stop = min(height, start + 2 * (last - first))
        top = image * height
        ring[:] = edge
        for i in range(start - 1, stop + 1):
            entering = (i + 3) % 3 * pad
            if 0 <= i < height:
                ring[entering + 1 : entering + 1 + width] = x[(top + i) * width : (top + i + 1) * width]
            else:
                ring[entering : entering + pad] = edge
            row = i - 1
            if start <= row < stop:
                at = (top + row) * width
                product(width, ring[(i + 1) % 3 * pad :], weight[: 3 * C], N, bias, result[at:])
                product_added(width, ring[(i + 2) % 3 * pad :], weight[3 * C : 6 * C], N, bias, result[at:])
                product_added(width, ring[entering:], weight[6 * C :], N, bias, result[at:])
                if norm.shape[0]:
                    normalised(width, N, result[at:], scale, shift, norm[at:])
        first = image * half + stop // 2


def first_convolution_scratch(width: int, C: int) -> int:
    """Numbers of scratch that a thread needs for `first_convolution`."""
    return 3 * (width + 2) * C


def convolution(  # type: ignore[no-untyped-def]
    first, last, height, width, x, norm, scale, shift, edge, weight, bias, skip, slope, result, shuffled, scratch
):
    """A 3x3 convolution after Winograd, plus a skip: rows 2 first .. 2 last - 1 of a batch of maps.

    x: (pixels, C), C a multiple of LANES; with norm, its layer normalisation of the affine scale, shift (1, C).
    edge: (1, C), what stands around it.  weight: (16, C, N), of `convolution_elements`, N a multiple of LANES.
    bias: (1, N).  skip: (pixels, N).  slope: what values below zero are multiplied by.  result: (pixels, N), or
    (0, N) where shuffled (batch, bands, scale height, scale width) takes bands scale^2 of the channels in its place.
    scratch: convolution_scratch numbers.
    """
    C, N, half, pad = x.shape[1], weight.shape[2], height // 2, width + 2
    ring, rest = carve(scratch, 4 * pad, C)
    seen, rest = carve(rest, 16 * TILES, C)
    made, rest = carve(rest, 16 * TILES, N)
    rows, _ = carve(rest, 2 * width, N)
    while first < last:
        image, start = first // half, first % half * 2
        stop = min(height, start + 2 * (last - first))
        top = image * height
        ring[:] = edge
        for i in range(start - 1, stop + 1):
            entering = (i + 4) % 4 * pad
            if not 0 <= i < height:
                ring[entering : entering + pad] = edge
            elif norm:
                normalised(width, C, x[(top + i) * width :], scale, shift, ring[entering + 1 :])
            else:
                copied(width, C, x[(top + i) * width :], ring[entering + 1 :])
            row = i - 2
            if start <= row < stop and row % 2 == 0:
                at = (top + row) * width
                r0, r1, r2 = (i + 1) % 4 * pad, (i + 2) % 4 * pad, (i + 3) % 4 * pad
                target = result[at:] if result.shape[0] else rows
                for left in range(0, width, 2 * TILES):
                    tiles = min(TILES, (width - left) // 2)
                    tiles_seen(
                        tiles, C, ring[r0 + left :], ring[r1 + left :], ring[r2 + left :], ring[entering + left :], seen
                    )
                    for element in range(16):
                        place = element * TILES
                        product_alone(tiles, seen[place:], weight[element], N, made[place:])
                    tiles_made(
                        tiles, N, made, bias, skip[at + left :], skip[at + width + left :], target[left:],
                        target[width + left :], slope,
                    )  # fmt: skip
                if result.shape[0] == 0:
                    shuffled_rows(rows, width, shuffled[image, :, row * shuffled.shape[2] // height :])
        first = image * half + stop // 2


def convolution_scratch(width: int, C: int, N: int) -> int:
    """Numbers of scratch that a thread needs for `convolution`."""
    return 4 * (width + 2) * C + 16 * TILES * (C + N) + 2 * width * N


def convolution_by_amx(  # type: ignore[no-untyped-def]
    first, last, height, width, x, norm, scale, shift, edge, weight, bias, skip, slope, result, shuffled, scratch
):
    """What `convolution` computes, plainly, of pairs of bfloat16; arguments as there, C a multiple of 32.

    weight: (9 C / 2, N), by row, column and channel, in pairs.  scratch: convolution_by_amx_scratch numbers.
    """
    C, N, half, pad = x.shape[1], weight.shape[1], height // 2, width + 2 + BEHIND
    ring, rest = carve(scratch, 3 * pad, C // 2)
    frame, rest = carve(rest, 1, C // 2)
    n, rest = carve(rest, width, C)
    rows, _ = carve(rest, 2 * width, N)
    paired(1, C, edge, frame)
    while first < last:
        image, start = first // half, first % half * 2
        stop = min(height, start + 2 * (last - first))
        top = image * height
        ring[:] = frame
        for i in range(start - 1, stop + 1):
            entering = (i + 3) % 3 * pad
            if not 0 <= i < height:
                ring[entering : entering + pad] = frame
            elif norm:
                normalised(width, C, x[(top + i) * width :], scale, shift, n)
                paired(width, C, n, ring[entering + 1 :])
            else:
                paired(width, C, x[(top + i) * width :], ring[entering + 1 :])
            row = i - 1
            if start <= row < stop:
                at = (top + row) * width
                target = result[at:] if result.shape[0] else rows[row % 2 * width :]
                convolved(
                    width, ring[(i + 1) % 3 * pad :], ring[(i + 2) % 3 * pad :], ring[entering:], weight, N, bias,
                    skip[at:], slope, target,
                )  # fmt: skip
                if result.shape[0] == 0 and row % 2:
                    shuffled_rows(rows, width, shuffled[image, :, (row - 1) * shuffled.shape[2] // height :])
        first = image * half + stop // 2


def convolution_by_amx_scratch(width: int, C: int, N: int) -> int:
    """Numbers of scratch that a thread needs for `convolution_by_amx`."""
    return 3 * (width + 2 + BEHIND) * C // 2 + C // 2 + width * C + 2 * width * N


def convolution_elements(weight: np.ndarray) -> np.ndarray:
    """G g G^T of every filter: (N, C, 3, 3) -> (16, C, N)."""
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    elements = np.einsum("ip,ncpq,jq->ijcn", G, weight.astype(np.float64), G)
    return np.ascontiguousarray(elements.reshape(16, *elements.shape[2:]), np.float32)


_SPAN = (types.int64,) * 4
_SCRATCH = types.Array(types.float32, 1, "C")
_KINDS = {
    "D": types.Array(types.float32, 2, "C"),  # dense
    "R": types.Array(types.float32, 2, "A"),  # rows of any stride
    "3": types.Array(types.float32, 3, "C"),
    "4": types.Array(types.float32, 4, "C"),
    "n": types.int64,
    "f": types.float32,
}


def _with_arguments(pass_over_rows: Callable[..., None], kinds: str) -> Callable[..., None]:
    """Compiled for arguments of the kinds given, in their order."""
    signature = types.void(*_SPAN, *(_KINDS[kind] for kind in kinds), _SCRATCH)
    options = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}
    compiled: Callable[..., None] = _compiled_for(signature, **options)(pass_over_rows)
    return compiled


front = _with_arguments(front, "R" + "D" * 12)
tail = _with_arguments(tail, "RDDDD" + "4" + "D" * 6 + "RR")
feed_forward = _with_arguments(feed_forward, "RR" + "D" * 10)
first_convolution = _with_arguments(first_convolution, "D" * 8)
convolution = _with_arguments(convolution, "DnDDD3DRfD4")
if HAS_AMX:
    convolution_by_amx = _with_arguments(convolution_by_amx, "DnDDDDDRfD4")
