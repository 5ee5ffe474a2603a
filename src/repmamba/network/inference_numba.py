"""The fused network's stages as compiled passes over rows of pixels; imported only where Numba is, by inference_cpu.py.

A pass walks down an image row by row and keeps what it needs of the rows above in rings of three or five, so that all
between a stage's input and its results stays in the processor's second cache: a map as a whole is read once and
written once. Rows are tokens (pixels, channels), channels side by side. A pass takes the rows first .. last - 1 of a
batch, so that threads can share it; what stands at a pixel does not depend on how the rows are shared.

Matrix products, stencils, normalisations and the two activations are vector code (`Vectors` of the scan's kernels);
what is left are plain loops over channels, which LLVM turns into vector code by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from repmamba.scan.numba_kernels import I64, LANES, LOG2_E, Rows, Vectors, counting, element_of

EPS = 1e-5
WIDTHS = (8, 16, 32, 64, 128)
"""Channels of what is normalised: a network's widths, and twice that."""

REGISTERS = 24 if LANES == 16 else 12
"""Sums that a matrix product keeps in registers; AVX-512 has 32 of them, older sets 16."""

# The normal distribution's tail beyond x >= 0 is exp(-x^2 / 2) t poly(t) with t = 1 / (1 + TAIL x), within 4e-9 / x.
TAIL = 0.28
TAIL_POLYNOMIAL = (
    0.11711906506669244,
    0.0637222643650924,
    0.27837123603337927,
    -0.24877396869464297,
    0.397162292892567,
    -0.10760095996915225,
)


# Vector code


def _opened(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """Arrays as Rows, numbers as they are."""
    return [
        Rows(builder, make_array(kind)(context, builder, value)) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, args, strict=True)
    ]


def _lane_choices(builder: Any, channels: Any) -> Iterator[Vectors]:
    """Code for whole registers, and code for half ones where eight channels are all there is; one of them runs."""
    if LANES < 16:
        yield Vectors(builder, LANES)
        return
    whole = builder.icmp_signed("==", builder.urem(channels, I64(LANES)), I64(0))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            yield Vectors(builder, LANES)
        with otherwise:
            yield Vectors(builder, LANES // 2)


@contextmanager
def _strips(builder: Any, v: Vectors, channels: Any) -> Iterator[Any]:
    """A loop over the first channels of each register: 0, lanes, 2 lanes, ..."""
    with counting(builder, builder.udiv(channels, I64(v.lanes))) as strip:
        yield builder.mul(strip, I64(v.lanes))


def _sigmoid_times(v: Vectors, x: Any) -> Any:
    """SiLU."""
    b, one = v.builder, v.constant(1)
    positive = b.fcmp_ordered(">", x, v.constant(0))
    z = v.exp2(b.fmul(b.select(positive, b.fneg(x), x), v.constant(LOG2_E)))  # exp(-|x|), which cannot overflow
    return b.fdiv(b.fmul(x, b.select(positive, one, z)), b.fadd(one, z))


def _normal_times(v: Vectors, x: Any) -> Any:
    """GELU, x times the normal distribution below x."""
    b = v.builder
    positive = b.fcmp_ordered(">", x, v.constant(0))
    magnitude = b.select(positive, x, b.fneg(x))
    t = b.fdiv(v.constant(1), v.fma(magnitude, v.constant(TAIL), v.constant(1)))
    density = v.exp2(b.fmul(b.fmul(x, x), v.constant(-LOG2_E / 2)))
    tail = b.fmul(b.fmul(density, t), v.polynomial(t, TAIL_POLYNOMIAL))
    return b.fsub(b.select(positive, x, v.constant(0)), b.fmul(magnitude, tail))


def _as_it_is(v: Vectors, x: Any) -> Any:
    return x


def _product_code(start_from: str, activation: Callable[[Vectors, Any], Any]) -> Any:
    """A kernel: result = activation(start + x weight), of `count` rows.

    x: rows of as many numbers as weight has rows, which may run over into the rows that follow: that is how a
    convolution is a product. weight: (inputs, outputs), outputs a multiple of LANES. start_from: "bias", one row for
    all, or "result", what stands there.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def product(typing: Any, count: Any, x: Any, weight: Any, outputs: Any, bias: Any, result: Any) -> tuple[Any, Any]:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            count, x, weight, outputs, bias, result = _opened(context, builder, signature, args)
            v = Vectors(builder, LANES)
            vectors = builder.udiv(outputs, I64(LANES))

            def rows_at_once(first_row: Any, first: Any, rows: int, columns: int) -> None:
                """`rows` times `columns` registers of the result."""
                inputs = [x.at(builder.add(first_row, I64(r))) for r in range(rows)]
                targets = [
                    [
                        element_of(builder, result.at(builder.add(first_row, I64(r)), first), c * LANES)
                        for c in range(columns)
                    ]
                    for r in range(rows)
                ]
                starts = [v.load(element_of(builder, bias.at(0, first), c * LANES)) for c in range(columns)]
                sums = [
                    [v.variable(starts[c] if start_from == "bias" else v.load(targets[r][c])) for c in range(columns)]
                    for r in range(rows)
                ]
                with counting(builder, weight.count) as k:
                    line = weight.at(k, first)
                    weights = [v.load(element_of(builder, line, c * LANES)) for c in range(columns)]
                    for r in range(rows):
                        factor = v.splat(element_of(builder, inputs[r], k))
                        for c in range(columns):
                            builder.store(v.fma(factor, weights[c], builder.load(sums[r][c])), sums[r][c])
                for r in range(rows):
                    for c in range(columns):
                        v.store(activation(v, builder.load(sums[r][c])), targets[r][c])

            def columns_at_once(first: Any, columns: int) -> None:
                rows = REGISTERS // columns
                whole = builder.udiv(count, I64(rows))
                with counting(builder, whole) as block:
                    rows_at_once(builder.mul(block, I64(rows)), first, rows, columns)
                done = builder.mul(whole, I64(rows))
                with counting(builder, builder.sub(count, done)) as row:
                    rows_at_once(builder.add(done, row), first, 1, columns)

            widest = 4 if LANES == 16 else 2
            with counting(builder, builder.udiv(vectors, I64(widest))) as block:
                columns_at_once(builder.mul(block, I64(widest * LANES)), widest)
            left = builder.urem(vectors, I64(widest))
            first = builder.mul(builder.sub(vectors, left), I64(LANES))
            for columns in range(1, widest):
                with builder.if_then(builder.icmp_signed("==", left, I64(columns))):
                    columns_at_once(first, columns)
            return context.get_dummy_value()

        return types.void(types.int64, x, weight, types.int64, bias, result), emit

    return product


_product = _product_code("bias", _as_it_is)
_product_added = _product_code("result", _as_it_is)
_product_silu = _product_code("bias", _sigmoid_times)
_product_gelu = _product_code("bias", _normal_times)


def _stencil_code(size: int, activation: Callable[[Vectors, Any], Any], *, add_middle: bool = False) -> Any:
    """A kernel: one row of a depthwise convolution, result = activation(bias + sum of taps) [+ the middle of x].

    x: as many rows of pixels as the window is high, (pixels + size - 1, channels) each.  weight: (size * size,
    channels).  result: (pixels, channels).
    """

    def emitted(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, channels, *x, weight, bias, result = _opened(context, builder, signature, args)
        for v in _lane_choices(builder, channels):
            with _strips(builder, v, channels) as first:
                taps = [v.load(weight.at(tap, first)) for tap in range(size * size)]
                start = v.load(bias.at(0, first))
                with counting(builder, count) as pixel:
                    sums = [start, v.constant(0)]
                    for tap, weights in enumerate(taps):
                        row, column = divmod(tap, size)
                        value = v.load(x[row].at(builder.add(pixel, I64(column)), first))
                        sums[tap % 2] = v.fma(value, weights, sums[tap % 2])
                        if add_middle and tap == size * size // 2:
                            middle = value
                    value = activation(v, builder.fadd(*sums))
                    v.store(builder.fadd(value, middle) if add_middle else value, result.at(pixel, first))
        return context.get_dummy_value()

    if size == 3:

        @intrinsic  # type: ignore[untyped-decorator]
        def stencil3(
            typing: Any, count: Any, channels: Any, x0: Any, x1: Any, x2: Any, weight: Any, bias: Any, result: Any
        ) -> tuple[Any, Any]:
            return types.void(types.int64, types.int64, x0, x1, x2, weight, bias, result), emitted

        return stencil3

    @intrinsic  # type: ignore[untyped-decorator]
    def stencil5(
        typing: Any,
        count: Any,
        channels: Any,
        x0: Any,
        x1: Any,
        x2: Any,
        x3: Any,
        x4: Any,
        weight: Any,
        bias: Any,
        result: Any,
    ) -> tuple[Any, Any]:
        return types.void(types.int64, types.int64, x0, x1, x2, x3, x4, weight, bias, result), emitted

    return stencil5


_stencil3 = _stencil_code(3, _as_it_is)
_stencil3_silu = _stencil_code(3, _sigmoid_times)
_stencil5_gelu_added = _stencil_code(5, _normal_times, add_middle=True)


@intrinsic  # type: ignore[untyped-decorator]
def _normalised(typing: Any, count: Any, width: Any, x: Any, scale: Any, shift: Any, result: Any) -> tuple[Any, Any]:
    """Layer normalisation of `count` rows: (x - mean) / sqrt(variance + eps) * scale + shift."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, width, x, scale, shift, result = _opened(context, builder, signature, args)
        root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType()]), "llvm.sqrt.f32"
        )

        def number(value: float) -> Any:
            return ir.Constant(ir.FloatType(), float(np.float32(value)))

        for size in WIDTHS:
            v = Vectors(builder, min(LANES, size))
            places = [I64(place) for place in range(0, size, v.lanes)]
            with builder.if_then(builder.icmp_signed("==", width, I64(size))):
                scales, shifts = ([v.load(row.at(0, place)) for place in places] for row in (scale, shift))
                with counting(builder, count) as pixel:
                    values = [v.load(x.at(pixel, place)) for place in places]
                    mean = builder.fmul(v.sum(_total(builder, values)), number(1 / size))
                    values = [builder.fsub(value, _everywhere(v, mean)) for value in values]
                    squares = [builder.fmul(value, value) for value in values]
                    variance = builder.fmul(v.sum(_total(builder, squares)), number(1 / size))
                    deviation = builder.call(root, [builder.fadd(variance, number(EPS))])
                    inverse = _everywhere(v, builder.fdiv(number(1), deviation))
                    for place, value, factor, added in zip(places, values, scales, shifts, strict=True):
                        v.store(v.fma(builder.fmul(value, inverse), factor, added), result.at(pixel, place))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x, scale, shift, result), emit


def _total(builder: Any, values: list[Any]) -> Any:
    """The sum of vectors, in the order of a tree."""
    while len(values) > 1:
        values = [builder.fadd(first, second) for first, second in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _everywhere(v: Vectors, number: Any) -> Any:
    first = v.builder.insert_element(ir.Constant(v.type, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return v.builder.shuffle_vector(first, first, ir.Constant(v.bits, [0] * v.lanes))


@intrinsic  # type: ignore[untyped-decorator]
def weighted_sum(typing: Any, count: Any, channels: Any, x: Any, gain: Any, v: Any, result: Any) -> tuple[Any, Any]:
    """result = x + gain v, row by row."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, channels, x, gain, skip, result = _opened(context, builder, signature, args)
        for v in _lane_choices(builder, channels):
            with _strips(builder, v, channels) as first:
                gains = v.load(gain.at(0, first))
                with counting(builder, count) as pixel:
                    total = v.fma(gains, v.load(skip.at(pixel, first)), v.load(x.at(pixel, first)))
                    v.store(total, result.at(pixel, first))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x, gain, v, result), emit


@intrinsic  # type: ignore[untyped-decorator]
def copied(typing: Any, count: Any, channels: Any, x: Any, result: Any) -> tuple[Any, Any]:
    """result = x, row by row."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, channels, x, result = _opened(context, builder, signature, args)
        for v in _lane_choices(builder, channels):
            with _strips(builder, v, channels) as first, counting(builder, count) as pixel:
                v.store(v.load(x.at(pixel, first)), result.at(pixel, first))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x, result), emit


# Passes

_ROWS, _DENSE = types.Array(types.float32, 2, "A"), types.Array(types.float32, 2, "C")
_NUMBER = types.int64


def _once(*arguments: Any) -> Any:
    """Compiled once, with the arguments given; without, such vector code would be made anew wherever it is used."""
    return njit([types.void(*arguments)], nogil=True, cache=True)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result = bias + x weight, `count` rows; see `_product_code`."""
    _product(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_added(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result += x weight; see `_product_code`."""
    _product_added(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_silu(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result = SiLU(bias + x weight); see `_product_code`."""
    _product_silu(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _ROWS, _ROWS, _NUMBER, _ROWS, _ROWS)
def product_gelu(count, x, weight, outputs, bias, result):  # type: ignore[no-untyped-def]
    """result = GELU(bias + x weight); see `_product_code`."""
    _product_gelu(count, x, weight, outputs, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 6)
def stencil3(count, channels, x0, x1, x2, weight, bias, result):  # type: ignore[no-untyped-def]
    """A row of a depthwise 3x3 convolution; see `_stencil_code`."""
    _stencil3(count, channels, x0, x1, x2, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 6)
def stencil3_silu(count, channels, x0, x1, x2, weight, bias, result):  # type: ignore[no-untyped-def]
    """A row of a depthwise 3x3 convolution, then SiLU."""
    _stencil3_silu(count, channels, x0, x1, x2, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 8)
def stencil5_gelu_added(count, channels, x0, x1, x2, x3, x4, weight, bias, result):  # type: ignore[no-untyped-def]
    """x + GELU(depthwise 5x5 convolution of x), a row of it."""
    _stencil5_gelu_added(count, channels, x0, x1, x2, x3, x4, weight, bias, result)


@_once(_NUMBER, _NUMBER, *[_ROWS] * 4)
def normalised(count, width, x, scale, shift, result):  # type: ignore[no-untyped-def]
    """Layer normalisation of `count` rows; see `_normalised`."""
    _normalised(count, width, x, scale, shift, result)


_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})


@_compiled
def carve(scratch, rows, columns):  # type: ignore[no-untyped-def]
    """The front of a scratch array as (rows, columns), and the rest."""
    return scratch[: rows * columns].reshape(rows, columns), scratch[rows * columns :]


@_compiled
def pooled_row(width, low, above, pooled):  # type: ignore[no-untyped-def]
    """The means of 2x2 pixels of two rows into `pooled`, and each pixel less its mean where it stood."""
    for j in range(width // 2):
        for c in range(low.shape[1]):
            mean = np.float32(0.25) * (above[2 * j, c] + above[2 * j + 1, c] + low[2 * j, c] + low[2 * j + 1, c])
            pooled[j, c] = mean
            above[2 * j, c] -= mean
            above[2 * j + 1, c] -= mean
            low[2 * j, c] -= mean
            low[2 * j + 1, c] -= mean


@_compiled
def enlarged_row(near, far, residue, result):  # type: ignore[no-untyped-def]
    """A row between two rows of half the size, bilinear, plus the residue: 3/4 of the near one, 1/4 of the far one."""
    half, channels = near.shape
    most, least = np.float32(0.75), np.float32(0.25)
    for j in range(half):
        left, right = max(j - 1, 0), min(j + 1, half - 1)
        for c in range(channels):
            middle = most * near[j, c] + least * far[j, c]
            before = most * near[left, c] + least * far[left, c]
            after = most * near[right, c] + least * far[right, c]
            result[2 * j, c] = most * middle + least * before + residue[2 * j, c]
            result[2 * j + 1, c] = most * middle + least * after + residue[2 * j + 1, c]


def front(  # type: ignore[no-untyped-def]
    first, last, height, width, v, scale, shift, in_x, bias_x, conv, conv_bias, high_conv, high_bias, x_proj,
    residue, high, pooled, projected, scratch,
):  # fmt: skip
    """The first half of an RMB, to what the scan reads: rows 2 first .. 2 last - 1 of a batch of maps.

    v: (pixels, C), rows of any stride; its norm has the affine scale, shift (1, C).  in_x: (C, 2C).  conv: (9, 2C).
    high_conv: (9, C).  x_proj: (C, directions (R + 32)), columns added up to whole registers. Biases: (1, outputs).
    residue, high: (pixels, C), the low half less its pooled means, and the high half after its second convolution.
    pooled: (pixels / 4, C).  projected: (pixels / 4, directions (R + 32)).  scratch: front_scratch numbers.
    """
    C = v.shape[1]
    n, rest = carve(scratch, width, C)
    ring, rest = carve(rest, 3 * (width + 2), 2 * C)
    inner, rest = carve(rest, 3 * (width + 2), C)
    rows, rest = carve(rest, width // 2, x_proj.shape[1])
    no_bias, rest = carve(rest, 1, x_proj.shape[1])
    nowhere, rest = carve(rest, width, C)
    no_bias[:] = 0
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
                    low = residue[(top + row) * width :] if start <= row < stop else nowhere
                    if start <= row < stop:
                        stencil3_silu(width, C, ring[a:], ring[b:], ring[entering:], conv, conv_bias, low)
                    stencil3_silu(
                        width, C, ring[a:, C:], ring[b:, C:], ring[entering:, C:], conv[:, C:], conv_bias[:, C:],
                        inner[b + 1 :],
                    )  # fmt: skip
                    if start <= row < stop and row % 2:
                        at = (top // 2 + row // 2) * (width // 2)
                        means = pooled[at : at + width // 2]
                        pooled_row(width, low, residue[(top + row - 1) * width :], means)
                        product(width // 2, means, x_proj, x_proj.shape[1], no_bias, rows)
                        projected[at : at + width // 2] = rows[:, : projected.shape[1]]
                else:
                    inner[b : b + pad] = 0
            row = i - 2
            if start <= row < stop:
                # The row above this one lies where the row after next will: three rows of a ring.
                above = (i + 3) % 3 * pad
                stencil3(
                    width, C, inner[above:], inner[a:], inner[b:], high_conv, high_bias, high[(top + row) * width :]
                )
        first = image * half + stop // 2


def front_scratch(width: int, C: int, projected: int) -> int:
    """Numbers of scratch that a thread needs for `front`; projected: columns of x_proj."""
    return 2 * width * C + 9 * (width + 2) * C + (width // 2 + 1) * projected


def tail(  # type: ignore[no-untyped-def]
    first, last, height, width, v, scale, shift, in_z, bias_z, scanned, residue, high, out_scale, out_shift,
    out_proj, out_bias, gain, beside, result, scratch,
):  # fmt: skip
    """The second half of an RMB, from the scan's result: rows 2 first .. 2 last - 1 of a batch of maps.

    scanned: (pixels / 4, C).  residue, high: (pixels, C), of `front`.  out_scale, out_shift: (1, 2C).  in_z: (C, 2C).
    out_proj: (2C, C), columns added up to whole registers.  gain: (1, C).  beside: (pixels, n), copied behind the
    result, n 0 or more.  result: (pixels, C + n).  scratch: tail_scratch numbers.
    """
    C, half = v.shape[1], height // 2
    n, rest = carve(scratch, width, C)
    y, rest = carve(rest, width, 2 * C)
    z, rest = carve(rest, width, 2 * C)
    out, rest = carve(rest, width, out_proj.shape[1])
    step = width // 2
    for row in range(2 * first, 2 * last):
        image, i = row // height, row % height
        near = i // 2
        far = min(max(near + 1 if i % 2 else near - 1, 0), half - 1)
        base = image * half
        at = row * width
        enlarged_row(
            scanned[(base + near) * step : (base + near + 1) * step],
            scanned[(base + far) * step : (base + far + 1) * step],
            residue[at:],
            y,
        )
        copied(width, C, high[at:], y[:, C:])
        normalised(width, 2 * C, y, out_scale, out_shift, y)
        normalised(width, C, v[at:], scale, shift, n)
        product_silu(width, n, in_z, 2 * C, bias_z, z)
        for j in range(width):
            for c in range(2 * C):
                y[j, c] *= z[j, c]
        product(width, y, out_proj, out_proj.shape[1], out_bias, out)
        weighted_sum(width, C, out, gain, v[at:], result[at:])
        if beside.shape[1]:
            copied(width, beside.shape[1], beside[at:], result[at:, C:])


def tail_scratch(width: int, C: int, outputs: int) -> int:
    """Numbers of scratch that a thread needs for `tail`; outputs: columns of out_proj."""
    return width * (5 * C + outputs)


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


def convolution(  # type: ignore[no-untyped-def]
    first, last, height, width, x, edge, weight, bias, skip, ones, result, scratch
):
    """A 3x3 convolution, plus a skip: rows 2 first .. 2 last - 1 of a batch of maps.

    x: (pixels, C), seen in a frame of the values edge (1, C).  weight: (9 C, N), by row, column and channel, N a
    multiple of LANES.  bias: (1, N).  skip: (pixels, N) or (0, N), none.  result: (pixels, N).
    scratch: convolution_scratch numbers.
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
                copied(width, C, x[(top + i) * width :], ring[entering + 1 :])
            else:
                ring[entering : entering + pad] = edge
            row = i - 1
            if start <= row < stop:
                at = (top + row) * width
                product(width, ring[(i + 1) % 3 * pad :], weight[: 3 * C], N, bias, result[at:])
                product_added(width, ring[(i + 2) % 3 * pad :], weight[3 * C : 6 * C], N, bias, result[at:])
                product_added(width, ring[entering:], weight[6 * C :], N, bias, result[at:])
                if skip.shape[0]:
                    weighted_sum(width, N, result[at:], ones, skip[at:], result[at:])
        first = image * half + stop // 2


def convolution_scratch(width: int, C: int) -> int:
    """Numbers of scratch that a thread needs for `convolution`."""
    return 3 * (width + 2) * C


_SPAN = (types.int64,) * 4
_SCRATCH = types.Array(types.float32, 1, "C")


def _with_arguments(pass_over_rows: Callable[..., None], arrays: str) -> Callable[..., None]:
    """Compiled for maps, (D)ense or of (R)ows of any stride, in the order of the arguments."""
    kinds = [_ROWS if kind == "R" else _DENSE for kind in arrays]
    signature = types.void(*_SPAN, *kinds, _SCRATCH)
    compiled: Callable[..., None] = njit(
        [signature], nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"}
    )(pass_over_rows)
    return compiled


front = _with_arguments(front, "R" + "D" * 13)
tail = _with_arguments(tail, "R" + "D" * 12 + "RD")
feed_forward = _with_arguments(feed_forward, "RR" + "D" * 10)
convolution = _with_arguments(convolution, "D" * 7)
