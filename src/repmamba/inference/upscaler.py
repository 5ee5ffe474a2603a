"""Upscaler: a trained network, ready to enlarge arrays of any size and number of bands.

`load` makes one. What is larger than a tile is cut by the same plan as a scene's, so memory is bounded and the result
of an array does not depend on the machine. Files, places and missing pixels are the scene room's.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.errors import CheckpointError, OutsideTraining, ShapeMismatch, UsageError
from repmamba.inference.bands import Groups, enlarge_groups, group_bands
from repmamba.inference.catalogue import FoundWeights, find_weights
from repmamba.inference.confidence import Calibration, read_calibration
from repmamba.inference.dataarray import is_dataarray, like, planes_of
from repmamba.inference.device import choose_device, choose_precision
from repmamba.inference.ensemble import Run, mean_and_variance, mean_of_eight
from repmamba.inference.onnx_runner import ExportedNetwork, open_exported
from repmamba.inference.options import LEAST, OF_ARRAYS, OF_LOAD, check_cut, checked, cuts
from repmamba.inference.runners import Runner, TorchRunner
from repmamba.inference.workers import choose_workers, side_by_side
from repmamba.network.checkpoint import EXPORTED_ENDINGS, Checkpoint, read_checkpoint
from repmamba.network.fusion import FusedRMB
from repmamba.network.fusion import fuse as fused
from repmamba.network.rmb import SS2D
from repmamba.pixels.nodata import enlarged, filled, usable
from repmamba.pixels.radiometry import Radiometry, ValueHistogram
from repmamba.scan.backends import explain
from repmamba.tiles.plan import HALO, TILE, Tile, plan_tiles

SEEN = (-0.5, 1.5)  # unit that a network is shown; its training had [0, 1], and a spike of 1e6 would spoil a whole tile

MOST = {"tile": 4096, "halo": 512}  # lr pixels that a file of weights may ask for: memory grows with them
UNSEEN = 0.01  # of an array's numbers, that may lie outside SEEN without a word

ValueRange: TypeAlias = tuple[float, float] | Literal["robust"]
Image = TypeVar("Image")  # a numpy array, a torch tensor or an xarray.DataArray; what comes back is the same


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A network, what runs it, and what decides its results. Made by `load`."""

    network: nn.Module  # float (B, C, H, W) in [0, 1] -> (B, C, scale H, scale W), not clamped
    runner: Runner
    name: str  # of the weights, as the user knows them
    digest: str  # of the network's numbers
    tile: int = TILE  # lr pixels kept of each tile, by default
    halo: int = HALO  # lr pixels read around it, by default
    device: torch.device = field(default_factory=choose_device)
    precision: str = "float32"
    backend: str = ""  # of the scan; "" where the network is not ours, or has its own as an exported one
    ensemble: bool = False  # the mean over the eight flips and rotations is the result, for eight times the work
    calibration: Calibration | None = None  # which error to expect where the eight disagree; None: never measured

    @property
    def scale(self) -> int:
        """How many times larger the result is: 2, 3 or 4."""
        return self.runner.scale

    @property
    def bands(self) -> int:
        """How many bands go through the network together."""
        return self.runner.bands

    def run(self, unit: Tensor) -> Tensor:
        """unit: (B, bands, h, w) -> (B, bands, scale h, scale w), float32 on the CPU, not clamped.

        In one pass, or in the eight of an ensemble.
        """
        return mean_of_eight(self.runner.run, unit) if self.ensemble else self.runner.run(unit)

    def upscale(
        self,
        array: Image,
        *,
        value_range: ValueRange | None = None,
        tile: int | None = None,
        halo: int | None = None,
        workers: int | None = None,
    ) -> Image:
        """Enlarge an image; the result is of the same kind, type and device.

        numpy: (H, W) or (H, W, C); integers by the whole range of their type, floats as [0, 1] and not clamped. What a
        masked array masks is missing: it touches nothing else, and is masked in the result, its numbers as they were.
        torch: (C, H, W) or (B, C, H, W), floating, [0, 1], not clamped.
        xarray.DataArray, where rioxarray is installed: numbers as numpy's, place, nodata and coordinates kept.
        From three bands on, the first three are red, green and blue; every other band goes alone, as grey. NaN and
        infinities stand in their place in the result and touch nothing else.
        value_range: what is black and white instead of the type's range, or "robust": what holds nearly all numbers of
        the image; nothing is clipped to it. Floats far outside [0, 1] that come without it give a warning.
        tile, halo: lr pixels, even, the weights' own unless given.  workers: tiles side by side, changes no result.
        Raises ShapeMismatch, UsageError, MissingExtra.
        """
        given = {"value_range": value_range, "tile": tile, "halo": halo, "workers": workers}
        asked = {"tile": self.tile, "halo": self.halo} | checked(given, OF_ARRAYS)
        check_cut(asked["tile"], asked["halo"])
        cut = _Cut(
            asked["tile"],
            asked["halo"],
            choose_workers(asked.get("workers"), self.device),
            asked.get("value_range"),
        )
        result: Any
        if isinstance(array, Tensor):
            result = self._upscale_tensor(array, cut)
        elif is_dataarray(array):
            planes, nodata = planes_of(array)
            result = like(array, self._upscale_planes(planes, cut, nodata=nodata), self.scale)
        elif isinstance(array, np.ndarray) and not isinstance(array, np.matrix):
            result = self._upscale_numpy(array, cut)
        else:
            raise UsageError(f"A {type(array).__name__} is no image; give a numpy array or a torch tensor.")
        image: Image = result
        return image

    def enlarge(self, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        """One tile in one pass for each group of bands: (bands, h, w), finite -> (bands, scale h, scale w).

        Values far outside [0, 1] are cut off for the network, and what was cut off is added again, bilinear.
        """
        return self._enlarge(self.run, unit, groups)

    def enlarge_with_variance(self, unit: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The same for one group of bands, as the mean of the eight, and the variance of the eight around it.

        The second is (network's bands, scale h, scale w), also where one band went through the network as grey.
        """
        variances = []

        def run(seen: Tensor) -> Tensor:
            mean, variance = mean_and_variance(self.runner.run, seen)
            variances.append(variance[0])
            return mean

        return self._enlarge(run, unit, (tuple(range(len(unit))),)), variances[0]

    def _enlarge(self, run: Run, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(unit))
        seen = whole.clamp(*SEEN)
        result = enlarge_groups(run, seen, groups, self.bands)
        beyond = whole - seen
        if beyond.any():
            result = result + F.interpolate(beyond[None], scale_factor=self.scale, mode="bilinear")[0]
        return result

    def _upscale_numpy(self, array: NDArray[Any], cut: _Cut) -> NDArray[Any]:
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise ShapeMismatch(
                f"An array of shape {array.shape} is no image; give (H, W) or (H, W, C), none of them 0."
            )
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
        if isinstance(planes, np.ma.MaskedArray):
            masked = np.ma.getmaskarray(planes)
            numbers = self._upscale_planes(planes.data, cut, masked=masked)
            result: NDArray[Any] = np.ma.array(numbers, mask=enlarged(masked, self.scale), fill_value=planes.fill_value)
        else:
            result = self._upscale_planes(planes, cut)
        return result[0] if array.ndim == 2 else np.moveaxis(result, 0, 2).copy()

    def _upscale_tensor(self, tensor: Tensor, cut: _Cut) -> Tensor:
        if tensor.ndim not in (3, 4) or 0 in tensor.shape or not tensor.is_floating_point():
            raise ShapeMismatch(
                f"A tensor of shape {tuple(tensor.shape)} and {tensor.dtype} is no image; give (C, H, W) or "
                "(B, C, H, W), floating, none of them 0."
            )
        images = tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        results = [self._upscale_planes(image.numpy(), cut) for image in (images if tensor.ndim == 4 else images[None])]
        result = torch.from_numpy(np.stack(results) if tensor.ndim == 4 else results[0])
        return result.to(tensor.device, tensor.dtype)

    def _upscale_planes(
        self,
        planes: NDArray[Any],
        cut: _Cut,
        *,
        nodata: float | None = None,
        masked: NDArray[np.bool_] | None = None,
    ) -> NDArray[Any]:
        """planes: (bands, h, w) -> (bands, scale h, scale w), same type.

        Missing where all bands are nodata, a float also in one band alone, and where masked, (bands, h, w), says so.
        """
        bands, height, width = planes.shape
        groups = group_bands(bands, (0, 1, 2) if bands >= 3 else None, self.bands)

        def known_of(window: tuple[slice, slice]) -> NDArray[np.bool_]:
            raw = planes[:, *window]
            valid = ~(raw == (np.nan if nodata is None else nodata)).all(0)  # NaN equals nothing
            known = usable(raw, valid, (nodata,) * bands)
            return known if masked is None else known & ~masked[:, *window]

        radiometry = _radiometry(planes, known_of((slice(None), slice(None))), groups, cut.value_range)
        plan = plan_tiles(height, width, self.scale, tile=cut.tile, halo=cut.halo)
        result = np.empty((bands, self.scale * height, self.scale * width), planes.dtype)

        def step(tile: Tile) -> tuple[Tile, NDArray[Any]]:
            raw = planes[:, *tile.read.slices]
            known = known_of(tile.read.slices)
            sr = self.enlarge(filled(radiometry.to_unit(raw), known), groups)
            numbers = radiometry.from_unit(sr[:, *tile.keep.slices].numpy(), nodata=nodata)
            if not known.all():
                numbers = restored(numbers, raw, known, tile, self.scale)
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


def _radiometry(
    planes: NDArray[Any], known: NDArray[np.bool_], groups: Groups, value_range: ValueRange | None
) -> Radiometry:
    """The linear map of each band of an array. Warns of floats that the network is not shown as they are."""
    bands = len(planes)
    usual = Radiometry.of_type(planes.dtype.name, bands)
    if value_range is None:
        if planes.dtype.kind == "f":
            _warn_of_unseen(planes[known])
        return usual
    if value_range != "robust":
        return replace(usual, low=(value_range[0],) * bands, high=(value_range[1],) * bands)
    low, high = list(usual.low), list(usual.high)
    for group in groups:
        histogram = ValueHistogram()
        for band in group:
            histogram.add(planes[band][known[band]])
        if (found := histogram.range()) is not None:
            for band in group:
                low[band], high[band] = found
    return replace(usual, low=tuple(low), high=tuple(high))


def _warn_of_unseen(numbers: NDArray[np.floating[Any]]) -> None:
    unseen = np.count_nonzero((numbers < SEEN[0]) | (numbers > SEEN[1]))
    if unseen > UNSEEN * numbers.size:
        warnings.warn(
            f"Floats are taken as [0, 1], and {unseen / numbers.size:.0%} of these lie far outside: the network sees "
            "nothing in them, and they are enlarged bilinearly. Give value_range=(low, high) or value_range='robust'.",
            OutsideTraining,
            stacklevel=4,
        )


def restored(
    numbers: NDArray[Any], raw: NDArray[Any], known: NDArray[np.bool_], tile: Tile, scale: int
) -> NDArray[Any]:
    """A tile's result with the numbers that could not be used (NaN, infinities) back in their scaled footprint."""
    footprint = enlarged(known, scale)[:, *tile.keep.slices]
    return np.where(footprint, numbers, enlarged(raw, scale)[:, *tile.keep.slices])


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
    """The Upscaler of a name (x4), a file, a folder or a hub id; a checkpoint, or an exported network (.onnx).

    weights: those of the scale unless given; x4 unless that is given either.  scale: only to be sure: other weights are
    refused.  device: cpu, cuda, mps.  backend: of the scan.  precision: float32 or bfloat16.  fuse: fold what the
    trained form has twice; False keeps the network as it was trained.  ensemble: results are means over the eight flips
    and rotations of what is enlarged, which is eight times the work.  revision: branch, tag or commit of a hub id.
    Raises CheckpointError, UsageError, MissingExtra.
    """
    given = {"weights": weights, "scale": scale, "backend": backend, "precision": precision, "fuse": fuse}
    checked(given | {"ensemble": ensemble, "revision": revision}, OF_LOAD)
    found = find_weights(weights if weights is not None else f"x{scale or 4}", revision=revision)
    if found.path.suffix.lower() in EXPORTED_ENDINGS:
        asked = {"scale": scale, "device": device, "backend": backend, "precision": precision}
        return _load_exported(found, asked, ensemble=ensemble)
    checkpoint = read_checkpoint(found.path)
    config = checkpoint.config
    if config.scale < 2:
        raise CheckpointError(f"{found.name} is a network that does not enlarge (upsampler '{config.upsampler}').")
    _check_scale(found, config.scale, scale)
    if checkpoint.value_range != (0.0, 1.0):
        low, high = checkpoint.value_range
        raise CheckpointError(
            f"{found.name} is of a network whose values go from {low:g} to {high:g}; only those of 0 to 1 are run "
            "here: from_pretrained gives the network, to be run by a program that knows its range."
        )
    network: nn.Module = checkpoint.network()
    if fuse:
        network = fused(network)
    place, numbers = choose_device(device), choose_precision(precision)
    network = network.to(place).eval()
    scan = explain(place, backend).name
    if backend is not None:
        _use_backend(network, backend)
    digest = _digest(checkpoint)
    return Upscaler(
        network=network,
        runner=TorchRunner(network, config.scale, config.in_chans, place, numbers),
        name=found.name,
        digest=digest,
        tile=_measured(checkpoint, found, "tile", TILE),
        halo=_measured(checkpoint, found, "halo", HALO),
        device=place,
        precision=str(numbers).removeprefix("torch."),
        backend=scan,
        ensemble=ensemble,
        calibration=read_calibration(found.path, digest),
    )


def _check_scale(found: FoundWeights, scale: int, asked: int | None) -> None:
    if asked is not None and asked != scale:
        raise CheckpointError(
            f"{found.name} is an x{scale} checkpoint, and x{asked} was asked for: name x{asked} weights."
        )


def _load_exported(found: FoundWeights, asked: Mapping[str, Any], *, ensemble: bool) -> Upscaler:
    """The Upscaler of an exported file: it computes on the CPU and in float32, by its own scan."""
    ours = {"device": ("cpu", torch.device("cpu")), "precision": ("float32",), "backend": ()}
    for name, allowed in ours.items():
        if asked[name] is not None and asked[name] not in allowed:
            raise UsageError(
                f"{name}={str(asked[name])!r} is not for an exported network such as {found.path.name}, which "
                "ONNX Runtime runs on the CPU in float32: leave it out, or load the weights themselves."
            )
    runner = open_exported(found.path)
    facts = runner.facts
    _check_scale(found, facts.scale, asked["scale"])
    return Upscaler(
        network=ExportedNetwork(runner),
        runner=runner,
        name=found.name,
        digest=hashlib.sha256(runner.content).hexdigest()[:32],
        tile=facts.tile,
        halo=facts.halo,
        device=torch.device("cpu"),
        ensemble=ensemble,
    )


def pin_backend(upscaler: Upscaler) -> None:
    """Let each scan be computed by the backend that `load` found, in a process that would choose another one, too.

    Raises UsageError where that one does not run.
    """
    if not upscaler.backend:  # no network of ours
        return
    found = explain(upscaler.device, upscaler.backend)
    if found.name != upscaler.backend:
        raise UsageError(f"The scan is to be computed by {upscaler.backend}, and {found.name} is taken: {found.why}")
    _use_backend(upscaler.network, upscaler.backend)


def _use_backend(network: nn.Module, backend: str) -> None:
    for module in network.modules():
        if isinstance(module, SS2D | FusedRMB):
            module.backend = backend


def _measured(checkpoint: Checkpoint, found: FoundWeights, name: str, usual: int) -> int:
    """What was measured to be best for these weights, where they say so. Raises CheckpointError for what is no size."""
    value = checkpoint.training.get(name, usual)
    if type(value) is not int or not cuts(name, value) or value > MOST[name]:
        raise CheckpointError(
            f"{found.name} says {name} {value!r:.40}; an even number of pixels from {LEAST[name]} to {MOST[name]} is "
            "expected."
        )
    return value


def _digest(checkpoint: Checkpoint) -> str:
    """32 hex digits of SHA-256 over configuration and numbers, so that equal networks in other files are equal."""
    state = hashlib.sha256(repr(sorted(checkpoint.config.to_dict().items())).encode())
    for name, tensor in sorted(checkpoint.weights.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()[:32]
