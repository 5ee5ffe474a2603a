"""SceneResult: what became of a scene, as a value, as a line of text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba.scene.source.grid import Grid


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What became of a scene."""

    path: Path | None  # None: written to a file object
    grid: Grid  # hr
    scale: int
    bands: int
    tiles: int
    resumed: int  # tiles that an earlier, stopped run had finished
    seconds: float
    corrupt_pixels: int  # lr pixels that could not be read and are missing in the result
    weights: str
    chosen: str | None  # what the weights were chosen by, where the scene decided
    consistent: bool
    confidence: Path | None = None  # the raster that says how far the result can be trusted
    kept: bool = False  # the whole result of this very job was there already
    computed: int = 0  # pixels of the result, in this run
    seconds_computing: float = 0.0  # of these pixels

    def __repr__(self) -> str:
        return f"<SceneResult {self.summary()}>"

    def summary(self) -> str:
        """One line for people."""
        if self.kept:
            return (
                f"{self.path}: done already, by this very command; overwrite=True computes it anew"
            )
        bands = f"{self.bands} band{'s' * (self.bands > 1)}"
        return f"{self.brief(f'{bands}, {self.method}')}"

    @property
    def method(self) -> str:
        """What it was made by, in a few words."""
        return (
            f"x{self.scale} with {self.weights}, {'' if self.consistent else 'not '}made consistent"
        )

    @property
    def speed(self) -> float | None:
        """Megapixels of the result a second, while pixels were computed; None where none were."""
        return (
            self.computed / 1e6 / self.seconds_computing
            if self.computed and self.seconds_computing
            else None
        )

    def brief(self, more: str = "") -> str:
        """The line of one of several results: what may differ from result to result."""
        if self.kept:
            return f"{self.path}: done already"
        said = f", {more}, " if more else " "
        speed = "" if self.speed is None else f" ({self.speed:.2f} megapixels/s while computing)"
        return (
            f"{self.path or 'in memory'}: {self.grid.width} x {self.grid.height} pixels{said}"
            f"in {self.seconds:.1f} s{speed}"
            + (f"; {self.resumed} of {self.tiles} tiles were there already" if self.resumed else "")
            + (
                f"; {self.corrupt_pixels} corrupt input pixels are missing"
                if self.corrupt_pixels
                else ""
            )
            + (f"; how far to trust it: {self.confidence}" if self.confidence else "")
        )

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        transform = self.grid.transform
        return {
            "path": None if self.path is None else str(self.path),
            "width": self.grid.width,
            "height": self.grid.height,
            "bands": self.bands,
            "crs": None if self.grid.crs is None else self.grid.crs.to_wkt(),
            "epsg": None if self.grid.crs is None else self.grid.crs.to_epsg(),
            "transform": None if transform is None else list(transform)[:6],
            "scale": self.scale,
            "weights": self.weights,
            "chosen": self.chosen,
            "consistent": self.consistent,
            "tiles": self.tiles,
            "tiles_resumed": self.resumed,
            "done_already": self.kept,
            "seconds": round(self.seconds, 3),
            "seconds_computing": round(self.seconds_computing, 3),
            "megapixels_per_second": None if self.speed is None else round(self.speed, 3),
            "corrupt_pixels": self.corrupt_pixels,
            "confidence": None if self.confidence is None else str(self.confidence),
        }
