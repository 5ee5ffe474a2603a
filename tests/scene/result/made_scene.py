"""A made scene whose every pixel is known, and a process that writes it: `python made_scene.py
TARGET FORMAT [WHAT]`.

The tests kill that process, fill its disk and limit its files. WHAT is `limit=BYTES` (of any file
it writes) or `pause=SECONDS` (before each tile, so that a kill finds it at work).
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from repmamba.errors import RepmambaError
from repmamba.scene.result.job import JobIdentity
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import squares
from repmamba.scene.result.receipt import Receipt
from repmamba.scene.result.writer import SceneWriter
from repmamba.scene.source.grid import Grid
from repmamba.tiles.window import Window

PLACE = Grid(700, 600, Affine(2.5, 0, 500000, 0, -2.5, 4100000), CRS.from_epsg(32633))
JOB = JobIdentity(
    {"name": "scene.tif", "bytes": 1234, "digest": "ab" * 16},
    "cd" * 16,
    {"scale": 4, "tile": 64},
    "0.1.0",
)


@dataclass(frozen=True)
class MadeScene:
    """Smooth waves with a little noise, some pixels missing where the format has a mask."""

    format: str = "GTiff"
    count: int = 3
    dtype: str = "uint8"
    mask: bool = False
    tile: int = 256
    grid: Grid = PLACE
    job: JobIdentity = JOB
    creation: tuple[tuple[str, str], ...] = ()
    nodata: float | None = None
    colorinterp: tuple[str, ...] = ()
    tiles: tuple[Window, ...] = ()

    @property
    def profile(self) -> OutputProfile:
        return OutputProfile(
            self.format,
            self.grid,
            self.count,
            self.dtype,
            nodata=self.nodata,
            mask=self.mask,
            colorinterp=self.colorinterp,
            creation=self.creation,
        )

    @property
    def windows(self) -> tuple[Window, ...]:
        return self.tiles or squares(self.grid.width, self.grid.height, self.tile)

    def data(self) -> NDArray[Any]:
        """(count, h, w)"""
        rows, cols = np.mgrid[: self.grid.height, : self.grid.width]
        noise = np.random.default_rng(7).integers(
            0, 12, (self.count, self.grid.height, self.grid.width)
        )
        waves = [
            110 + 90 * np.sin(rows / (20 + 3 * band)) * np.cos(cols / 31)
            for band in range(self.count)
        ]
        return (np.stack(waves) + noise).astype(self.dtype)

    def valid(self) -> NDArray[np.bool_]:
        """(h, w)"""
        rows, cols = np.mgrid[: self.grid.height, : self.grid.width]
        return (rows - 200) ** 2 + (cols - 300) ** 2 > 90**2

    def writer(self, target: Path, **options: Any) -> SceneWriter:
        return SceneWriter(target, self.profile, self.job, self.windows, **options)

    def write(
        self,
        target: Path,
        *,
        order: int = 1,
        before: Callable[[int], None] = lambda index: None,
        **options: Any,
    ) -> Receipt:
        """Write what remains of it, last tile first with order=-1."""
        data, valid = self.data(), self.valid()
        with self.writer(target, **options) as writer:
            for index in writer.remaining()[::order]:
                before(index)
                rows, cols = self.windows[index].slices
                writer.put(index, data[:, rows, cols], valid[rows, cols] if self.mask else None)
            return writer.finish()


class Described(MadeScene):
    """A made scene with a profile of its own."""

    def __init__(self, profile: OutputProfile) -> None:
        super().__init__(profile.format, profile.count, profile.dtype, grid=profile.grid, tile=64)
        object.__setattr__(self, "given", profile)

    @property
    def profile(self) -> OutputProfile:
        return self.given  # type: ignore[attr-defined,no-any-return]


SCENES = {
    "GTiff": ("scene.tif", MadeScene(mask=True)),
    "COG": ("scene.cog.tif", MadeScene("COG", mask=True, creation=(("BLOCKSIZE", "128"),))),
    "PNG": ("scene.png", MadeScene("PNG")),
    "JPEG": ("scene.jpg", MadeScene("JPEG")),
}


def main(target: str, name: str, what: str = "") -> None:
    kind, _, amount = what.partition("=")
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(amount), int(amount)))
    pause = float(amount) if kind == "pause" else 0.0
    try:
        SCENES[name][1].write(Path(target), before=lambda index: time.sleep(pause))
    except RepmambaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
