"""The stock: decoded training images, and how a batch of patches is cut from them.

The pixels of all images lie in one long row, in memory, in a mapped file or on a GPU. Crops, flips
and transposes are index arithmetic and a batch is one gather, so no loader processes are needed.
Torch is imported where it is used.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repmamba.data.pairs import Pair, PairFiles, read_pairs
from repmamba.data.patches import Sample, counter_generator
from repmamba.durable import move_durable, sync_file, write_errors, write_synced
from repmamba.errors import ShapeMismatch, UsageError

if TYPE_CHECKING:
    import torch

# lr pixels around a patch that is degraded, so that blur sees its surroundings; cropped after
MARGIN = 8

# (hr (s h, s w, C) uint8, generator) -> lr (h, w, C) uint8
Degrade = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Row:
    """Images one after the other. starts, heights, widths: (images,)."""

    pixels: "torch.Tensor"  # (all pixels, C), on any device
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    def cut(
        self, samples: Sequence[Sample], rows: Iterable[int], cols: Iterable[int], size: int
    ) -> "torch.Tensor":
        """The patches (B, C, size, size) at these rows and columns, as stored, edges mirrored."""
        import torch

        images = [sample.image for sample in samples]
        flipped_rows = [sample.flipped_rows for sample in samples]
        flipped_cols = [sample.flipped_cols for sample in samples]
        row_indices = _line(rows, self.heights[images], flipped_rows, size)
        col_indices = _line(cols, self.widths[images], flipped_cols, size)
        # A transposed patch swaps the strides, not the pixels.
        transposed = np.array([sample.transposed for sample in samples])[:, None]
        down = row_indices * self.widths[images][:, None]
        outer = np.where(transposed, col_indices, down) + self.starts[images][:, None]
        inner = np.where(transposed, down, col_indices)
        device = self.pixels.device
        offsets = (
            torch.from_numpy(outer).to(device)[:, :, None]
            + torch.from_numpy(inner).to(device)[:, None, :]
        )
        patches = self.pixels.index_select(0, offsets.flatten())
        return patches.view(len(samples), size, size, -1).permute(0, 3, 1, 2)


class Stock:
    """The decoded training images, lr and hr."""

    def __init__(self, lr: Row, hr: Row, scale: int) -> None:
        self.lr = lr
        self.hr = hr
        self.scale = scale

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """lr height and width of each image."""
        return tuple(zip(self.lr.heights.tolist(), self.lr.widths.tolist(), strict=True))

    @property
    def device(self) -> "torch.device":
        """Where the pixels are, and where batches are made."""
        return self.lr.pixels.device

    def batch(
        self, samples: Sequence[Sample], size: int, *, seed: int = 0, degrade: Degrade | None = None
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Cut a batch.

        size: Their side, in lr pixels.  seed: For the random numbers of degrade.
        degrade: Makes lr from the hr patch, instead of the stored lr.
        Returns lr (B, C, size, size) and hr (B, C, s size, s size), float32 in [0, 1],
        channels-last.
        """
        s = self.scale
        rows, cols = [sample.row for sample in samples], [sample.col for sample in samples]
        hr = _unit(
            self.hr.cut(samples, [s * row for row in rows], [s * col for col in cols], s * size)
        )
        if degrade is None:
            return _unit(self.lr.cut(samples, rows, cols, size)), hr
        above, before = ([s * (first - MARGIN) for first in line] for line in (rows, cols))
        wide = self.hr.cut(samples, above, before, s * (size + 2 * MARGIN))
        return self._degraded(wide, samples, seed, degrade), hr

    def _degraded(
        self, wide: "torch.Tensor", samples: Sequence[Sample], seed: int, degrade: Degrade
    ) -> "torch.Tensor":
        import torch

        inner = slice(MARGIN, -MARGIN)
        patches = [
            degrade(
                patch.permute(1, 2, 0).cpu().numpy(),
                counter_generator(seed, sample.counter, purpose=1),
            )[inner, inner]
            for patch, sample in zip(wide, samples, strict=True)
        ]
        return _unit(torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).to(self.device))


def load_stock(
    files: Sequence[PairFiles],
    scale: int,
    *,
    cache: Path | None = None,
    device: "torch.device | None" = None,
    progress: Callable[[int, int], None] | None = None,
) -> Stock:
    """Decode images into a stock.

    scale: Their scale.
    cache: Folder for the decoded pixels, which are mapped. Later runs reuse it while names, sizes,
      times and reductions of the files are the same.
    device: Where to put the pixels; by default the CPU.
    progress: Called with the number of images decoded and the number of all, unless the cache has
      them.
    Raises ShapeMismatch, SourceError, UsageError: the images cannot be read or do not fit together;
    TargetError: the cache cannot be written; NoSpace if the disk is full.
    """
    if not files:
        raise UsageError("There are no images to train on; name folders that contain some.")
    if cache is None:
        stock = stock_of(read_pairs(files, scale, progress=progress), scale)
    else:
        stock = _mapped(files, scale, cache, progress)
    if device is None or device.type == "cpu":
        return stock
    return Stock(_moved(stock.lr, device), _moved(stock.hr, device), scale)


def stock_of(pairs: Iterable[Pair], scale: int) -> Stock:
    """The stock of pairs in memory, or from an iterator."""
    import torch

    lr, hr, index = bytearray(), bytearray(), _Index()
    for pair in pairs:
        index.add(pair)
        lr += _stored(pair.lr).tobytes()
        hr += _stored(pair.hr).tobytes()
    dtype = torch.uint8 if index.dtype == "uint8" else torch.float32
    return index.stock(torch.frombuffer(lr, dtype=dtype), torch.frombuffer(hr, dtype=dtype), scale)


def _mapped(
    files: Sequence[PairFiles], scale: int, cache: Path, progress: Callable[[int, int], None] | None
) -> Stock:
    """The stock in files of the cache folder, which are written if they are missing."""
    import torch

    stem = cache / _fingerprint(files, scale)
    lr_path, hr_path, index_path = (stem.with_suffix(f".{kind}") for kind in ("lr", "hr", "json"))
    if not all(path.is_file() for path in (lr_path, hr_path, index_path)):
        with write_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            _write_cache(
                read_pairs(files, scale, progress=progress), [lr_path, hr_path, index_path]
            )
    index = _Index(**json.loads(index_path.read_text()))
    # Copy-on-write, as torch requires writable memory; nothing is written.
    lr, hr = (
        torch.from_numpy(np.memmap(path, index.dtype, mode="c")) for path in (lr_path, hr_path)
    )
    return index.stock(lr, hr, scale)


def _write_cache(pairs: Iterable[Pair], paths: Sequence[Path]) -> None:
    """Write the pixels of lr and hr, and their index, under temporary names until complete."""
    parts = [path.with_name(f"{path.name}.{os.getpid()}.part") for path in paths]
    with ExitStack() as after:
        for part in parts:
            after.callback(part.unlink, missing_ok=True)
        index = _Index()
        with parts[0].open("wb") as lr_file, parts[1].open("wb") as hr_file:
            for pair in pairs:
                index.add(pair)
                lr_file.write(_stored(pair.lr).tobytes())
                hr_file.write(_stored(pair.hr).tobytes())
        for part in parts[:2]:
            sync_file(part)
        write_synced(parts[2], json.dumps(index.to_dict()).encode())
        # the index last: if it exists, the pixels are complete
        for part, path in zip(parts, paths, strict=True):
            move_durable(part, path, replace=True)


def _fingerprint(files: Sequence[PairFiles], scale: int) -> str:
    paths = [
        (path, one.reduction) for one in files for path in (one.hr, one.lr) if path is not None
    ]
    facts = [
        (
            str(path.resolve()),
            path.stat().st_size,
            path.stat().st_mtime_ns,
            *([share] if share != 1 else []),
        )
        for path, share in paths
    ]
    return hashlib.sha256(json.dumps([scale, facts]).encode()).hexdigest()[:16]


class _Index:
    """The position and size of each image of a stock while it is filled."""

    def __init__(
        self, sizes: Sequence[Sequence[int]] = (), scale: int = 0, bands: int = 0, dtype: str = ""
    ) -> None:
        self.sizes = [tuple(size) for size in sizes]
        self.scale, self.bands, self.dtype = scale, bands, dtype

    def add(self, pair: Pair) -> None:
        facts = (pair.scale, pair.hr.shape[2], _stored(pair.hr[:1, :1]).dtype.name)
        if not self.sizes:
            self.scale, self.bands, self.dtype = facts
        if facts != (self.scale, self.bands, self.dtype):
            raise ShapeMismatch(
                f"{pair.name} has scale {facts[0]}, {facts[1]} bands and type {facts[2]}; the "
                f"images before it have {self.scale}, {self.bands} and {self.dtype}. All must be "
                "the same."
            )
        self.sizes.append(pair.lr.shape[:2])

    def to_dict(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "scale": self.scale, "bands": self.bands, "dtype": self.dtype}

    def stock(self, lr: "torch.Tensor", hr: "torch.Tensor", scale: int) -> Stock:
        sizes = np.array(self.sizes, np.int64)
        return Stock(self._row(lr, sizes), self._row(hr, sizes * scale), scale)

    def _row(self, pixels: "torch.Tensor", sizes: NDArray[np.int64]) -> Row:
        areas = sizes.prod(axis=1)
        return Row(pixels.view(-1, self.bands), np.cumsum(areas) - areas, sizes[:, 0], sizes[:, 1])


def _stored(image: NDArray[np.generic]) -> NDArray[np.generic]:
    """uint8 unchanged; other integers divided by their type's maximum, and floats: float32."""
    if image.dtype == np.uint8:
        return image
    if np.issubdtype(image.dtype, np.integer):
        return (image.astype(np.float64) / np.iinfo(image.dtype.name).max).astype(np.float32)
    return image.astype(np.float32)


def _moved(row: Row, device: "torch.device") -> Row:
    return Row(row.pixels.to(device), row.starts, row.heights, row.widths)


def _line(
    firsts: Iterable[int], lengths: NDArray[np.int64], flipped: Sequence[bool], size: int
) -> NDArray[np.int64]:
    """(B, size): indices along one axis, mirrored with the edge repeated, reversed if flipped."""
    indices = np.array(list(firsts), np.int64)[:, None] + np.arange(size)
    period = 2 * lengths[:, None]
    indices = indices % period
    indices = np.where(indices < lengths[:, None], indices, period - 1 - indices)
    return np.where(np.array(flipped)[:, None], indices[:, ::-1], indices)


def _unit(patches: "torch.Tensor") -> "torch.Tensor":
    import torch

    return patches.float().div_(255) if patches.dtype == torch.uint8 else patches
