"""Upscaler: a trained network, ready to upscale arrays of any size and number of bands.

`loading.load` makes one. Files, georeferencing and missing pixels of rasters belong to the scene
room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from repmamba.inference.arrays import Layout, upscale_image
from repmamba.inference.bands import Groups, enlarge_groups
from repmamba.inference.confidence import Calibration, doubt, rounded
from repmamba.inference.consistency import make_consistent
from repmamba.inference.device import choose_device
from repmamba.inference.ensemble import Run, mean_and_variance, mean_of_eight
from repmamba.inference.planes import NETWORK_RANGE, PlaneOptions, ValueRange, upscale_planes
from repmamba.inference.runners import Runner
from repmamba.inference.workers import choose_workers
from repmamba.pixels.nodata import filled, repeated
from repmamba.pixels.radiometry import OUTLIER, Radiometry
from repmamba.tiles.plan import HALO, TILE
from repmamba.tiles.window import Window

# numpy array, torch tensor, xarray.DataArray or PIL.Image; the result is of the same kind
Image = TypeVar("Image")


@dataclass(frozen=True, slots=True)
class Upscaler:
    """A network, what runs it, and everything that decides its results. `load` makes one."""

    # the network as a torch module: for export, hooks, autocast, quantisation and gradients
    module: nn.Module
    runner: Runner
    name: str  # of the weights, as the user knows them
    digest: str  # of the network's configuration and weights
    tile: int = TILE  # lr pixels kept of each tile, by default
    halo: int = HALO  # lr pixels read around it, by default
    device: torch.device = field(default_factory=choose_device)
    precision: str = "float32"
    backend: str = ""  # of the scan; "" for exported networks, which have their own
    ensemble: bool = False  # average over the eight flips and rotations
    # expected error as a function of doubt; None: never measured
    calibration: Calibration | None = None
    terms: str = ""  # of the weights, in a line; "" if unknown
    denoises: bool = False  # trained on noisy or compressed images, to give clean ones

    def __repr__(self) -> str:
        of_eight = ", mean of 8 flips and rotations" if self.ensemble else ""
        return (
            f"<Upscaler {self.name}: x{self.scale}, {self.bands} bands, on {self.device}, "
            f"{self.precision}, tiles of {self.tile} + {self.halo}{of_eight}>"
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
        """The bare network, in one pass and not clamped.

        (B, C, H, W) in [0, 1] -> (B, C, scale H, scale W), float32. On a CPU it is compiled code:
        it takes CPU tensors and computes no gradients. Use `module` for those.
        """
        return self.runner.network

    def run(self, unit: Tensor) -> Tensor:
        """Run the network once, or eight times for an ensemble.

        unit: (B, bands, h, w) -> (B, bands, scale h, scale w), float32 on the CPU, not clamped.
        """
        return mean_of_eight(self.runner.run, unit) if self.ensemble else self.runner.run(unit)

    def upscale(
        self,
        array: Image,
        *,
        value_range: ValueRange | None = None,
        nodata: float | Sequence[float] | Literal["none"] | None = None,
        consistent: bool = False,
        layout: Layout | None = None,
        tile: int | None = None,
        halo: int | None = None,
        workers: int | None = None,
    ) -> Image:
        """Upscale an image; the result has the same kind, type and device.

        The first three of three or more bands are red, green and blue; every other band is upscaled
        by itself, as grey. NaN and infinities stay where they are and affect no other pixel.

        Args:
            array: One of

                - numpy array (H, W) or (H, W, C), or (C, H, W) with layout="bands-first". Integers
                  use the whole range of their type; floats are [0, 1] and not clamped. Masked
                  pixels are missing: they affect no other pixel and stay masked.
                - torch tensor (C, H, W) or (B, C, H, W), floating point, [0, 1], not clamped.
                - xarray.DataArray (needs rioxarray): values as numpy's; coordinates, CRS and nodata
                  are kept. A dask array stays lazy and is upscaled block by block.
                - PIL.Image of mode L, RGB, LA, RGBA, I;16 or F; palettes and bits are converted to
                  the colours they show. Alpha is resampled by nearest neighbour, and fully
                  transparent pixels affect no others.
            value_range: The values of black and white, or "robust" for a range that holds nearly
                all values of the image. Default: the range of the type. Nothing is clipped to it.
            nodata: The value of missing pixels, for all bands or one for each. It is kept in the
                result. Default: that of a DataArray, otherwise none.
            consistent: Adjust the result so that downsampling it gives back the input (except
                outliers and clipped values). Default: False.
            layout: "bands-first" or "bands-last" (default), of numpy arrays.
            tile: Size of a tile in lr pixels, even. Default: that of the weights.
            halo: lr pixels read around each tile, even. Default: that of the weights.
            workers: Tiles computed at once. Does not change the result.

        Returns:
            The image at `scale` times the height and width.

        Raises:
            ShapeMismatch: An array that is not an image.
            UsageError: An option or an image that is not allowed.
            MissingExtra: An optional package is not installed.
        """
        options = PlaneOptions(
            tile=self.tile if tile is None else tile,
            halo=self.halo if halo is None else halo,
            workers=choose_workers(workers, self.device),
            value_range=value_range,
            nodata=nodata,  # type: ignore[arg-type]  # it converts the type
            consistent=consistent,
        )
        upscale = partial(
            upscale_planes, enlarge=self.enlarge_numbers, scale=self.scale, network_bands=self.bands
        )
        result: Image = upscale_image(array, upscale, self.scale, options, layout)
        return result

    __call__ = upscale

    def enlarge(self, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        """Upscale one tile, in one pass for each group of bands.

        unit: (bands, h, w), finite -> (bands, scale h, scale w). Values far outside [0, 1] are
        clipped for the network; the clipped part is added again, resampled bilinearly.
        """
        return self._enlarge(self.run, unit, groups)

    def enlarge_with_variance(self, unit: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """As `enlarge`, for one group of bands: the mean of the eight, and their variance.

        The variance is (network's bands, scale h, scale w), also for one band upscaled as grey.
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
        """Upscale one tile of bands that go through the network together.

        raw: (bands, h, w), the values of a file or an array.
        known: (bands, h, w), False where raw is missing. Missing pixels affect no others and are
          repeated scale x scale times.
        keep: Window of (scale h, scale w) to return.  radiometry: What the values are in [0, 1].
        nodata: For each band the value that no result may equal, or None.
        consistent: Whether downsampling the result gives back raw.
        calibration: Also compute the expected error.
        Returns the values in `keep`, and with a calibration the expected error, (h, w), NaN where
        any band is missing.
        """
        whole = radiometry.to_unit(raw)
        outlier = known & ((whole < OUTLIER[0]) | (whole > OUTLIER[1]))
        # An outlier is clipped before anything is computed; the clipped part is added again below.
        unit = filled(np.where(outlier, whole.clip(*NETWORK_RANGE), whole), known)
        if calibration is None:
            sr, variance = self.enlarge(unit, (tuple(range(len(raw))),)), None
        else:
            sr, variance = self.enlarge_with_variance(unit)
        if consistent:
            sr = make_consistent(
                sr, torch.from_numpy(unit), torch.from_numpy(known & ~outlier), self.scale
            )
        if outlier.any():
            beyond = torch.from_numpy(np.where(outlier, whole - unit, np.float32(0)))
            sr = sr + self._resampled(beyond)
        numbers = radiometry.from_unit(sr[:, *keep.slices].numpy(), nodata=nodata)
        if not known.all():
            numbers = np.where(self._kept(known, keep), numbers, self._kept(raw, keep))
        if calibration is None or variance is None:
            return numbers, None
        expected = calibration.expected_error(doubt(sr, variance)[keep.slices].numpy())
        # one range for all bands of a group
        expected = rounded(expected * np.float32(radiometry.high[0] - radiometry.low[0]))
        everywhere = self._kept(np.logical_and.reduce(known), keep)
        return numbers, np.where(everywhere, expected, np.float32(np.nan))

    def _kept(self, pixels: NDArray[Any], keep: Window) -> NDArray[Any]:
        """Each pixel of (..., h, w) scale x scale times, in a window of the result."""
        return repeated(pixels, self.scale)[..., *keep.slices]

    def _enlarge(self, run: Run, unit: NDArray[np.float32], groups: Groups) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(unit))
        seen = whole.clamp(*NETWORK_RANGE)
        result = enlarge_groups(run, seen, groups, self.bands)
        beyond = whole - seen
        return result + self._resampled(beyond) if beyond.any() else result

    def _resampled(self, planes: Tensor) -> Tensor:
        """(bands, h, w) -> (bands, scale h, scale w), bilinear."""
        return F.interpolate(planes[None], scale_factor=self.scale, mode="bilinear")[0]
