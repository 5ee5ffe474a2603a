"""Products of bfloat16 by AMX, whose instruction, of Intel's server processors, multiplies tiles of them.

A tile of factors is 16 rows of 32 numbers of bfloat16, one of weights 16 rows of 16 pairs of them, one of sums 16 rows
of 16 float32: 16 x 16 x 32 products in 16 cycles, sixteen times as many as a core makes of float32. So a product costs
what its factors take to be rounded and its sums to be read, and a 3x3 convolution is the plain one: sums over nine
pixels cost less than Winograd's transforms.

The registers are set up where code begins and given back where it ends: what else uses them in the same thread, torch
say, sets up its own. Linux gives them to a process that asks.
"""

import ctypes
import hashlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from repmamba.scan.vector_code import (
    F32,
    FEATURES,
    HAS_PAIRS,
    I64,
    Rows,
    Vectors,
    counting,
    element_of,
    whole_vector_code,
)

TILE = 16
"""Rows of a tile, and numbers as wide as one of its rows: float32, or pairs of bfloat16."""

SIDE = 2
"""Tiles of sums beside and above each other: what is loaded of factors and of weights serves so many."""

BLOCK = SIDE * TILE
"""Rows that are computed at once."""

BEHIND = BLOCK - 1
"""Pixels behind a row that its last block may read, and does not use."""

FACTORS, WEIGHTS = (4, 5), (6, 7)
"""Registers of tiles; the first four are of sums, row by row."""

MOST_INPUTS = 512
"""Inputs of a product: its factors, rounded, lie on the stack."""

_SHAPES = bytes([1, *[0] * 15, *[4 * TILE, 0] * 8, *[0] * 16, *[TILE] * 8, *[0] * 8])
"""Of all eight registers, as the processor wants to be told: palette 1, 64 bytes a row, 16 rows."""

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18  # of Linux on x86-64


def _granted() -> bool:
    """Whether the system lets this process use the registers of tiles; it has to be asked."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    refusal: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return refusal == 0


HAS_AMX = HAS_PAIRS and {"+amx-tile", "+amx-bf16"} <= set(FEATURES) and _granted()
"""Whether products of tiles are an instruction that this process may use."""

AMX_VERSION = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=4).hexdigest(), HAS_AMX
"""What the names of kernels with this code carry, beside what they carry for vector code."""

Finish = Callable[[Any, int, Any], None]


class _Tiles:
    """Writes the sums of products of rows of factors with a matrix of weights, (inputs / 2, outputs) in pairs."""

    def __init__(self, v: Vectors, weight: Rows, apart: Any) -> None:
        """apart: bytes from the factors of a row to those of the next one."""
        self.v, self.weight, self.apart = v, weight, apart
        self.sums = self.scratch(BLOCK * BLOCK)
        shapes = cgutils.global_constant(v.builder, "shapes_of_tiles", cgutils.make_bytearray(_SHAPES))
        self._do("ldtilecfg", shapes)

    def scratch(self, numbers: int) -> Any:
        """The address of so many float32 on the stack."""
        place = cgutils.alloca_once(self.v.builder, ir.ArrayType(F32, numbers))
        return self.v.builder.bitcast(place, F32.as_pointer())

    def release(self) -> None:
        """Give the registers back."""
        self._do("tilerelease")

    def blocks(self, count: Any) -> Any:
        """A loop over blocks of rows."""
        b = self.v.builder
        return counting(b, b.udiv(b.add(count, I64(BLOCK - 1)), I64(BLOCK)))

    def rows_of(self, block: Any, count: Any) -> tuple[Any, Any]:
        """The first row of a block, and how many it has: the last one what is left."""
        b = self.v.builder
        first = b.mul(block, I64(BLOCK))
        left = b.sub(count, first)
        return first, b.select(b.icmp_signed("<", left, I64(BLOCK)), left, I64(BLOCK))

    def of_all_outputs(self, outputs: Any, write: Callable[[Any, int], None]) -> None:
        """write(first output, tiles side by side) for a multiple of 16 outputs."""
        b = self.v.builder
        with counting(b, b.udiv(outputs, I64(SIDE * TILE))) as strip:
            write(b.mul(strip, I64(SIDE * TILE)), SIDE)
        left = b.urem(outputs, I64(SIDE * TILE))
        with b.if_then(b.icmp_signed(">", left, I64(0))):
            write(b.sub(outputs, left), 1)

    def clear(self, columns: int) -> None:
        """Begin sums of so many tiles side by side."""
        for row in range(SIDE):
            for column in range(columns):
                self._do("tilezero", SIDE * row + column)

    def add_products(self, factors: Any, line: Any, pieces: Any, first: Any, columns: int) -> None:
        """Add the products of 32 factors a piece, from an address on, with the weights from row `line` on."""
        b = self.v.builder
        with counting(b, pieces) as piece:
            begin = b.mul(piece, I64(TILE))
            upper = b.bitcast(element_of(b, factors, begin), cgutils.voidptr_t)
            for row in range(SIDE):
                self._do("tileloadd64", FACTORS[row], b.gep(upper, [b.mul(self.apart, I64(row * TILE))]), self.apart)
            weights = self.weight.at(b.add(line, begin), first)
            for column in range(columns):
                place = element_of(b, weights, column * TILE)
                self._do("tileloadd64", WEIGHTS[column], place, self.weight.stride)
            for row in range(SIDE):
                for column in range(columns):
                    self._do("tdpbf16ps", SIDE * row + column, FACTORS[row], WEIGHTS[column])

    def each_sum(self, rows: Any, columns: int, finish: Finish) -> None:
        """finish(row, tile, vector) for all sums of so many rows."""
        b = self.v.builder
        for row in range(SIDE):
            for column in range(columns):
                place = element_of(b, self.sums, row * TILE * BLOCK + column * TILE)
                self._do("tilestored64", SIDE * row + column, place, I64(4 * BLOCK))
        with counting(b, rows) as row:
            line = element_of(b, self.sums, b.mul(row, I64(BLOCK)))
            for column in range(columns):
                finish(row, column, self.v.load(element_of(b, line, column * TILE)))

    def _do(self, name: str, *arguments: Any) -> None:
        """An instruction: of registers by their numbers, addresses, and bytes from row to row."""
        b = self.v.builder
        values = []
        for argument in arguments:
            if isinstance(argument, int):
                values.append(ir.IntType(8)(argument))
            elif isinstance(argument.type, ir.PointerType):
                values.append(b.bitcast(argument, cgutils.voidptr_t))
            else:
                values.append(argument)
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.{name}"), values)


def product_code_of_amx(start_from: str, activation: Callable[[Vectors, Any], Any], *, gate: bool = False) -> Any:
    """What `inference_numba._product_code` says, of pairs, by tiles; at most MOST_INPUTS."""

    @whole_vector_code
    def product(v: Vectors, count: Any, x: Rows, weight: Rows, outputs: Any, bias: Rows, result: Rows) -> None:
        b = v.builder
        tiles = _Tiles(v, weight, b.mul(weight.count, I64(4)))
        pieces, rounded = b.udiv(weight.count, I64(TILE)), tiles.scratch(BLOCK * MOST_INPUTS // 2)

        with tiles.blocks(count) as block:
            first_row, rows = tiles.rows_of(block, count)
            with counting(b, rows) as row, counting(b, pieces) as piece:
                low = x.at(b.add(first_row, row), b.mul(piece, I64(2 * TILE)))
                both = v.to_pairs(v.load(low), v.load(element_of(b, low, TILE)))
                v.store(both, element_of(b, rounded, b.add(b.mul(row, weight.count), b.mul(piece, I64(TILE)))))

            def write(first: Any, columns: int) -> None:
                tiles.clear(columns)
                tiles.add_products(rounded, I64(0), pieces, first, columns)
                biases = _biases(v, bias, first, columns) if start_from == "bias" else []

                def finish(row: Any, column: int, value: Any) -> None:
                    place = element_of(b, result.at(b.add(first_row, row), first), column * TILE)
                    value = activation(v, b.fadd(value, biases[column]) if biases else value)
                    v.store(b.fmul(v.load(place), value) if gate else value, place)

                tiles.each_sum(rows, columns, finish)

            tiles.of_all_outputs(outputs, write)
        tiles.release()

    return product


@whole_vector_code
def convolution_row_of_amx(
    v: Vectors,
    count: Any,
    x0: Rows,
    x1: Rows,
    x2: Rows,
    weight: Rows,
    outputs: Any,
    bias: Rows,
    skip: Rows,
    slope: Any,
    result: Rows,
) -> None:
    """A row of a 3x3 convolution + bias + skip, times the slope below zero, of `count` pixels.

    x0, x1, x2: three rows of pixels in pairs, (count + 2 + BEHIND, inputs / 2).  weight: (9 inputs / 2, outputs), by
    row and column of the window, in pairs.  skip, result: (count, outputs).
    """
    b, x = v.builder, (x0, x1, x2)
    tiles, pieces, below = _Tiles(v, weight, x0.stride), b.udiv(x0.width, I64(TILE)), v.everywhere(slope)

    with tiles.blocks(count) as block:
        first_pixel, pixels = tiles.rows_of(block, count)

        def write(first: Any, columns: int) -> None:
            tiles.clear(columns)
            for row in range(3):
                with counting(b, I64(3)) as column:
                    line = b.mul(b.add(I64(3 * row), column), x0.width)
                    tiles.add_products(x[row].at(b.add(first_pixel, column)), line, pieces, first, columns)
            biases = _biases(v, bias, first, columns)

            def finish(row: Any, column: int, value: Any) -> None:
                pixel = b.add(first_pixel, row)
                total = b.fadd(value, biases[column])
                total = b.fadd(total, v.load(element_of(b, skip.at(pixel, first), column * TILE)))
                positive = b.fcmp_ordered(">", total, v.constant(0))
                total = b.select(positive, total, b.fmul(total, below))
                v.store(total, element_of(b, result.at(pixel, first), column * TILE))

            tiles.each_sum(pixels, columns, finish)

        tiles.of_all_outputs(outputs, write)
    tiles.release()


def _biases(v: Vectors, bias: Rows, first: Any, columns: int) -> list[Any]:
    """A register for each of so many tiles."""
    return [v.load(element_of(v.builder, bias.at(0, first), column * TILE)) for column in range(columns)]
