"""Upscaler: a trained network, ready to enlarge arrays of any size and number of bands.

`load` makes one. What is larger than a tile is cut by the same plan as a scene's, so memory is
bounded and the result of an array does not depend on the machine. Files, places and missing pixels
are the scene room's.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.errors import CheckpointError, OutsideTraining, ShapeMismatch, UsageError
from repmamba.inference.bands import Groups, enlarge_groups, group_bands
from repmamba.inference.catalogue import FoundWeights, find_weights, terms_of
from repmamba.inference.compiled import COMPILED_SCAN, compiled
from repmamba.inference.confidence import Calibration, doubt, read_calibration, rounded
from repmamba.inference.consistency import consistent as made_consistent
from repmamba.inference.dataarray import blockwise, is_dataarray, is_lazy, like, planes_of
from repmamba.inference.device import choose_device, choose_precision
from repmamba.inference.ensemble import Run, mean_and_variance, mean_of_eight
from repmamba.inference.onnx_runner import open_exported
from repmamba.inference.options import LEAST, OF_ARRAYS, OF_LOAD, check_cut, checked, cuts
from repmamba.inference.pillow import is_picture, picture_like, planes_of_picture, shown
from repmamba.inference.runners import Runner, TorchRunner
from repmamba.inference.workers import choose_workers, side_by_side
from repmamba.network.checkpoint import EXPORTED_ENDINGS, Checkpoint, read_checkpoint
from repmamba.network.fusion import FusedRepMamba, FusedRMB
from repmamba.network.fusion import fuse as fused
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import SS2D
from repmamba.pixels.histogram import ValueHistogram, describe_fills, warn_of_fills
from repmamba.pixels.nodata import as_nodata, filled, repeated, usable
from repmamba.pixels.radiometry import OUTLIER, Radiometry
from repmamba.scan.backends import explain
from repmamba.tiles.plan import HALO, TILE, Tile, plan_tiles
from repmamba.tiles.window import Window

# unit that a network is shown; its training had [0, 1], and a spike of 1e6 would spoil a whole tile
SEEN = (-0.5, 1.5)

# lr pixels that a file of weights may ask for: memory grows with them
MOST = {"tile": 4096, "halo": 512}
UNSEEN = 0.01  # of an array's numbers, that may lie outside SEEN without a word

MOST_BANDS = 16  # of an array whose bands may come first by mistake
Layout: TypeAlias = Literal["bands-first", "bands-last"]
ValueRange: TypeAlias = tuple[float, float] | Literal["robust"]
# numpy array, torch tensor, xarray.DataArray or PIL.Image; what comes back is the same
Image = TypeVar("Image")


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A network, what runs it, and what decides its results. Made by `load`."""

    # the network as torch has it: for export, hooks, autocast, quantisation and gradients
    module: nn.Module
    runner: Runner
    name: str  # of the weights, as the user knows them
    digest: str  # of the network's numbers
    tile: int = TILE  # lr pixels kept of each tile, by default
    halo: int = HALO  # lr pixels read around it, by default
    device: torch.device = field(default_factory=choose_device)
    precision: str = "float32"
    # of the scan; "" where the network is not ours, or has its own as an exported one
    backend: str = ""
    # the mean over the eight flips and rotations is the result, for eight times the work
    ensemble: bool = False
    # which error to expect where the eight disagree; None: never measured
    calibration: Calibration | None = None
    terms: str = ""  # of the weights, in a line; "" where none are known

    def __repr__(self) -> str:
        of_eight = ", mean of 8 flips and rotations" if self.ensemble else ""
        return (
            f"<Upscaler {self.name}: x{self.scale}, {self.bands} bands, on {self.device}, "
            f"{self.precision}, "
            f"tiles of {self.tile} + {self.halo}{of_eight}>"
        )

    @property
    def scale(self) -> int:
        """How many times larger the result is: 2, 3 or 4."""
        return self.runner.scale

    @property
    def bands(self) -> int:
        """How many bands go through the network together."""
        return self.runner.bands

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """The bare network: (B, C, H, W) in [0, 1] -> (B, C, scale H, scale W), float32, in one
        pass, not clamped.

        On a CPU it is compiled code, which takes tensors there and computes no gradients; `module`
        is for those.
        """
        return self.runner.network

    def run(self, unit: Tensor) -> Tensor:
        """unit: (B, bands, h, w) -> (B, bands, scale h, scale w), float32 on the CPU, not clamped.

        In one pass, or in the eight of an ensemble.
        """
        return mean_of_eight(self.runner.run, unit) if self.ensemble else self.runner.run(unit)

    def __call__(self, array: Image, **options: Any) -> Image:
        """See `upscale`."""
        return self.upscale(array, **options)

    def upscale(
        self,
        array: Image,
        *,
        value_range: ValueRange | None = None,
        nodata: float | Sequence[float] | None = None,
        consistent: bool | None = None,
        layout: Layout | None = None,
        tile: int | None = None,
        halo: int | None = None,
        workers: int | None = None,
    ) -> Image:
        """Enlarge an image; the result is of the same kind, type and device.

        numpy: (H, W) or (H, W, C), or (C, H, W) with layout="bands-first", as rasterio reads;
        integers by the whole range of their type, floats as [0, 1] and not clamped. What a masked
        array masks is missing: it touches nothing else, and is masked in the result, its numbers as
        they were. torch: (C, H, W) or (B, C, H, W), floating, [0, 1], not clamped.
        xarray.DataArray, where rioxarray is installed: numbers as numpy's, place, nodata and
        coordinates kept. One that dask computes later stays so, and is enlarged block by block when
        it is wanted. PIL.Image: of mode L, RGB, LA, RGBA, I;16 or F; palettes and bits as what they
        show. Alpha is enlarged by nearest, and wholly transparent pixels touch no others. From
        three bands on, the first three are red, green and blue; every other band goes alone, as
        grey. NaN and infinities stand in their place in the result and touch nothing else.
        value_range: what is black and white instead of the type's range, or "robust": what holds
        nearly all numbers of the image; nothing is clipped to it. Floats far outside [0, 1] that
        come without it give a warning. nodata: a number that is missing, in all bands or one for
        each band, in place of a DataArray's own; where a band
        has it, the result has it too.  consistent: the result, made small again, is the image, but
        for spikes and what
        the type's ends clip; not unless asked for.  layout: of numpy arrays, "bands-last" unless
        given.
        tile, halo: lr pixels, even, the weights' own unless given.  workers: tiles side by side,
        changes no result.
        Raises ShapeMismatch, UsageError, MissingExtra.
        """
        given = {
            "value_range": value_range,
            "nodata": nodata,
            "consistent": consistent,
            "layout": layout,
            "tile": tile,
            "halo": halo,
            "workers": workers,
        }
        asked = {"tile": self.tile, "halo": self.halo} | checked(given, OF_ARRAYS)
        check_cut(asked["tile"], asked["halo"])
        cut = _Cut(
            asked["tile"],
            asked["halo"],
            choose_workers(asked.get("workers"), self.device),
            asked.get("value_range"),
            asked.get("nodata"),
            asked.get("consistent", False),
        )
        if layout is not None and (isinstance(array, Tensor) or not isinstance(array, np.ndarray)):
            raise UsageError(
                f"layout={layout!r} is for numpy arrays: a tensor has its bands first, and a "
                "DataArray names its axes."
            )
        result: Any
        if isinstance(array, Tensor):
            result = self._upscale_tensor(array, cut)
        elif is_dataarray(array):
            planes, declared = planes_of(array)
            cut = (
                cut
                if cut.nodata is not None or declared is None
                else replace(cut, nodata=(declared,))
            )
            upscale = self._upscale_lazily if is_lazy(array) else self._upscale_planes
            result = like(array, upscale(planes, cut), self.scale, asked.get("nodata"))
        elif is_picture(array):
            result = self._upscale_picture(array, cut)
        elif isinstance(array, np.ndarray) and not isinstance(array, np.matrix):
            result = self._upscale_numpy(array, cut, asked.get("layout"))
        else:
            raise UsageError(
                f"A {type(array).__name__} is no image; give a numpy array, a torch tensor, an "
                "xarray.DataArray or a "
                "PIL.Image. upscale_file takes files."
            )
        image: Image = result
        return image

    def enlarge(self, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        """One tile in one pass for each group of bands: (bands, h, w), finite -> (bands, scale h,
        scale w).

        Values far outside [0, 1] are cut off for the network, and what was cut off is added again,
        bilinear.
        """
        return self._enlarge(self.run, unit, groups)

    def enlarge_with_variance(self, unit: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The same for one group of bands, as the mean of the eight, and the variance of the eight
        around it.

        The second is (network's bands, scale h, scale w), also where one band went through the
        network as grey.
        """
        variances = []

        def run(seen: Tensor) -> Tensor:
            mean, variance = mean_and_variance(self.runner.run, seen)
            variances.append(variance[0])
            return mean

        return self._enlarge(run, unit, (tuple(range(len(unit))),)), variances[0]

    def enlarge_numbers(
        self,
        raw: NDArray[Any],
        known: NDArray[np.bool_],
        keep: Window,
        radiometry: Radiometry,
        *,
        nodata: Sequence[float | None],
        consistent: bool,
        calibration: Calibration | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """One tile of bands that go through the network together, of a file or an array.

        raw, known: (bands, h, w), in the numbers of radiometry and where they can be used -> the
        same numbers in keep, a window of (scale h, scale w). What is not known stays what it is,
        scale x scale times, and touches nothing.
        nodata: of each band, which no result equals.  consistent: the result, made small again, is
        raw.
        With a calibration, the error to expect comes along, (h, w), NaN where one of the bands is
        not known.
        """
        whole = radiometry.to_unit(raw)
        spike = known & ((whole < OUTLIER[0]) | (whole > OUTLIER[1]))
        # A spike is cut off before anything is made of it, and what was cut off put back where it
        # was.
        unit = filled(np.where(spike, whole.clip(*SEEN), whole), known)
        if calibration is None:
            sr, variance = self.enlarge(unit, (tuple(range(len(raw))),)), None
        else:
            sr, variance = self.enlarge_with_variance(unit)
        if consistent:
            sr = made_consistent(
                sr, torch.from_numpy(unit), torch.from_numpy(known & ~spike), self.scale
            )
        if spike.any():
            beyond = torch.from_numpy(np.where(spike, whole - unit, np.float32(0)))
            sr = sr + F.interpolate(beyond[None], scale_factor=self.scale, mode="bilinear")[0]
        numbers = radiometry.from_unit(sr[:, *keep.slices].numpy(), nodata=nodata)
        if not known.all():
            numbers = np.where(self._kept(known, keep), numbers, self._kept(raw, keep))
        if calibration is None or variance is None:
            return numbers, None
        expected = calibration.expected_error(doubt(sr, variance)[keep.slices].numpy())
        expected = rounded(
            expected * np.float32(radiometry.high[0] - radiometry.low[0])
        )  # one range for all of a group
        everywhere = self._kept(np.logical_and.reduce(known), keep)
        return numbers, np.where(everywhere, expected, np.float32(np.nan))

    def _kept(self, pixels: NDArray[Any], keep: Window) -> NDArray[Any]:
        """Each of (..., h, w) scale x scale times, in a window of that."""
        return repeated(pixels, self.scale)[..., *keep.slices]

    def _enlarge(self, run: Run, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(unit))
        seen = whole.clamp(*SEEN)
        result = enlarge_groups(run, seen, groups, self.bands)
        beyond = whole - seen
        if beyond.any():
            result = (
                result + F.interpolate(beyond[None], scale_factor=self.scale, mode="bilinear")[0]
            )
        return result

    def _upscale_numpy(self, array: NDArray[Any], cut: _Cut, layout: Layout | None) -> NDArray[Any]:
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise ShapeMismatch(
                f"An array of shape {array.shape} is no image; give (H, W) or (H, W, C), none of "
                "them 0."
            )
        if array.ndim == 3 and layout is None and _looks_bands_first(array.shape):
            raise ShapeMismatch(
                f"An array of shape {array.shape} looks like (bands, rows, columns), as rasterio "
                "reads, and (rows, "
                "columns, bands) is expected: give layout='bands-first', or np.moveaxis(array, 0, "
                "2). If it is what is "
                "expected, say so by layout='bands-last'."
            )
        axis = 0 if layout == "bands-first" else 2
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, axis, 0)
        if isinstance(planes, np.ma.MaskedArray):
            masked = np.ma.getmaskarray(planes)
            numbers = self._upscale_planes(planes.data, cut, masked=masked)
            result: NDArray[Any] = np.ma.array(
                numbers, mask=repeated(masked, self.scale), fill_value=planes.fill_value
            )
        else:
            result = self._upscale_planes(planes, cut)
        return result[0] if array.ndim == 2 else np.moveaxis(result, 0, axis).copy()

    def _upscale_tensor(self, tensor: Tensor, cut: _Cut) -> Tensor:
        if tensor.ndim not in (3, 4) or 0 in tensor.shape or not tensor.is_floating_point():
            raise ShapeMismatch(
                f"A tensor of shape {tuple(tensor.shape)} and {tensor.dtype} is no image; give (C, "
                "H, W) or "
                "(B, C, H, W), floating, none of them 0."
            )
        images = tensor.detach().to(
            "cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32
        )
        results = [
            self._upscale_planes(image.numpy(), cut)
            for image in (images if tensor.ndim == 4 else images[None])
        ]
        result = torch.from_numpy(np.stack(results) if tensor.ndim == 4 else results[0])
        return result.to(tensor.device, tensor.dtype)

    def _upscale_picture(self, picture: Any, cut: _Cut) -> Any:
        picture = shown(picture)
        planes, alpha = planes_of_picture(picture)
        masked = None if alpha is None else np.broadcast_to(alpha == 0, planes.shape)
        return picture_like(
            picture, self._upscale_planes(planes, cut, masked=masked), alpha, self.scale
        )

    def _upscale_lazily(self, planes: Any, cut: _Cut) -> Any:
        """planes: an array of dask, (bands, h, w) -> likewise, (bands, scale h, scale w), of the
        same numbers.
        """
        if cut.value_range == "robust":
            raise UsageError(
                "value_range is 'robust', which reads the whole array, and this one is computed "
                "later; give "
                "value_range=(low, high), or array.compute() first."
            )
        scene = Window(0, 0, *planes.shape[1:])

        def enlarge(numbers: NDArray[Any], read: Window, block: Window) -> NDArray[Any]:
            return self._upscale_planes(numbers, cut, part=_Part(scene, read, block))

        return blockwise(planes, self.scale, cut.tile, cut.halo, enlarge)

    def _upscale_planes(
        self,
        planes: NDArray[Any],
        cut: _Cut,
        *,
        masked: NDArray[np.bool_] | None = None,
        part: _Part | None = None,
    ) -> NDArray[Any]:
        """planes: (bands, h, w) -> (bands, scale h, scale w), same type.

        Missing is what is nodata in its band, and where masked, (bands, h, w), says so.
        part: which part of an image planes are, and which of that is enlarged; all of all unless
        given.
        """
        bands, *size = planes.shape
        scene, have, wanted = part or [Window(0, 0, *size)] * 3
        groups = group_bands(bands, (0, 1, 2) if bands >= 3 else None, self.bands)
        nodata = _of_bands(cut.nodata, planes)

        def known_of(window: tuple[slice, slice]) -> NDArray[np.bool_]:
            raw = planes[:, *window]
            known = usable(raw, np.ones(raw.shape[1:], bool), nodata)
            return known if masked is None else known & ~masked[:, *window]

        radiometry = _radiometry(
            planes, known_of((slice(None), slice(None))), groups, cut.value_range
        )
        plan = plan_tiles(
            scene.height, scene.width, self.scale, tile=cut.tile, halo=cut.halo, window=wanted
        )
        result = np.empty(
            (bands, self.scale * wanted.height, self.scale * wanted.width), planes.dtype
        )

        def step(tile: Tile) -> tuple[Tile, NDArray[Any]]:
            read = tile.read.seen_from(have).slices
            raw, known = planes[:, *read], known_of(read)
            numbers = np.empty((bands, tile.keep.height, tile.keep.width), planes.dtype)
            for group in map(list, groups):
                numbers[group], _ = self.enlarge_numbers(
                    raw[group],
                    known[group],
                    tile.keep,
                    radiometry.of_bands(group),
                    nodata=[nodata[band] for band in group],
                    consistent=cut.consistent,
                )
            return tile, numbers

        with closing(side_by_side(step, plan, cut.workers, len(plan))) as results:
            for tile, numbers in results:
                result[:, *tile.write.slices] = numbers
        return result


@dataclass(frozen=True, slots=True)
class _Cut:
    tile: int
    halo: int
    workers: int
    value_range: ValueRange | None
    nodata: tuple[float, ...] | None  # one for all bands, or one for each
    consistent: bool


def _looks_bands_first(shape: tuple[int, ...]) -> bool:
    """Whether three axes are rather (bands, rows, columns) than (rows, columns, bands)."""
    return shape[0] <= MOST_BANDS and shape[1] > 1 and shape[2] > max(4, 2 * shape[0])


def _of_bands(nodata: tuple[float, ...] | None, planes: NDArray[Any]) -> tuple[float | None, ...]:
    """The nodata of each band, as their type has it. Raises UsageError."""
    bands = len(planes)
    if nodata is None:
        return (None,) * bands
    if len(nodata) not in (1, bands):
        raise UsageError(
            f"nodata has {len(nodata)} numbers, and the image {bands} bands: give one for all, or "
            "one for each."
        )
    return tuple(as_nodata(number, planes.dtype.name) for number in nodata * (bands // len(nodata)))


class _Part(NamedTuple):
    """Windows of an image, lr: the image itself, what is there of it, and what of that is
    enlarged.
    """

    scene: Window
    have: Window
    wanted: Window


def _radiometry(
    planes: NDArray[Any], known: NDArray[np.bool_], groups: Groups, value_range: ValueRange | None
) -> Radiometry:
    """The linear map of each band of an array. Warns of floats that the network is not shown as
    they are.
    """
    bands = len(planes)
    usual = Radiometry.of_type(planes.dtype.name, bands)
    if value_range is None:
        if planes.dtype.kind == "f":
            _warn_of_unseen(planes[known])
        return usual
    if value_range != "robust":
        return replace(usual, low=(value_range[0],) * bands, high=(value_range[1],) * bands)
    low, high = list(usual.low), list(usual.high)
    histograms = [ValueHistogram() for _ in groups]
    for group, histogram in zip(groups, histograms, strict=True):
        for band in group:
            histogram.add(planes[band][known[band]])
        if (found := histogram.range()) is not None:
            for band in group:
                low[band], high[band] = found
    warn_of_fills("The image", describe_fills(histograms, planes.dtype.name), stacklevel=4)
    return replace(usual, low=tuple(low), high=tuple(high))


def _warn_of_unseen(numbers: NDArray[np.floating[Any]]) -> None:
    unseen = np.count_nonzero((numbers < SEEN[0]) | (numbers > SEEN[1]))
    if unseen > UNSEEN * numbers.size:
        warnings.warn(
            f"Floats are taken as [0, 1], and {unseen / numbers.size:.0%} of these lie far "
            "outside: the network sees "
            "nothing in them, and they are enlarged bilinearly. Give value_range=(low, high) or "
            "value_range='robust'.",
            OutsideTraining,
            stacklevel=4,
        )


def load(
    weights: str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    precision: str | None = None,
    fuse: bool = True,
    ensemble: bool = False,
    revision: str | None = None,
) -> Upscaler:
    """The Upscaler of a name (x4), a file, a folder or a hub id; a checkpoint, or an exported
    network (.onnx).

    weights: those of the scale unless given; x4 unless that is given either.  scale: only to be
    sure: other weights are
    refused.  device: cpu, cuda, mps.  backend: of the scan.  precision: float32 or bfloat16.  fuse:
    fold what the
    trained form has twice; False keeps the network as it was trained, run by operations of torch.
    ensemble: results
    are means over the eight flips and rotations of what is enlarged, which is eight times the work.
    revision: branch,
    tag or commit of a hub id.
    Raises CheckpointError, UsageError, MissingExtra.
    """
    given = {
        "weights": weights,
        "scale": scale,
        "backend": backend,
        "precision": precision,
        "fuse": fuse,
    }
    checked(given | {"ensemble": ensemble, "revision": revision}, OF_LOAD)
    found = find_weights(weights if weights is not None else f"x{scale or 4}", revision=revision)
    if found.path.suffix.lower() in EXPORTED_ENDINGS:
        asked = {"scale": scale, "device": device, "backend": backend, "precision": precision}
        return _load_exported(found, asked, ensemble=ensemble)
    checkpoint = read_checkpoint(found.path)
    config = checkpoint.config
    if config.scale < 2:
        raise CheckpointError(
            f"{found.name} is a network that does not enlarge (upsampler '{config.upsampler}')."
        )
    _check_scale(found, config.scale, scale)
    if checkpoint.value_range != (0.0, 1.0):
        low, high = checkpoint.value_range
        raise CheckpointError(
            f"{found.name} is of a network whose values go from {low:g} to {high:g}; only those of "
            "0 to 1 are run "
            "here: from_pretrained gives the network, to be run by a program that knows its range."
        )
    module: nn.Module = checkpoint.network()
    if fuse:
        module = fused(module)
    place, numbers = choose_device(device), choose_precision(precision)
    module = module.to(place).eval()
    scan = explain(place, backend).name
    if backend is not None:
        _use_backend(module, backend)
    digest = _digest(checkpoint)
    return Upscaler(
        module=module,
        runner=_runner(module, place, numbers, scan),
        name=found.name,
        digest=digest,
        tile=_measured(checkpoint, found, "tile", TILE),
        halo=_measured(checkpoint, found, "halo", HALO),
        device=place,
        precision=str(numbers).removeprefix("torch."),
        backend=scan,
        ensemble=ensemble,
        calibration=read_calibration(found.path, digest),
        terms=terms_of(found.path, checkpoint.training),
    )


def _runner(module: nn.Module, device: torch.device, precision: torch.dtype, scan: str) -> Runner:
    """Of compiled passes, where they are what was asked for and the processor has them; of torch
    for all else.
    """
    if isinstance(module, FusedRepMamba) and device.type == "cpu" and scan == COMPILED_SCAN:
        runner = compiled(module, precision)
        if runner is not None:
            return runner
    assert isinstance(module, RepMamba | FusedRepMamba)
    return TorchRunner(module, module.scale, module.config.in_chans, device, precision)


def _check_scale(found: FoundWeights, scale: int, asked: int | None) -> None:
    if asked is not None and asked != scale:
        raise CheckpointError(
            f"{found.name} is an x{scale} checkpoint, and x{asked} was asked for: name x{asked} "
            "weights."
        )


def _load_exported(found: FoundWeights, asked: Mapping[str, Any], *, ensemble: bool) -> Upscaler:
    """The Upscaler of an exported file: it computes on the CPU and in float32, by its own scan."""
    ours = {"device": ("cpu", torch.device("cpu")), "precision": ("float32",), "backend": ()}
    for name, allowed in ours.items():
        if asked[name] is not None and asked[name] not in allowed:
            raise UsageError(
                f"{name}={str(asked[name])!r} is not for an exported network such as "
                f"{found.path.name}, which "
                "ONNX Runtime runs on the CPU in float32: leave it out, or load the weights "
                "themselves."
            )
    runner = open_exported(found.path)
    facts = runner.facts
    _check_scale(found, facts.scale, asked["scale"])
    return Upscaler(
        module=runner.network,
        runner=runner,
        name=found.name,
        digest=hashlib.sha256(runner.content).hexdigest()[:32],
        tile=facts.tile,
        halo=facts.halo,
        device=torch.device("cpu"),
        ensemble=ensemble,
        terms=facts.terms,
    )


def pin_backend(upscaler: Upscaler) -> None:
    """Let each scan be computed by the backend that `load` found, in a process that would choose
    another one, too.

    Raises UsageError where that one does not run.
    """
    if not upscaler.backend:  # no network of ours
        return
    found = explain(upscaler.device, upscaler.backend)
    if found.name != upscaler.backend:
        raise UsageError(
            f"The scan is to be computed by {upscaler.backend}, and {found.name} is taken: "
            f"{found.why}"
        )
    _use_backend(upscaler.module, upscaler.backend)


def _use_backend(module: nn.Module, backend: str) -> None:
    for part in module.modules():
        if isinstance(part, SS2D | FusedRMB):
            part.backend = backend


def _measured(checkpoint: Checkpoint, found: FoundWeights, name: str, usual: int) -> int:
    """What was measured to be best for these weights, where they say so. Raises CheckpointError for
    what is no size.
    """
    value = checkpoint.training.get(name, usual)
    if type(value) is not int or not cuts(name, value) or value > MOST[name]:
        raise CheckpointError(
            f"{found.name} says {name} {value!r:.40}; an even number of pixels from {LEAST[name]} "
            f"to {MOST[name]} is "
            "expected."
        )
    return value


def _digest(checkpoint: Checkpoint) -> str:
    """32 hex digits of SHA-256 over configuration and numbers, so that equal networks in other
    files are equal.
    """
    state = hashlib.sha256(repr(sorted(checkpoint.config.to_dict().items())).encode())
    for name, tensor in sorted(checkpoint.weights.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()[:32]
