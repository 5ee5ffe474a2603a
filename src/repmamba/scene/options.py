"""The options of upscale_file and plan_file in groups, each checked once, when it is made.

The fields of a group are keywords of upscale_file, whose docstring describes them. ReadOptions is
in source/admission.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from repmamba.errors import UsageError
from repmamba.pixels.radiometry import range_of
from repmamba.scene.source.admission import band_selection
from repmamba.tiles.plan import check_cut
from repmamba.tiles.window import Window

Group = TypeVar("Group")
ValueRange: TypeAlias = tuple[float, float] | Literal["robust", "type"]


def group_of(group: type[Group], keywords: Mapping[str, Any]) -> Group:
    """A group made of those keywords that are its fields."""
    return group(**{field.name: keywords[field.name] for field in fields(group)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the network is loaded, as `load` takes it."""

    scale: int | None = None
    device: str | None = None
    backend: str | None = None
    precision: str | None = None
    ensemble: bool = False

    def as_keywords(self) -> dict[str, Any]:
        """The arguments of `load`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What decides the pixels and the file of a result; None follows the weights and the scene.

    Lengths are in lr pixels. What upscale_file takes in other forms is converted to these types.
    Raises UsageError.
    """

    tile: int | None = None
    halo: int | None = None
    window: Window | None = None
    bbox: tuple[float, float, float, float] | None = None
    bands: tuple[int | str, ...] | None = None
    rgb: tuple[int | str, ...] | None = None
    value_range: ValueRange | None = None
    consistent: bool | None = None
    format: str | None = None
    creation: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, plain in (
            *(("tile", operator.index), ("halo", operator.index), ("window", _window)),
            *(("bbox", _bbox), ("bands", band_selection), ("rgb", band_selection)),
            *(("consistent", bool), ("creation", _creation)),
            ("value_range", partial(range_of, words=("robust", "type"))),
        ):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(value))
        if self.window is not None and self.bbox is not None:
            raise UsageError("window= and bbox= both name a part of the scene: give one of them.")
        check_cut(self.tile, self.halo)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a call treats the files at its targets, and what computes it. Changes no pixel."""

    overwrite: bool = False
    restart: bool = False
    keep_finished: bool = False  # without effect beside overwrite or restart
    confidence: Path | None = None
    workers: int | None = None
    cluster: Any = None

    def __post_init__(self) -> None:
        if self.overwrite or self.restart:
            object.__setattr__(self, "keep_finished", False)
        if self.confidence is not None:
            object.__setattr__(self, "confidence", Path(self.confidence))
        if self.workers is not None and self.cluster is not None:
            raise UsageError("The workers are those of the cluster: give workers= or cluster=.")


def _window(value: Any) -> Window:
    """A Window, one of rasterio, or col, row, width, height. Raises UsageError for fractions."""
    if isinstance(value, Window):
        return value
    if hasattr(value, "col_off"):
        value = (value.col_off, value.row_off, value.width, value.height)
    col, row, width, height = value
    if not all(float(length).is_integer() for length in (col, row, width, height)):
        raise UsageError(f"window={(col, row, width, height)}: give whole numbers of pixels.")
    return Window(int(row), int(col), int(height), int(width))


def _bbox(value: Iterable[float]) -> tuple[float, float, float, float]:
    left, bottom, right, top = map(float, value)
    if not all(map(math.isfinite, (left, bottom, right, top))):
        raise UsageError(f"bbox={(left, bottom, right, top)}: give four finite numbers.")
    return left, bottom, right, top


def _creation(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(setting) for name, setting in dict(value).items()}
