"""What upscale_file and plan_file take by keyword: the names, what each of them takes, and a line
for all else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from repmamba.inference.options import (
    FLAG,
    NODATA,
    PATH,
    PIXELS,
    RANGE,
    TEXT,
    WHOLE,
    Kind,
    checked,
    number,
    several,
    whole,
)
from repmamba.scene.plan import ValueRange
from repmamba.tiles.window import Window


class Arguments(TypedDict, total=False):
    """The options by keyword; what is left out or None follows from weights and scene."""

    scale: int | None  # only to be sure: weights of another one are refused
    device: str | None  # cpu, cuda, mps
    backend: str | None  # of the scan
    precision: str | None  # float32 or bfloat16
    ensemble: bool  # the mean over the eight flips and rotations, for eight times the work
    # a raster of the error to expect in each pixel; brings ensemble with it
    confidence: str | os.PathLike[str] | None
    tile: int | None  # edge of the kept part of a tile, lr pixels, even
    halo: int | None  # what is read around it, lr pixels, even
    # only this part, lr pixels: col, row, width, height
    window: Window | tuple[int, int, int, int] | None
    # the same as left, bottom, right, top in the scene's CRS
    bbox: tuple[float, float, float, float] | None
    # only these, by their numbers in the file, from 1, or their names
    bands: Iterable[int | str] | None
    # the numbers or names of red, green and blue; as the file says unless given
    rgb: Sequence[int | str] | None
    # of all bands, or one a band; in place of what the file declares
    nodata: float | Sequence[float] | None
    # False: a band that the file calls alpha is enlarged as others are, and tells nothing
    alpha: bool
    value_range: ValueRange | None  # black and white to the network; nothing is clipped to it
    consistent: bool | None  # back-projection; on where the scene has a place unless given
    format: str | None  # a name of scene.formats; by the target's ending unless given
    creation: Mapping[str, str] | None  # GDAL's creation options
    workers: int | None  # tiles side by side; the number of CPU cores unless given; changes no byte
    # compute on a Dask cluster: its scheduler's address or file (.json), or a distributed.Client
    cluster: Any
    untrusted: bool  # read as a stranger's file
    max_pixels: int | None  # allow a source of so many
    on_corrupt: Literal["error", "fill"]  # fill: blocks that cannot be read are missing pixels
    expand_palette: bool  # enlarge the colours of a palette even where they are classes


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were given, in plain Python types, the window as ours. Raises
    UsageError.
    """
    return checked(arguments, KINDS, ON_THE_COMMAND_LINE)


def _window(value: Any) -> Window:
    """Four numbers as the command line and rasterio order them, a Window of rasterio, or one of
    ours.
    """
    if isinstance(value, Window):
        return value
    if hasattr(value, "col_off"):
        value = [
            _exactly(value.col_off),
            _exactly(value.row_off),
            _exactly(value.width),
            _exactly(value.height),
        ]
    col, row, width, height = several(whole, 4)(value)
    return Window(row, col, height, width)


def _bands(count: int | None = None) -> Callable[[Any], tuple[int | str, ...]]:
    """Numbers and names of bands; as many as count, where it is given."""

    def read(values: Any) -> tuple[int | str, ...]:
        if isinstance(values, str):
            raise TypeError("This is one text.")
        return several(lambda value: value if isinstance(value, str) else whole(value), count)(
            values
        )

    return read


def _exactly(length: float) -> int:
    """A length of rasterio, which has floats, as the integer that it is."""
    if not float(length).is_integer():
        raise ValueError(f"{length} is no whole number of pixels.")
    return int(length)


def _cluster(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if not hasattr(value, "submit"):  # whether it is a Client is seen where Dask is imported
        raise TypeError("This is no address, file or Client.")
    return value


def _one_of(*names: str) -> Kind:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError("This is none of them.")
        return value

    return Kind(" or ".join(map(repr, names)), read)


def _range(value: Any) -> Any:
    return FOUND.taken(value) if isinstance(value, str) else RANGE.taken(value)


def _creation(value: Any) -> dict[str, str]:
    return {TEXT.taken(name): str(setting) for name, setting in dict(value).items()}


FOUND = _one_of("robust", "type")

KINDS: dict[str, Kind] = {
    "scale": WHOLE,
    "device": Kind("a name, or a torch.device", str),
    "backend": TEXT,
    "precision": TEXT,
    "ensemble": FLAG,
    "confidence": PATH,
    "tile": PIXELS,
    "halo": PIXELS,
    "window": Kind("four whole numbers (col, row, width, height) or a Window of rasterio", _window),
    "bbox": Kind("four numbers: left, bottom, right, top", several(number, 4)),
    "bands": Kind("the numbers of bands, from 1, or their names", _bands()),
    "rgb": Kind("the numbers or names of three bands: red, green, blue", _bands(3)),
    "nodata": NODATA,
    "alpha": FLAG,
    "value_range": Kind(f"{RANGE.words}, or {FOUND.words}", _range),
    "consistent": FLAG,
    "format": TEXT,
    "creation": Kind("creation options by their names, such as {'COMPRESS': 'ZSTD'}", _creation),
    "workers": WHOLE,
    "cluster": Kind("an address, the path of a scheduler file, or a Client of Dask", _cluster),
    "untrusted": FLAG,
    "max_pixels": PIXELS,
    "on_corrupt": _one_of("error", "fill"),
    "expand_palette": FLAG,
}
# names there that are other ones here
ON_THE_COMMAND_LINE = {"range": "value_range", "co": "creation"}
