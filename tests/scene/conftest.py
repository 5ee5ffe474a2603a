"""A stand-in for a network, quick and exactly known, and a maker of small rasters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.resize import imresize_torch


@dataclass(frozen=True)
class BicubicRunner:
    """imresize in a network's place; each pixel depends on its near neighbours alone, so tiles can
    be told exactly.
    """

    scale: int = 2
    bands: int = 3

    def run(self, unit: torch.Tensor) -> torch.Tensor:
        return imresize_torch(unit, self.scale)


def bicubic_upscaler(scale: int = 2, **changes: Any) -> Upscaler:
    settings = {"tile": 64, "halo": 8, "device": torch.device("cpu")} | changes
    return Upscaler(torch.nn.Identity(), BicubicRunner(scale), "bicubic", "0" * 32, **settings)


@pytest.fixture(scope="session")
def bicubic() -> Upscaler:
    """x2, tiles of 64 and halos of 8 pixels."""
    return bicubic_upscaler()


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Write (bands, h, w) as a file; a place on the map unless transform=None; further options are
    rasterio's.
    """

    def write(
        name: str,
        data: NDArray[Any],
        *,
        mask: NDArray[np.bool_] | None = None,
        **profile: Any,
    ) -> Path:
        path = tmp_path / name
        usual = {
            "driver": "GTiff",
            "crs": "EPSG:32633",
            "transform": Affine(10, 0, 500000, 0, -10, 4100000),
        }
        options = {key: value for key, value in (usual | profile).items() if value is not None}
        count, height, width = data.shape
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", count=count, height=height, width=width, dtype=data.dtype, **options
            ) as file,
        ):
            file.write(data)
            if mask is not None:
                file.write_mask(mask)
        return path

    return write


@pytest.fixture
def smooth() -> Callable[..., NDArray[Any]]:
    """A picture that looks like one to a network: soft shapes over the range given; (bands, h,
    w).
    """

    def make(
        bands: int,
        height: int,
        width: int,
        dtype: str = "uint8",
        low: float = 20,
        high: float = 230,
    ) -> NDArray[Any]:
        rows, cols = np.mgrid[:height, :width]
        waves = [np.sin(rows / (7 + band)) * np.cos(cols / (5 + 2 * band)) for band in range(bands)]
        unit = (np.stack(waves) + 1) / 2
        return (low + (high - low) * unit).astype(dtype)

    return make
