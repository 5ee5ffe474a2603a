"""SceneResult: what was written, as a value, as a line of text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba.scene.source.grid import Grid


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What was written, and how."""

    path: Path | None  # None for a file object
    grid: Grid  # size and place of the result
    scale: int  # 2, 3 or 4
    bands: int  # alpha included
    tiles: int
    resumed: int  # tiles that an earlier, stopped run had finished
    seconds: float  # duration of the call
    corrupt_pixels: int  # of the input, that could not be read and are missing in the result
    weights: str
    chosen: str | None  # why these weights were chosen, if the scene decided
    consistent: bool  # whether the result was made consistent with its input
    confidence: Path | None = None  # the confidence raster, if one was written
    kept: bool = False  # whether the target already was the complete result of this call
    computed: int = 0  # pixels of the result that this call computed
    seconds_computing: float = 0.0  # for these pixels

    def __repr__(self) -> str:
        return f"<SceneResult {self.summary()}>"

    def summary(self) -> str:
        """One line of text."""
        if self.kept:
            return (
                f"{self.path}: already done by the same command; overwrite=True computes it again"
            )
        bands = f"{self.bands} band{'s' * (self.bands > 1)}"
        return self.brief(f"{bands}, {self.method}")

    @property
    def method(self) -> str:
        """How it was made, in a few words."""
        return (
            f"x{self.scale} with {self.weights}, {'' if self.consistent else 'not '}made consistent"
        )

    @property
    def speed(self) -> float | None:
        """Megapixels of the result per second of computing; None if none were computed."""
        if not (self.computed and self.seconds_computing):
            return None
        return self.computed / 1e6 / self.seconds_computing

    def brief(self, more: str = "") -> str:
        """One line, with what may differ between several results."""
        if self.kept:
            return f"{self.path}: already done"
        details = f", {more}, " if more else " "
        speed = "" if self.speed is None else f" ({self.speed:.2f} megapixels/s while computing)"
        return (
            f"{self.path or 'in memory'}: {self.grid.width} x {self.grid.height} pixels{details}"
            f"in {self.seconds:.1f} s{speed}"
            + f"; {self.resumed} of {self.tiles} tiles were finished before" * bool(self.resumed)
            + f"; {self.corrupt_pixels} corrupt input pixels are missing"
            * bool(self.corrupt_pixels)
            + f"; confidence: {self.confidence}" * bool(self.confidence)
        )

    def as_json(self) -> dict[str, Any]:
        """The values as JSON."""
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
