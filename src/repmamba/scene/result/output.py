"""OutputProfile: everything about the file at the target, decided before the first pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from repmamba.errors import UsageError
from repmamba.scene.source.grid import Grid

Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OutputProfile:
    """The result as a file. Per-band fields have `count` entries; empty ones get defaults.

    Missing pixels are marked by a mask beside the bands (mask=True), else by an alpha band (the
    first that colorinterp names), else by the nodata value in the data.
    """

    format: str  # a name of scene.result.formats.FORMATS
    grid: Grid  # hr
    count: int  # bands, alpha included
    dtype: str  # NumPy's name
    nodata: float | None = None
    mask: bool = False
    # value where a single band is missing, declared or not
    band_nodata: tuple[float | None, ...] = ()
    colorinterp: tuple[str, ...] = ()  # names of rasterio.enums.ColorInterp
    descriptions: tuple[str | None, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    units: tuple[str | None, ...] = ()
    # namespace -> tags; "" is GDAL's default one
    tags: Mapping[str, Tags] = field(default_factory=dict)
    band_tags: tuple[Mapping[str, Tags], ...] = ()  # the same for each band
    gcps: tuple[tuple[GroundControlPoint, ...], CRS | None] | None = None
    rpcs: Tags | None = None  # GDAL's RPC tags, LINE_OFF and so on
    creation: tuple[tuple[str, str], ...] = ()  # creation options from the user

    def __post_init__(self) -> None:
        defaults: dict[str, tuple[object, ...]] = {
            "colorinterp": self._usual_colours(),
            "descriptions": (None,) * self.count,
            "scales": (1.0,) * self.count,
            "offsets": (0.0,) * self.count,
            "units": (None,) * self.count,
            "band_nodata": (self.nodata,) * self.count,
            "band_tags": ({},) * self.count,
        }
        for name, usual in defaults.items():
            given = getattr(self, name)
            if not given:
                object.__setattr__(self, name, usual)
            elif len(given) != self.count:
                raise UsageError(
                    f"The output has {self.count} bands but {len(given)} {name}: give one per band."
                )

    def _usual_colours(self) -> tuple[str, ...]:
        if self.count == 3:
            return ("red", "green", "blue")
        return ("gray", *("undefined",) * (self.count - 1))

    @property
    def has_place(self) -> bool:
        """Whether the result is georeferenced: a transform, a CRS, control points or RPCs."""
        grid = self.grid
        return any(place is not None for place in (grid.transform, grid.crs, self.gcps, self.rpcs))

    @property
    def alpha(self) -> int | None:
        """Index of the alpha band, from 0; None without one."""
        return self.colorinterp.index("alpha") if self.has_alpha else None

    @property
    def has_alpha(self) -> bool:
        """Whether there is an alpha band."""
        return self.count > 1 and "alpha" in self.colorinterp
