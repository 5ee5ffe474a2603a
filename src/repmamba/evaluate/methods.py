"""The methods that are compared: nearest, bicubic, networks, and folders of results.

Each makes sr (s h, s w, C) from a pair. Computed results are unit floats, neither clipped nor
rounded, so that each rule can round in its own way; results read from files keep their type.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repmamba.data.images import find_images, read_image
from repmamba.data.pairs import Pair
from repmamba.errors import MethodFailed, RepmambaError, ShapeMismatch, SourceError, UsageError
from repmamba.evaluate.metrics import peak_of
from repmamba.pixels.resize import imresize
from repmamba.tiles.plan import check_cut

if TYPE_CHECKING:
    from repmamba.inference.upscaler import Upscaler

Image = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Method:
    """A way from lr to sr."""

    name: str  # also of its folder of results; may be "runs/best"
    how: str  # one line, printed with the results
    enlarge: Callable[[Pair], Image]
    scale: int | None = None  # None for any
    upscaler: "Upscaler | None" = None  # if its cost can be given
    passes: int = 1  # through the network for one image
    weights: str | None = None  # what the upscaler was loaded from
    origin: Path | None = None  # the file or folder that it is named after, absolute
    # (name, scale) of a pair -> its result, if results are read
    find: Callable[[str, int], Path] | None = None

    def __repr__(self) -> str:
        return f"<Method {self.name}: {self.how}>"

    def sr_of(self, pair: Pair) -> Image:
        """The sr of a pair, with the shape of its hr.

        Raises MethodFailed: `enlarge` raised something else than an error of repmamba;
        ShapeMismatch: the result has another shape.
        """
        try:
            sr = self.enlarge(pair)
        except RepmambaError as error:
            if pair.name in str(error):
                raise
            raise type(error)(f"{self.name}, on {pair.name}: {error}") from error
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise MethodFailed(f"The method {self.name} failed on {pair.name}. {reason}") from error
        if not isinstance(sr, np.ndarray) or sr.shape != pair.hr.shape:
            shaped = isinstance(sr, np.ndarray)
            found = f"an array of shape {sr.shape}" if shaped else f"a {type(sr).__name__}"
            raise ShapeMismatch(
                f"The method {self.name} gave {found} for {pair.name}; a numpy array of shape "
                f"{pair.hr.shape} is expected."
            )
        return sr


def nearest() -> Method:
    """Each pixel repeated s x s times."""
    return Method(
        "nearest",
        "each pixel of LR repeated",
        lambda pair: pair.lr.repeat(pair.scale, 0).repeat(pair.scale, 1),
    )


def bicubic() -> Method:
    """MATLAB's bicubic of the same lr that a network gets."""
    return Method(
        "bicubic",
        "MATLAB's imresize of LR as it is on disk",
        lambda pair: imresize(in_unit(pair.lr), pair.scale),
    )


CLASSICS = {"nearest": nearest, "bicubic": bicubic}


def network(
    upscaler: "Upscaler",
    weights: str | None = None,
    *,
    ensemble: bool = False,
    tile: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> Method:
    """A network, its output neither clipped nor rounded, without back-projection.

    weights: What it was loaded from.
    ensemble: Use the mean over the eight flips and rotations of each tile.
    tile: lr pixels kept of each tile, even; by default one pass over the whole image, as in the
      published evaluation.
    value_range: The values that are black and white to it, by default the type's whole range.
    Raises UsageError: the tile is not valid.
    """
    check_cut(tile, None)
    asked = replace(upscaler, ensemble=ensemble)

    def enlarge(pair: Pair) -> Image:
        if pair.scale != upscaler.scale:
            raise ShapeMismatch(
                f"{pair.name} is an x{pair.scale} pair, and {upscaler.name} enlarges "
                f"x{upscaler.scale}."
            )
        largest = peak_of(pair.lr) if np.issubdtype(pair.lr.dtype, np.integer) else 1.0
        low, high = (0.0, largest) if value_range is None else value_range
        lr = ((pair.lr.astype(np.float64) - low) / (high - low)).astype(np.float32)
        edge = max(lr.shape[:2])
        cut = {"tile": edge + edge % 2, "halo": 0} if tile is None else {"tile": tile}
        sr = asked.upscale(lr, layout="bands-last", **cut)
        return sr if value_range is None else (sr.astype(np.float64) * (high - low) + low) / largest

    how = "one pass over the whole image" if tile is None else f"tiles of {tile} lr pixels"
    span = "the type's whole range" if value_range is None else "{:g} to {:g}".format(*value_range)
    how += f", values over {span}, without back-projection"
    return Method(
        upscaler.name + "+" * ensemble,
        f"network {upscaler.digest[:12]}, {upscaler.precision}, {how}"
        + ", mean of 8 flips and rotations" * ensemble,
        enlarge,
        upscaler.scale,
        upscaler,
        8 if ensemble else 1,
        weights,
        _origin(weights) if weights else None,
    )


def results(folder: Path) -> Method:
    """Results made elsewhere, by the names of the pairs: "Airport/airport_1", "airport_1_x4".

    The class folder may be left out; the scale may follow the name as "_x4" or "x4".

    Raises SourceError: it is not a folder, or lacks a result; UsageError: a name fits two files.
    """
    files: dict[str, list[Path]] = {}
    for path in find_images(folder):
        inside = path.relative_to(folder).with_suffix("")
        for name in {inside.as_posix(), inside.name}:
            files.setdefault(name, []).append(path)

    def find(image: str, scale: int) -> Path:
        base = image.rpartition("/")[2]
        scaled = (f"{one}{mark}{scale}" for one in (image, base) for mark in ("_x", "x"))
        for name in (image, base, *scaled):
            found = files.get(name, [])
            if len(found) > 1:
                raise UsageError(
                    f"{folder} has {len(found)} results named {name}; put them into class folders."
                )
            if found:
                return found[0]
        raise SourceError(
            f"{folder} has no result for {image}; results have the names of the pairs."
        )

    def enlarge(pair: Pair) -> Image:
        return fitting_result(read_image(find(pair.name, pair.scale)), pair)

    origin = Path(os.path.abspath(folder))  # "." has no name
    return Method(
        origin.name,
        f"images found in the folder {origin.name}, as they are",
        enlarge,
        origin=origin,
        find=find,
    )


def fitting_result(sr: Image, pair: Pair) -> Image:
    """Return a result read from a file. Raises ShapeMismatch if GT has another shape or type."""
    if sr.shape != pair.hr.shape or sr.dtype != pair.hr.dtype:
        raise ShapeMismatch(
            f"The result for {pair.name} is {sr.shape} of {sr.dtype}, and GT is {pair.hr.shape} of "
            f"{pair.hr.dtype}."
        )
    return sr


def with_distinct_names(methods: Sequence[Method]) -> list[Method]:
    """The methods with distinct names, as far as the folders above their files differ."""
    origins = [method.origin for method in methods]
    names = distinct_names([method.name for method in methods], origins)
    return [replace(method, name=name) for method, name in zip(methods, names, strict=True)]


def distinct_names(names: Sequence[str], origins: Sequence[Path | None]) -> list[str]:
    """Prefix names with as many parent folders as make them distinct: "runs/a/best".

    origins: absolute paths; a name without one is unchanged. Names of the same origin stay equal.
    """
    above = [origin.parts[1:-1] if origin else () for origin in origins]
    depths = [0] * len(names)
    while True:
        longer = [
            "/".join([*parts[len(parts) - depth :], name])
            for name, parts, depth in zip(names, above, depths, strict=True)
        ]
        repeated = [i for i, name in enumerate(longer) if longer.count(name) > 1]
        alike = [i for i in repeated if depths[i] < len(above[i])]
        if not alike:
            return longer
        for i in alike:
            depths[i] += 1


def in_unit(image: Image) -> NDArray[np.float64]:
    """Integers divided by the maximum of their type; floats unchanged."""
    if np.issubdtype(image.dtype, np.integer):
        return image.astype(np.float64) / peak_of(image)
    return image.astype(np.float64)


def _origin(weights: str) -> Path | None:
    """Where weights are on this machine; None for packaged ones."""
    from repmamba.inference.catalogue import packaged_weights

    if weights in {entry.name for entry in packaged_weights()} or not Path(weights).exists():
        return None
    return Path(os.path.abspath(weights))
