"""Whether an assembled file holds what was computed: every pixel of every level, and metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint

from repmamba.errors import VerificationError
from repmamba.scene.result.formats import FORMATS, is_lossless
from repmamba.scene.result.mosaic import Mosaic
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import Inspect, PartProgress, measure, missing_block, open_level
from repmamba.scene.result.receipt import Level
from repmamba.tiles.window import Window

# largest mean difference of a lossy format, in grey levels; a lost block differs by more
LOSSY_ERROR = 24.0


def read_back(
    path: Path,
    profile: OutputProfile,
    expected: Sequence[Level],
    mosaic: Mosaic,
    progress: PartProgress,
) -> tuple[Level, ...]:
    """The levels as read from the file. Raises VerificationError if they differ from expected."""
    chosen, lossless = FORMATS[profile.format], is_lossless(profile)
    found_levels = []
    for number, level in enumerate(expected):
        with open_level(path, number) as dataset:
            if (dataset.width, dataset.height) != (level.width, level.height):
                raise VerificationError(
                    f"Level {number} of {path.name} has another size than was written."
                )
            bounded = _bounding_errors(path, mosaic, has_alpha=profile.has_alpha)
            windows = [piece.window for piece in level.pieces]
            found = tuple(
                measure(
                    dataset,
                    windows,
                    mask=profile.mask,
                    lossless=lossless,
                    one_pass=chosen.one_pass,
                    inspect=None if lossless or number else bounded,
                    progress=progress if number == 0 else None,
                )
            )
        for index, (wanted, piece) in enumerate(zip(level.pieces, found, strict=True)):
            if wanted.mask != piece.mask or (lossless and wanted.pixels != piece.pixels):
                raise VerificationError(
                    f"Tile {index} of level {number} of {path.name} did not reach the disk."
                )
            # WebP changes the colours of transparent pixels
            compared = slice(-1 if profile.has_alpha else 0, None)
            # Lossless pieces have no means.
            if not np.allclose(
                wanted.means[compared], piece.means[compared], rtol=0, atol=LOSSY_ERROR
            ):
                raise VerificationError(
                    f"Tile {index} of level {number} of {path.name} has other means than the "
                    "result: it was lost on the way to the disk or compressed too strongly."
                )
        found_levels.append(Level(level.width, level.height, found))
        if chosen.driver in ("GTiff", "COG"):
            with open_level(path) as dataset:
                if (lost := missing_block(dataset, number)) is not None:
                    raise VerificationError(
                        f"{lost} of level {number} of {path.name} did not reach the disk."
                    )
    return tuple(found_levels)


def _bounding_errors(path: Path, mosaic: Mosaic, *, has_alpha: bool) -> Inspect:
    """A check for lossy files. Raises VerificationError where the error is too large."""

    def inspect(part: Window, rows: NDArray[Any], _: NDArray[np.bool_] | None) -> None:
        wanted = mosaic.read(part).rows
        errors = np.abs(rows.astype(np.float32) - wanted)
        if has_alpha:
            errors[:, :-1] *= wanted[:, -1:] != 0
        if (error := errors.mean()) > LOSSY_ERROR:
            raise VerificationError(
                f"{path.name}, rows {part.row} to {part.bottom}, differs from the "
                f"result by {error:.0f} grey levels on average: it was lost on the way to the disk "
                "or compressed too strongly."
            )

    return inspect


def check_description(path: Path, profile: OutputProfile) -> None:
    """Raise VerificationError unless the file has the bands, place and nodata of the profile."""
    with open_level(path) as dataset:
        grid, transform = profile.grid, profile.grid.transform
        points, points_crs = profile.gcps or ((), None)
        metadata = {
            "bands": (dataset.count, profile.count),
            "type": (dataset.dtypes[0], profile.dtype),
            "nodata": (str(dataset.nodata), str(_as_held(profile.nodata, profile.dtype))),
            "CRS": (
                dataset.crs is not None or dataset.gcps[1] is not None,
                grid.crs is not None or points_crs is not None,
            ),
            "control points": (_lie_at(points, dataset.gcps[0]), True),
            "transform": (
                transform is None
                or dataset.transform.almost_equals(
                    transform, 1e-9 * max(1.0, *map(abs, transform[:6]))
                ),
                True,
            ),
        }
        wrong = [
            f"{name}: {found}, not {wanted}"
            for name, (found, wanted) in metadata.items()
            if found != wanted
        ]
    if wrong:
        raise VerificationError(
            f"{path.name} does not have the metadata that were written: {'; '.join(wrong)}."
        )


def _as_held(nodata: float | None, dtype: str) -> float | None:
    """Nodata rounded to the type: -3.40282e+38 is not exactly a float32."""
    return None if nodata is None else float(np.dtype(dtype).type(nodata))


def _lie_at(points: Sequence[GroundControlPoint], found: Sequence[GroundControlPoint]) -> bool:
    """Whether GCPs match to side-car precision: 4 decimals of pixels, 13 digits of x, y."""
    return len(points) == len(found) and all(
        np.allclose((one.row, one.col), (other.row, other.col), rtol=0, atol=1e-4)
        and np.allclose((one.x, one.y), (other.x, other.y), rtol=1e-12, atol=1e-6)
        for one, other in zip(points, found, strict=True)
    )


def check_intermediates(
    files: Sequence[Path], levels: Sequence[Level], profile: OutputProfile
) -> None:
    """Raise VerificationError if GDAL lost a part of the files that overviews are made from."""
    for number, (file, level) in enumerate(zip(files, levels, strict=True)):
        with open_level(file) as dataset:
            windows = [piece.window for piece in level.pieces]
            found = measure(dataset, windows, mask=profile.mask, lossless=True, one_pass=False)
            for expected, piece in zip(level.pieces, found, strict=True):
                if (expected.pixels, expected.mask) != (piece.pixels, piece.mask):
                    raise VerificationError(
                        f"Level {number} of the result did not reach the disk whole."
                    )
