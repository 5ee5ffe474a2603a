"""PassPlan: the passes of the fused network over inputs of one shape, and their maps.

A plan holds the addresses of everything that the kernels read and write, so that running it is one
call into the library per thread (kernels/plan.cpp). Only one call can run it at a time.
"""

import ctypes
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repmamba.inference.packed_weights import Array, Block, Fields, Layers, RMBWeights, empty
from repmamba.kernels.library import fields, library
from repmamba.network.config import SPLIT
from repmamba.scan.directions import visits
from repmamba.scan.native_cpu import map_pass
from repmamba.scan.threads import in_another

WORK_FOR_THREADS = 1 << 12  # numbers in a map below which a second thread costs more than it saves


def _structure(names: str) -> type[ctypes.Structure]:
    """A struct of kernels/inference.h."""
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields(names)})


# arguments of each kernel over rows, by its name without the suffix of an arithmetic
ARGUMENTS = {
    "first_convolution": _structure(
        "height width inputs outputs *x *edge *weight *bias *scale *shift *result *normalised"
    ),
    "front": _structure(
        "height width channels *v v_stride *in_x *in_x_bias *conv *conv_bias *high_conv *high_bias "
        "*x_proj projections *halves *pooled *projected"
    ),
    "tail": _structure(
        "height width channels *v v_stride *in_z *in_z_bias *scanned *halves *out_scale *out_shift "
        "*out_proj *out_bias *gain *beside beside_stride beside_channels *result result_stride"
    ),
    "feed_forward": _structure(
        "height width channels hidden *t *c *fc1 *fc1_bias *conv *conv_bias *fc2 *fc2_bias *result"
    ),
    "convolution": _structure(
        "height width inputs outputs *x norm *norm_scale *norm_shift *edge *weight *bias *skip "
        "%slope *result *shuffled bands scale"
    ),
}

COUNTERS = 16  # int64 numbers per kernel call, as in plan.cpp
_STAGE = np.dtype([("kernel", "u8"), ("units", "i8"), ("shares", "i8"), ("arguments", "u8")])


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel over `units` pieces of work, in shares that threads take one after the other."""

    kernel: str
    units: int
    shares: int
    arguments: ctypes.Structure
    scratch: int  # float32 numbers per thread


class PassPlan:
    """Planned when it is made. key: (batch, bands, rows, columns, threads)."""

    def __init__(self, layers: Layers, key: tuple[int, ...]) -> None:
        self.key = key
        self.batch, bands, rows, columns, self.threads = key
        self.height, self.width = rows + rows % 2, columns + columns % 2
        self.pixels = self.batch * self.height * self.width
        self.maps: list[Array] = []
        self.stages: list[KernelCall] = []
        self._layers, self._free = layers, dict[tuple[int, int], list[Array]]()
        # kept alive: the scans hold its address
        self._visits = visits(self.height // 2, self.width // 2)
        self.image = self._map(bands)
        self.deep = self._write(layers)
        self._table = np.zeros(len(self.stages), _STAGE)
        for row, stage in enumerate(self.stages):
            address = library().address(stage.kernel)
            self._table[row] = address, stage.units, stage.shares, ctypes.addressof(stage.arguments)

    def run(self, image: Tensor) -> Tensor:
        """Run all passes; with an upsampler other than the direct one, all before the upsampler.

        image: of the key's shape -> (B, bands, scale H', scale W') or (B, 64, H', W'), H' and W'
        even.
        """
        rows, columns = image.shape[2:]
        seen = self.image.reshape(self.batch, self.height, self.width, -1)
        seen[:, :rows, :columns] = image.resolve_neg().permute(0, 2, 3, 1).numpy()
        seen[:, rows:, :columns] = seen[:, rows - 1 : rows, :columns]
        seen[:, :, columns:] = seen[:, :, columns - 1 : columns]
        if self.deep is not None:
            shape = self.batch, self.height, self.width, self.deep.shape[1]
            result = torch.empty(shape, dtype=torch.float32, device="cpu")
            self.compute(0, len(self.stages))
            result.numpy()[:] = self.deep.reshape(result.shape)
            return result.permute(0, 3, 1, 2)
        scale = self._layers.scale
        shape = self.batch, self._layers.bands, scale * self.height, scale * self.width
        result = torch.empty(shape, dtype=torch.float32, device="cpu")
        self.stages[-1].arguments.shuffled = result.data_ptr()
        self.compute(0, len(self.stages), result)
        return result

    def compute(self, first: int, last: int, *kept: object) -> None:
        """Run the kernel calls first .. last - 1, in this thread and others of the process."""
        stages = self._table[first:last]
        counters = empty(2 * COUNTERS * len(stages)).view(np.int64)
        counters[:] = 0
        size = max(stage.scratch for stage in self.stages)
        take_part = library().handle.take_part

        def share() -> None:
            # What the kernels read and write lives as long as this function, which a thread may
            # call late: it finds nothing to do then, yet looks at the stages and counters.
            _ = self, kept
            scratch = _scratch(size).ctypes.data
            take_part(stages.ctypes.data, len(stages), counters.ctypes.data, scratch)

        for _ in range(int(stages["shares"].max()) - 1):
            in_another(share)
        share()

    @property
    def numbers(self) -> int:
        """How many numbers all maps have."""
        return sum(each.size for each in self.maps)

    def _map(self, channels: int, pixels: int | None = None) -> Array:
        """An uninitialised map of all pixels, or of `pixels`."""
        pixels = self.pixels if pixels is None else pixels
        free = self._free.setdefault((pixels, channels), [])
        if free:
            return free.pop()
        self.maps.append(empty(pixels * channels).reshape(pixels, channels))
        return self.maps[-1]

    def _release(self, *maps: Array) -> None:
        """Let later passes reuse these maps."""
        for each in maps:
            self._free[each.shape[0], each.shape[1]].append(each)

    def _write(self, layers: Layers) -> Array | None:
        """Plan all passes; returns the map for the upsampler unless that is planned too."""
        width: int = layers.first["outputs"]
        shallow = deep = self._map(width)
        fields = {"x": self.image, "result": shallow}
        if "scale" in layers.first:
            fields["normalised"] = deep = self._map(width)
        self._over_rows("first_convolution", width, layers.first | fields)
        for blocks, connection in layers.groups:
            body = deep
            for block in blocks:
                before, body = body, self._block(block, body)
                if before is not deep:
                    self._release(before)
            before, deep = deep, self._convolutions(connection, body, deep)
            self._release(body)
            if before is not shallow:
                self._release(before)
        deep = self._convolutions(layers.end, deep, shallow)
        if (last := layers.shuffled) is None:
            return deep
        self._over_rows(last["kernel"], last["outputs"], last | {"x": deep})
        return None

    def _convolutions(self, connection: list[Fields], x: Array, skip: Array) -> Array:
        """One or several convolutions + skip."""
        for convolution in connection:
            result = self._map(convolution["outputs"])
            fields = {"x": x, "result": result}
            if convolution is connection[-1]:
                fields["skip"] = skip
            self._over_rows(convolution["kernel"], result.shape[1], convolution | fields)
            x = result
        return x

    def _block(self, block: Block, t: Array) -> Array:
        """An LPFM."""
        shares = np.split(t, np.cumsum(SPLIT)[:-1], axis=1)
        if block.chained:
            v, fresh = shares[0], list[Array]()
            for rmb, beside in zip(block.rmbs[:-1], shares[1:], strict=True):
                fresh.append(self._map(v.shape[1] + beside.shape[1]))
                self._rmb(rmb, v, fresh[-1], beside)
                v = fresh[-1]
            self._release(*fresh[:-1])
            self._rmb(block.rmbs[-1], v, v)
        else:
            v = self._map(t.shape[1])
            places = np.split(v, np.cumsum(SPLIT)[:-1], axis=1)
            for rmb, share, place in zip(block.rmbs, shares, places, strict=True):
                self._rmb(rmb, share, place)
        result = self._map(t.shape[1])
        fields = {"t": t, "c": v, "result": result}
        kernel = "feed_forward" + self._layers.suffix
        self._over_rows(kernel, t.shape[1], block.feed_forward | fields)
        self._release(v)
        return result

    def _rmb(self, rmb: RMBWeights, v: Array, result: Array, beside: Array | None = None) -> None:
        """A folded RMB into result, which may be v, followed by the channels of `beside`."""
        C, quarter, suffix = rmb.width, self.pixels // 4, self._layers.suffix
        halves = self._map(C if suffix else 2 * C)
        pooled, projected = self._map(C, quarter), self._map(rmb.projections, quarter)
        scanned = self._map(C, 2 * quarter)
        fields = {"channels": C, "v": v, "v_stride": _stride(v), "halves": halves}
        outputs = {"pooled": pooled, "projected": projected}
        self._over_rows("front" + suffix, C, rmb.front | fields | outputs)
        self._scan(rmb, pooled, projected, scanned)
        fields |= {"scanned": scanned, "result": result, "result_stride": _stride(result)}
        if beside is not None:
            fields |= {"beside": beside, "beside_stride": _stride(beside)}
            fields["beside_channels"] = beside.shape[1]
        self._over_rows("tail" + suffix, C, rmb.tail | fields)
        self._release(halves, pooled, projected, scanned)

    def _over_rows(self, kernel: str, channels: int, fields: Fields) -> None:
        """A pass over all pairs of rows."""
        arguments = ARGUMENTS[kernel.removesuffix("_pairs").removesuffix("_amx")]()
        for name, value in (fields | {"height": self.height, "width": self.width}).items():
            if name != "kernel":
                is_map = isinstance(value, np.ndarray)
                setattr(arguments, name, value.ctypes.data if is_map else value)
        scratch = library().scratch(kernel, arguments)
        self._add(kernel, self.batch * self.height // 2, channels, arguments, scratch)

    def _scan(self, rmb: RMBWeights, pooled: Array, projected: Array, scanned: Array) -> None:
        p, rows = torch.from_numpy(pooled), torch.from_numpy(projected)
        y = torch.from_numpy(scanned).view(self.batch, 2, -1, rmb.width)
        dt_weight, dt_bias, A, D = rmb.scan
        height, width = self.height // 2, self.width // 2
        arguments, units, scratch = map_pass(p, rows, height, width, dt_weight, dt_bias, A, D, y)
        self._add("scan_forward", units, rmb.width, arguments, scratch)

    def _add(
        self, kernel: str, units: int, channels: int, arguments: ctypes.Structure, scratch: int
    ) -> None:
        shares = min(self.threads, units) if self.pixels * channels >= WORK_FOR_THREADS else 1
        self.stages.append(KernelCall(kernel, units, shares, arguments, scratch))


def _stride(rows: Array) -> int:
    """Numbers from one pixel to the next."""
    return rows.strides[0] // rows.itemsize


_of_thread = threading.local()


def _scratch(count: int) -> Array:
    """Uninitialised memory of the calling thread, kept for later calls."""
    known: Array | None = getattr(_of_thread, "scratch", None)
    if known is None or known.size < count:
        known = _of_thread.scratch = empty(count)
    return known
