"""Training's passes over maps, forward and backward, compiled; imported only where Numba is, by training_cpu.py.

A map is (B, H, W, C), channels side by side, its pixels evenly spaced but its own (a share of the channels of a wider
map may be given as it is). Working maps, which enter and leave matrix products, are float32 or bfloat16 seen as uint16;
the others, and all arithmetic, are float32.

Every kernel takes the samples first..last of a batch, so that threads can share it. Sums are left per sample, in
float64, and added up afterwards in the order of the batch: they do not depend on the number of threads. Within a row
they are float32, where a few dozen values lose nothing.

From the innermost outwards: vector code (`scan.vector_code`) that goes over one row of pixels, and the kernels, which
call it row by row.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from repmamba.network.repconv import EPS
from repmamba.scan.compiled import load
from repmamba.scan.vector_code import (
    F32,
    I64,
    Rows,
    Strip,
    Total,
    Vectors,
    counting,
    in_pieces,
    pixels,
    strips,
    under_the_name_of_this_version,
    vector_code,
)

# Vector code: windows along a row


def windows(v: Vectors, rows: list[Strip], body: Callable[[Any, list[Any]], None]) -> None:
    """body(pixel, the nine vectors of the 3x3 window around it, zeros beyond the row's ends), along three rows."""
    b = v.builder
    left = [v.variable(v.constant(0)) for _ in rows]
    middle = [v.variable(row.load(0)) for row in rows]

    def window(right: list[Any]) -> list[Any]:
        columns = [[b.load(vector) for vector in left], [b.load(vector) for vector in middle], right]
        return [columns[column][row] for row in range(3) for column in range(3)]

    last = b.sub(rows[1].rows.count, I64(1))
    with counting(b, last) as pixel:
        values = window([row.load(b.add(pixel, I64(1))) for row in rows])
        body(pixel, values)
        for row in range(3):
            b.store(values[3 * row + 1], left[row])
            b.store(values[3 * row + 2], middle[row])
    body(last, window([v.constant(0)] * 3))


def windows5(
    v: Vectors, rows: list[Strip], weights: Strip, start: Any, count: Any, body: Callable[[Any, Any], None]
) -> None:
    """body(pixel, start plus the 5x5 products) along five rows with a margin of two, four pixels at once."""
    b = v.builder
    for first, several in in_pieces(b, count, 4):
        sums = [start] * several
        for row in range(5):
            values = [rows[row].load(b.add(first, I64(column))) for column in range(several + 4)]
            for column in range(5):
                weight = weights.load(5 * row + column)
                sums = [v.fma(values[pixel + column], weight, sums[pixel]) for pixel in range(several)]
        for pixel, value in enumerate(sums):
            body(b.add(first, I64(pixel)), value)


def weighted(v: Vectors, values: list[Any], weights: list[Any]) -> Any:
    """The sum of values times weights, in three chains."""
    b = v.builder
    chains = [b.fmul(values[n], weights[n]) for n in range(3)]
    for n in range(3, len(values)):
        chains[n % 3] = v.fma(values[n], weights[n], chains[n % 3])
    return b.fadd(b.fadd(chains[0], chains[1]), chains[2])


# Vector code: the rows of the passes


def _normal(v: Vectors, x: Rows, pixel: Any) -> tuple[Any, Any]:
    """Mean of a pixel's channels, and one over their deviation, in every lane."""
    b, share = v.builder, _share(v, x)
    total = Total(v)
    with strips(v, x) as (channels,):
        total.add(channels.load(pixel))
    mean = v.everywhere(b.fmul(v.sum(total.value()), share))
    squares = Total(v)
    with strips(v, x) as (channels,):
        distance = b.fsub(channels.load(pixel), mean)
        squares.add_product(distance, distance)
    variance = b.fmul(v.sum(squares.value()), share)
    return mean, v.everywhere(v.inverse_root(b.fadd(variance, v.number(EPS))))


def _share(v: Vectors, x: Rows) -> Any:
    """One over the number of channels, a float32 that stands alone."""
    return v.builder.fdiv(v.number(1), v.builder.uitofp(x.width, F32))


@vector_code
def _normalise_row(v: Vectors, x: Rows, affine: Rows, result: Rows) -> None:
    b = v.builder
    with pixels(v, x) as pixel:
        mean, inverse = _normal(v, x, pixel)
        with strips(v, x, affine, result) as (values, scale_shift, out):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            out.store(v.fma(normal, scale_shift.load(0), scale_shift.load(1)), pixel)


@vector_code
def _normalise_back_row(v: Vectors, x: Rows, affine: Rows, gradient: Rows, direct: Rows, dx: Rows, sums: Rows) -> None:
    b = v.builder
    share = v.everywhere(_share(v, x))
    with pixels(v, x) as pixel:
        mean, inverse = _normal(v, x, pixel)
        total, along = Total(v), Total(v)
        with strips(v, x, affine, gradient, sums) as (values, scale_shift, g, found):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            gradient_here = g.load(pixel)
            found.add(b.fmul(gradient_here, normal), 0)
            found.add(gradient_here, 1)
            scaled = b.fmul(gradient_here, scale_shift.load(0))
            total.add(scaled)
            along.add_product(scaled, normal)
        mean_scaled = b.fmul(v.everywhere(v.sum(total.value())), share)
        mean_along = b.fmul(v.everywhere(v.sum(along.value())), share)
        with strips(v, x, affine, gradient, direct, dx) as (values, scale_shift, g, straight, out):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            scaled = b.fsub(b.fmul(g.load(pixel), scale_shift.load(0)), mean_scaled)
            out.store(v.fma(b.fsub(scaled, b.fmul(normal, mean_along)), inverse, straight.load(pixel)), pixel)


@vector_code
def _gate_row(v: Vectors, x: Rows, affine: Rows, z: Rows, result: Rows) -> None:
    b = v.builder
    with pixels(v, x) as pixel:
        mean, inverse = _normal(v, x, pixel)
        with strips(v, x, affine, z, result) as (values, scale_shift, gate, out):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            opened = v.silu(gate.load(pixel))
            out.store(b.fmul(v.fma(normal, scale_shift.load(0), scale_shift.load(1)), opened), pixel)


@vector_code
def _gate_back_row(v: Vectors, x: Rows, affine: Rows, z: Rows, gradient: Rows, dz: Rows, dx: Rows, sums: Rows) -> None:
    b = v.builder
    share = v.everywhere(_share(v, x))
    with pixels(v, x) as pixel:
        mean, inverse = _normal(v, x, pixel)
        total, along = Total(v), Total(v)
        with strips(v, x, affine, z, gradient, dz, dx, sums) as (values, scale_shift, gate, g, dgate, out, found):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            scale = scale_shift.load(0)
            opened, slope = v.silu_and_slope(gate.load(pixel))
            gradient_here = g.load(pixel)
            dgate.store(b.fmul(b.fmul(v.fma(normal, scale, scale_shift.load(1)), slope), gradient_here), pixel)
            gradient_here = b.fmul(gradient_here, opened)
            found.add(b.fmul(gradient_here, normal), 0)
            found.add(gradient_here, 1)
            scaled = b.fmul(gradient_here, scale)
            out.store(scaled, pixel)
            total.add(scaled)
            along.add_product(scaled, normal)
        mean_scaled = b.fmul(v.everywhere(v.sum(total.value())), share)
        mean_along = b.fmul(v.everywhere(v.sum(along.value())), share)
        with strips(v, x, dx) as (values, out):
            normal = b.fmul(b.fsub(values.load(pixel), mean), inverse)
            scaled = b.fsub(out.load(pixel), mean_scaled)
            out.store(b.fmul(b.fsub(scaled, b.fmul(normal, mean_along)), inverse), pixel)


@vector_code
def _moments_row(v: Vectors, x0: Rows, x1: Rows, x2: Rows, weight: Rows, sums: Rows) -> None:
    with strips(v, x0, x1, x2, weight, sums) as (*rows, taps, found):
        weights = [taps.load(tap) for tap in range(9)]
        totals = [Total(v) for _ in range(5)]

        def body(_: Any, window: list[Any]) -> None:
            x, y = window[4], weighted(v, window, weights)
            totals[0].add(y)
            totals[1].add_product(y, y)
            totals[2].add(x)
            totals[3].add_product(x, x)
            totals[4].add_product(x, y)

        windows(v, rows, body)
        for row, total in enumerate(totals):
            found.add(total.value(), row)


def _convolve(
    v: Vectors, x: list[Rows], weight: Rows, bias: Rows, result: Rows, activation: Callable[[Any], Any]
) -> None:
    with strips(v, *x, weight, bias, result) as (*rows, taps, shift, out):
        weights = [taps.load(tap) for tap in range(9)]
        start = shift.load(0)

        def body(pixel: Any, window: list[Any]) -> None:
            out.store(activation(v.builder.fadd(weighted(v, window, weights), start)), pixel)

        windows(v, rows, body)


@vector_code
def _convolve_row(v: Vectors, x0: Rows, x1: Rows, x2: Rows, weight: Rows, bias: Rows, result: Rows) -> None:
    _convolve(v, [x0, x1, x2], weight, bias, result, lambda x: x)


@vector_code
def _convolve_silu_row(v: Vectors, x0: Rows, x1: Rows, x2: Rows, weight: Rows, bias: Rows, result: Rows) -> None:
    _convolve(v, [x0, x1, x2], weight, bias, result, v.silu)


@vector_code
def _gradient_sums_row(v: Vectors, x0: Rows, x1: Rows, x2: Rows, weight: Rows, gradient: Rows, sums: Rows) -> None:
    with strips(v, x0, x1, x2, weight, gradient, sums) as (*rows, taps, g, found):
        weights = [taps.load(tap) for tap in range(9)]
        totals = [Total(v) for _ in range(3)]

        def body(pixel: Any, window: list[Any]) -> None:
            gradient_here = g.load(pixel)
            totals[0].add(gradient_here)
            totals[1].add_product(gradient_here, weighted(v, window, weights))
            totals[2].add_product(gradient_here, window[4])

        windows(v, rows, body)
        for row, total in enumerate(totals):
            found.add(total.value(), row)


@vector_code
def _silu_gradient_sums_row(
    v: Vectors,
    x0: Rows,
    x1: Rows,
    x2: Rows,
    weight: Rows,
    mix: Rows,
    gradient: Rows,
    before: Rows,
    sums: Rows,
) -> None:
    b = v.builder
    with strips(v, x0, x1, x2, weight, mix, gradient, before, sums) as (*rows, taps, parts, g, out, found):
        weights = [taps.load(tap) for tap in range(9)]
        of_y, of_x, constant = (parts.load(part) for part in range(3))
        totals = [Total(v) for _ in range(3)]

        def body(pixel: Any, window: list[Any]) -> None:
            x, y = window[4], weighted(v, window, weights)
            _, slope = v.silu_and_slope(v.fma(of_y, y, v.fma(of_x, x, constant)))
            gradient_here = b.fmul(g.load(pixel), slope)
            out.store(gradient_here, pixel)
            totals[0].add(gradient_here)
            totals[1].add_product(gradient_here, y)
            totals[2].add_product(gradient_here, x)

        windows(v, rows, body)
        for row, total in enumerate(totals):
            found.add(total.value(), row)


@vector_code
def _branches_back_row(
    v: Vectors,
    x0: Rows,
    x1: Rows,
    x2: Rows,
    weight: Rows,
    gradient: Rows,
    mix: Rows,
    dy: Rows,
    direct: Rows,
    taps: Rows,
) -> None:
    with strips(v, x0, x1, x2, weight, gradient, mix, dy, direct, taps) as (*rows, of, g, parts, out, straight, found):
        weights = [of.load(tap) for tap in range(9)]
        mixes = [parts.load(part) for part in range(8)]
        totals = [Total(v) for _ in range(9)]

        def body(pixel: Any, window: list[Any]) -> None:
            gradient_here, x, y = g.load(pixel), window[4], weighted(v, window, weights)
            of_branch, of_map = (
                v.fma(mixes[part], gradient_here, v.fma(mixes[part + 1], y, v.fma(mixes[part + 2], x, mixes[part + 3])))
                for part in (0, 4)
            )
            out.store(of_branch, pixel)
            straight.store(of_map, pixel)
            for total, value in zip(totals, window, strict=True):
                total.add_product(of_branch, value)

        windows(v, rows, body)
        for tap, total in enumerate(totals):
            found.add(total.value(), tap)


@vector_code
def _transposed_row(v: Vectors, y0: Rows, y1: Rows, y2: Rows, turned: Rows, direct: Rows, dx: Rows) -> None:
    with strips(v, y0, y1, y2, turned, direct, dx) as (*rows, taps, straight, out):
        weights = [taps.load(tap) for tap in range(9)]

        def body(pixel: Any, window: list[Any]) -> None:
            out.store(v.builder.fadd(weighted(v, window, weights), straight.load(pixel)), pixel)

        windows(v, rows, body)


@vector_code
def _pool_row(v: Vectors, x0: Rows, x1: Rows, pooled: Rows) -> None:
    b = v.builder
    with strips(v, pooled, x0, x1) as (out, *rows), pixels(v, pooled) as pixel:
        column = b.mul(pixel, I64(2))
        four = [row.load(b.add(column, I64(side))) for row in rows for side in (0, 1)]
        out.store(b.fmul(v.added(four), v.constant(0.25)), pixel)


@vector_code
def _unpool_row(v: Vectors, dpooled: Rows, gradient: Rows, result: Rows) -> None:
    b = v.builder
    with strips(v, dpooled, gradient, result) as (quarter, g, out), pixels(v, dpooled) as pixel:
        column = b.mul(pixel, I64(2))
        share = b.fmul(quarter.load(pixel), v.constant(0.25))
        for side in (0, 1):
            place = b.add(column, I64(side))
            out.store(b.fadd(g.load(place), share), place)


def _neighbours(v: Vectors, pixel: Any, count: Any) -> tuple[Any, Any]:
    """The pixels before and after, of the row itself at its ends."""
    b = v.builder
    last = b.sub(count, I64(1))
    before = b.select(b.icmp_signed("==", pixel, I64(0)), pixel, b.sub(pixel, I64(1)))
    after = b.select(b.icmp_signed("==", pixel, last), pixel, b.add(pixel, I64(1)))
    return before, after


@vector_code
def _merge_row(v: Vectors, near: Rows, far: Rows, pooled: Rows, x: Rows, result: Rows) -> None:
    b = v.builder
    with strips(v, near, far, pooled, x, result) as (close, beyond, coarse, fine, out), pixels(v, near) as pixel:

        def at(place: Any) -> Any:
            return v.quarter_way(close.load(place), beyond.load(place))

        before, after = _neighbours(v, pixel, near.count)
        middle = b.fsub(b.fmul(at(pixel), v.constant(0.75)), coarse.load(pixel))
        column = b.mul(pixel, I64(2))
        for side, neighbour in enumerate((before, after)):
            place = b.add(column, I64(side))
            smooth = v.fma(at(neighbour), v.constant(0.25), middle)
            out.store(b.fadd(smooth, fine.load(place)), place)


@vector_code
def _merge_back_row(v: Vectors, dscanned: Rows, dpooled: Rows, g0: Rows, g1: Rows, g2: Rows, g3: Rows) -> None:
    b = v.builder
    with strips(v, dscanned, dpooled, g0, g1, g2, g3) as (scanned, pooled, *rows), pixels(v, dscanned) as pixel:
        column = b.mul(pixel, I64(2))
        columns = [column, b.add(column, I64(1))]
        before, _ = _neighbours(v, columns[0], g0.count)
        _, after = _neighbours(v, columns[1], g0.count)

        def along(row: Strip) -> tuple[Any, Any]:
            """What a row gives to the scan's pixel, and to the pooled one if it is an inner row."""
            inner = b.fadd(row.load(columns[0]), row.load(columns[1]))
            outer = b.fadd(row.load(before), row.load(after))
            return v.quarter_way(inner, outer), inner

        found = [along(row) for row in rows]
        inner, outer = b.fadd(found[1][0], found[2][0]), b.fadd(found[0][0], found[3][0])
        scanned.store(v.quarter_way(inner, outer), pixel)
        pooled.store(b.fneg(b.fadd(found[1][1], found[2][1])), pixel)


@vector_code
def _sum_moments_row(v: Vectors, x: Rows, added: Rows, sums: Rows) -> None:
    with strips(v, x, added, sums) as (values, others, found):
        total, squares = Total(v), Total(v)
        with pixels(v, x) as pixel:
            value = v.builder.fadd(values.load(pixel), others.load(pixel))
            total.add(value)
            squares.add_product(value, value)
        found.add(total.value(), 0)
        found.add(squares.value(), 1)


@vector_code
def _sum_scale_row(v: Vectors, x: Rows, added: Rows, affine: Rows, result: Rows) -> None:
    with strips(v, x, added, affine, result) as (values, others, scale_shift, out):
        scale, shift = scale_shift.load(0), scale_shift.load(1)
        with pixels(v, x) as pixel:
            out.store(v.fma(v.builder.fadd(values.load(pixel), others.load(pixel)), scale, shift), pixel)


@vector_code
def _sum_gradient_sums_row(v: Vectors, x: Rows, added: Rows, gradient: Rows, sums: Rows) -> None:
    with strips(v, x, added, gradient, sums) as (values, others, g, found):
        total, along = Total(v), Total(v)
        with pixels(v, x) as pixel:
            gradient_here = g.load(pixel)
            total.add(gradient_here)
            along.add_product(gradient_here, v.builder.fadd(values.load(pixel), others.load(pixel)))
        found.add(total.value(), 0)
        found.add(along.value(), 1)


@vector_code
def _sum_back_row(v: Vectors, x: Rows, added: Rows, gradient: Rows, mix: Rows, dx: Rows, working: Rows) -> None:
    with strips(v, x, added, gradient, mix, dx, working) as (values, others, g, parts, out, again):
        of_gradient, of_sum, constant = (parts.load(part) for part in range(3))
        with pixels(v, x) as pixel:
            total = v.builder.fadd(values.load(pixel), others.load(pixel))
            value = v.fma(of_gradient, g.load(pixel), v.fma(of_sum, total, constant))
            out.store(value, pixel)
            again.store(value, pixel)


@vector_code
def _gelu_row(v: Vectors, x: Rows, bias: Rows, result: Rows) -> None:
    with strips(v, x, bias, result) as (values, added, out):
        start = added.load(0)
        with pixels(v, x) as pixel:
            out.store(v.gelu(v.builder.fadd(values.load(pixel), start)), pixel)


@vector_code
def _gelu_slope_row(v: Vectors, x: Rows, bias: Rows, result: Rows, slopes: Rows) -> None:
    with strips(v, x, bias, result, slopes) as (values, added, out, rise):
        start = added.load(0)
        with pixels(v, x) as pixel:
            value, slope = v.gelu_and_slope(v.builder.fadd(values.load(pixel), start))
            out.store(value, pixel)
            rise.store(slope, pixel)


@vector_code
def _convolve5_gelu_row(
    v: Vectors,
    convolved: Rows,
    x0: Rows,
    x1: Rows,
    x2: Rows,
    x3: Rows,
    x4: Rows,
    weight: Rows,
    bias: Rows,
    result: Rows,
) -> None:
    b = v.builder
    with strips(v, convolved, x0, x1, x2, x3, x4, weight, bias, result) as (kept, *rows, taps, shift, out):

        def body(pixel: Any, value: Any) -> None:
            kept.store(value, pixel)
            out.store(b.fadd(v.gelu(value), rows[2].load(b.add(pixel, I64(2)))), pixel)

        windows5(v, rows, taps, shift.load(0), convolved.count, body)


@vector_code
def _gelu_back_row(v: Vectors, x: Rows, gradient: Rows, dx: Rows, sums: Rows) -> None:
    with strips(v, x, gradient, dx, sums) as (values, g, out, found):
        total = Total(v)
        with pixels(v, x) as pixel:
            value = v.builder.fmul(g.load(pixel), v.gelu_and_slope(values.load(pixel))[1])
            out.store(value, pixel)
            total.add(value)
        found.add(total.value(), 0)


@vector_code
def _taps5_row(v: Vectors, gradient: Rows, x0: Rows, x1: Rows, x2: Rows, x3: Rows, x4: Rows, sums: Rows) -> None:
    b = v.builder
    with strips(v, gradient, x0, x1, x2, x3, x4, sums) as (g, *rows, found):
        for row, values in enumerate(rows):
            totals = [Total(v) for _ in range(5)]
            with pixels(v, gradient) as pixel:
                gradient_here = g.load(pixel)
                for column, total in enumerate(totals):
                    total.add_product(gradient_here, values.load(b.add(pixel, I64(column))))
            for column, total in enumerate(totals):
                found.add(total.value(), 5 * row + column)


@vector_code
def _feed_back_row(
    v: Vectors,
    gradient: Rows,
    y0: Rows,
    y1: Rows,
    y2: Rows,
    y3: Rows,
    y4: Rows,
    turned: Rows,
    slopes: Rows,
    dx: Rows,
    sums: Rows,
) -> None:
    b = v.builder
    with strips(v, gradient, y0, y1, y2, y3, y4, turned, slopes, dx, sums) as (g, *rows, taps, slope, out, found):
        total = Total(v)

        def body(pixel: Any, value: Any) -> None:
            value = b.fmul(b.fadd(value, g.load(pixel)), slope.load(pixel))
            out.store(value, pixel)
            total.add(value)

        windows5(v, rows, taps, v.constant(0), gradient.count, body)
        found.add(total.value(), 0)


# Kernels

_KERNELS: dict[str, tuple[Callable[..., None], str]] = {}


def _kernel(arguments: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a kernel in the table. arguments: after first and last, the type and the axes of each array: w working,
    f float32, d float64."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        _KERNELS[function.__name__] = under_the_name_of_this_version(function, EPS), arguments
        return function

    return enter


def start() -> None:
    """Compile a kernel, or load it from numba's cache. Raises whatever stands in the way."""
    kernel("normalise", half=False)


@cache
def kernel(name: str, half: bool) -> Callable[..., None]:
    """A kernel for working maps in bfloat16, or in float32; compiled when first asked for, or loaded from the cache.

    It has one signature, of arrays with any strides: whatever views it meets, nothing is compiled again.
    """
    function, arguments = _KERNELS[name]
    dtypes = {"w": types.uint16 if half else types.float32, "f": types.float32, "d": types.float64}
    arrays = [types.Array(dtypes[argument[0]], int(argument[1]), "A") for argument in arguments.split()]
    signature = types.void(types.int64, types.int64, *arrays)
    return load(function, signature)


@_kernel("f4 f2 w4")
def normalise(first, last, x, affine, result):  # type: ignore[no-untyped-def]
    """Layer normalisation over channels. affine: (2, C), scale and shift."""
    for b in range(first, last):
        for i in range(x.shape[1]):
            _normalise_row(x[b, i], affine, result[b, i])


@_kernel("f4 f2 w4 f4 f4 d3")
def normalise_back(first, last, x, affine, gradient, direct, dx, totals):  # type: ignore[no-untyped-def]
    """dx = direct + the gradient of `normalise`. totals: (B, 2, C), of scale and shift."""
    sums = np.empty((2, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(x.shape[1]):
            sums[:] = 0
            _normalise_back_row(x[b, i], affine, gradient[b, i], direct[b, i], dx[b, i], sums)
            totals[b] += sums


@_kernel("f4 f2 w4 w4")
def gate(first, last, x, affine, z, result):  # type: ignore[no-untyped-def]
    """Layer normalisation over channels, times SiLU(z)."""
    for b in range(first, last):
        for i in range(x.shape[1]):
            _gate_row(x[b, i], affine, z[b, i], result[b, i])


@_kernel("f4 f2 w4 w4 w4 f4 d3")
def gate_back(first, last, x, affine, z, gradient, dz, dx, totals):  # type: ignore[no-untyped-def]
    """The gradients of `gate`. totals: (B, 2, C), of scale and shift."""
    sums = np.empty((2, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(x.shape[1]):
            sums[:] = 0
            _gate_back_row(x[b, i], affine, z[b, i], gradient[b, i], dz[b, i], dx[b, i], sums)
            totals[b] += sums


@_kernel("w4 w2 f2 d3")
def moments(first, last, x, nothing, weight, totals):  # type: ignore[no-untyped-def]
    """Sums of y, y^2, x, x^2 and x y with y the depthwise 3x3 convolution of x: totals (B, 5, C).

    weight: (9, C). nothing: a row of zeros, what is above the first row and below the last.
    """
    height, sums = x.shape[1], np.empty((5, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(height):
            above = x[b, i - 1] if i > 0 else nothing
            below = x[b, i + 1] if i < height - 1 else nothing
            sums[:] = 0
            _moments_row(above, x[b, i], below, weight, sums)
            totals[b] += sums


@_kernel("w4 w2 f2 f2 f4")
def convolve(first, last, x, nothing, weight, bias, result):  # type: ignore[no-untyped-def]
    """A depthwise 3x3 convolution. weight: (9, C).  bias: (1, C).  nothing: see `moments`."""
    height = x.shape[1]
    for b in range(first, last):
        for i in range(height):
            above = x[b, i - 1] if i > 0 else nothing
            below = x[b, i + 1] if i < height - 1 else nothing
            _convolve_row(above, x[b, i], below, weight, bias, result[b, i])


@_kernel("w4 w2 f2 f2 f4")
def convolve_silu(first, last, x, nothing, weight, bias, result):  # type: ignore[no-untyped-def]
    """SiLU of `convolve`."""
    height = x.shape[1]
    for b in range(first, last):
        for i in range(height):
            above = x[b, i - 1] if i > 0 else nothing
            below = x[b, i + 1] if i < height - 1 else nothing
            _convolve_silu_row(above, x[b, i], below, weight, bias, result[b, i])


@_kernel("w4 w2 f2 f4 d3")
def gradient_sums(first, last, x, nothing, weight, gradient, totals):  # type: ignore[no-untyped-def]
    """Sums of g, g y and g x, of the gradient g: totals (B, 3, C). The others as in `moments`."""
    height, sums = x.shape[1], np.empty((3, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(height):
            above = x[b, i - 1] if i > 0 else nothing
            below = x[b, i + 1] if i < height - 1 else nothing
            sums[:] = 0
            _gradient_sums_row(above, x[b, i], below, weight, gradient[b, i], sums)
            totals[b] += sums


@_kernel("w4 w2 f2 f2 f4 f4 f4 d3")
def silu_gradient_sums(first, last, x, nothing, weight, mix, gradient, dpooled, before, totals):  # type: ignore[no-untyped-def]
    """As `gradient_sums`, of the gradient before the SiLU, which `before` takes.

    The gradient after it is `gradient`, and for the first half of the channels that of `pool` besides.
    mix: (3, C), what y, x and 1 have to be multiplied by to give what the SiLU was given.
    """
    _, height, width, channels = x.shape
    half = channels // 2
    sums, after = np.empty((3, channels), np.float32), np.empty((width, half), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(height):
            above = x[b, i - 1] if i > 0 else nothing
            below = x[b, i + 1] if i < height - 1 else nothing
            _unpool_row(dpooled[b, i // 2], gradient[b, i, :, :half], after)
            sums[:] = 0
            _silu_gradient_sums_row(
                above[:, :half], x[b, i, :, :half], below[:, :half], weight[:, :half], mix[:, :half],
                after, before[b, i, :, :half], sums[:, :half],
            )  # fmt: skip
            _silu_gradient_sums_row(
                above[:, half:], x[b, i, :, half:], below[:, half:], weight[:, half:], mix[:, half:],
                gradient[b, i, :, half:], before[b, i, :, half:], sums[:, half:],
            )  # fmt: skip
            totals[b] += sums


@_kernel("w4 w2 f2 f4 f2 w4 d3")
def branches_back(first, last, x, nothing, weight, gradient, mix, dx, taps):  # type: ignore[no-untyped-def]
    """From the gradient g of RepConv's result those of x and of the 3x3 weights: taps (B, 9, C).

    mix: (8, C), what g, y, x and 1 have to be multiplied by to give dy, and to give what x gets past the 3x3
    convolution. dx may lie where the gradient does: a row of it is written when the rows around it were read.
    """
    _, height, width, channels = x.shape
    turned = weight[::-1].copy()
    branch, direct = np.empty((3, width, channels), np.float32), np.empty((2, width, channels), np.float32)
    edge, sums = np.zeros((width, channels), np.float32), np.empty((9, channels), np.float32)
    for b in range(first, last):
        taps[b] = 0
        for i in range(height + 1):
            if i < height:
                above = x[b, i - 1] if i > 0 else nothing
                below = x[b, i + 1] if i < height - 1 else nothing
                sums[:] = 0
                _branches_back_row(
                    above, x[b, i], below, weight, gradient[b, i], mix, branch[i % 3], direct[i % 2], sums
                )
                taps[b] += sums
            if i > 0:
                before = branch[(i - 2) % 3] if i > 1 else edge
                after = branch[i % 3] if i < height else edge
                _transposed_row(before, branch[(i - 1) % 3], after, turned, direct[(i - 1) % 2], dx[b, i - 1])


@_kernel("f4 f4")
def pool(first, last, x, pooled):  # type: ignore[no-untyped-def]
    """Means of two by two."""
    for b in range(first, last):
        for i in range(pooled.shape[1]):
            _pool_row(x[b, 2 * i], x[b, 2 * i + 1], pooled[b, i])


@_kernel("f4 f4 f4 f4")
def merge(first, last, scanned, pooled, x, result):  # type: ignore[no-untyped-def]
    """scanned enlarged bilinearly + (x - pooled enlarged by repeating)."""
    for b in range(first, last):
        for i in range(x.shape[1]):
            near = i // 2
            far = max(near - 1, 0) if i % 2 == 0 else min(near + 1, scanned.shape[1] - 1)
            _merge_row(scanned[b, near], scanned[b, far], pooled[b, near], x[b, i], result[b, i])


@_kernel("f4 f4 f4")
def merge_back(first, last, gradient, dscanned, dpooled):  # type: ignore[no-untyped-def]
    """The gradients of `merge` for scanned and pooled; that of x is the gradient itself."""
    last_row = gradient.shape[1] - 1
    for b in range(first, last):
        for i in range(dscanned.shape[1]):
            above, below = max(2 * i - 1, 0), min(2 * i + 2, last_row)
            _merge_back_row(
                dscanned[b, i],
                dpooled[b, i],
                gradient[b, above],
                gradient[b, 2 * i],
                gradient[b, 2 * i + 1],
                gradient[b, below],
            )


@_kernel("f4 w4 d3")
def sum_moments(first, last, x, added, totals):  # type: ignore[no-untyped-def]
    """Sums of r and r^2, r = x + added: totals (B, 2, C)."""
    sums = np.empty((2, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(x.shape[1]):
            sums[:] = 0
            _sum_moments_row(x[b, i], added[b, i], sums)
            totals[b] += sums


@_kernel("f4 w4 f2 f4")
def sum_scale(first, last, x, added, affine, result):  # type: ignore[no-untyped-def]
    """(x + added) times a scale, plus a shift: affine (2, C)."""
    for b in range(first, last):
        for i in range(x.shape[1]):
            _sum_scale_row(x[b, i], added[b, i], affine, result[b, i])


@_kernel("f4 w4 f4 d3")
def sum_gradient_sums(first, last, x, added, gradient, totals):  # type: ignore[no-untyped-def]
    """Sums of g and g r, r = x + added: totals (B, 2, C)."""
    sums = np.empty((2, x.shape[3]), np.float32)
    for b in range(first, last):
        totals[b] = 0
        for i in range(x.shape[1]):
            sums[:] = 0
            _sum_gradient_sums_row(x[b, i], added[b, i], gradient[b, i], sums)
            totals[b] += sums


@_kernel("f4 w4 f4 f2 f4 w4")
def sum_back(first, last, x, added, gradient, mix, dx, working):  # type: ignore[no-untyped-def]
    """mix (3, C) of g, r and 1, r = x + added, as dx and once more as a working map."""
    for b in range(first, last):
        for i in range(x.shape[1]):
            _sum_back_row(x[b, i], added[b, i], gradient[b, i], mix, dx[b, i], working[b, i])


@_kernel("w4 f2 f2 f2 w4 w4")
def feed(first, last, x, before, weight, bias, convolved, result):  # type: ignore[no-untyped-def]
    """h + GELU(c), c a depthwise 5x5 convolution of h = GELU(x + before); c is kept for the way back.

    before, bias: (1, C).  weight: (25, C).
    """
    _, height, width, channels = x.shape
    h, edge = np.zeros((5, width + 4, channels), np.float32), np.zeros((width + 4, channels), np.float32)
    for b in range(first, last):
        for i in range(height + 2):
            if i < height:
                _gelu_row(x[b, i], before, h[i % 5, 2:-2])
            k = i - 2
            if k >= 0:
                _convolve5_gelu_row(
                    convolved[b, k],
                    h[(k - 2) % 5] if k > 1 else edge,
                    h[(k - 1) % 5] if k > 0 else edge,
                    h[k % 5],
                    h[(k + 1) % 5] if k < height - 1 else edge,
                    h[(k + 2) % 5] if k < height - 2 else edge,
                    weight, bias, result[b, k],
                )  # fmt: skip


@_kernel("w4 f2 f2 w4 w4 w4 d3 d3")
def feed_back(first, last, x, before, weight, convolved, gradient, dx, taps, totals):  # type: ignore[no-untyped-def]
    """The gradients of `feed`. taps: (B, 25, C), of the weight.  totals: (B, 2, C), of bias and before."""
    _, height, width, channels = x.shape
    turned = weight[::-1].copy()
    h, dc = np.zeros((5, width + 4, channels), np.float32), np.zeros((5, width + 4, channels), np.float32)
    slopes, edge = np.empty((5, width, channels), np.float32), np.zeros((width + 4, channels), np.float32)
    sums, found = np.empty((2, channels), np.float32), np.empty((25, channels), np.float32)
    for b in range(first, last):
        taps[b] = 0
        totals[b] = 0
        for i in range(height + 2):
            sums[:] = 0
            if i < height:
                _gelu_slope_row(x[b, i], before, h[i % 5, 2:-2], slopes[i % 5])
                _gelu_back_row(convolved[b, i], gradient[b, i], dc[i % 5, 2:-2], sums[:1])
            k = i - 2
            if k >= 0:
                up2, up1 = (k - 2) % 5, (k - 1) % 5
                down1, down2 = (k + 1) % 5, (k + 2) % 5
                found[:] = 0
                _taps5_row(
                    dc[k % 5, 2:-2],
                    h[up2] if k > 1 else edge,
                    h[up1] if k > 0 else edge,
                    h[k % 5],
                    h[down1] if k < height - 1 else edge,
                    h[down2] if k < height - 2 else edge,
                    found,
                )
                taps[b] += found
                _feed_back_row(
                    gradient[b, k],
                    dc[up2] if k > 1 else edge,
                    dc[up1] if k > 0 else edge,
                    dc[k % 5],
                    dc[down1] if k < height - 1 else edge,
                    dc[down2] if k < height - 2 else edge,
                    turned, slopes[k % 5], dx[b, k], sums[1:],
                )  # fmt: skip
            totals[b] += sums
