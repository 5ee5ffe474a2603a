"""From finished tiles to one raster file, written through GDAL and read back before it is trusted.

GeoTIFF is written directly from the tiles, each block once. COG, PNG and JPEG are copied by GDAL
from a temporary GeoTIFF. Overviews of a COG are computed here, from the level above, so every pixel
of every level is known before it is written, and a level lost on a full disk is detected. Tiles are
written by one thread in one order: equal tiles give equal bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.shutil import copy as gdal_copy

from repmamba import durable
from repmamba.errors import NoSpace, RepmambaError, TargetError, VerificationError
from repmamba.gdal import bounded_cache, created, opened, settings, write_out_blocks, writing_alone
from repmamba.scene.result.checks import check_description, check_intermediates, read_back
from repmamba.scene.result.formats import FORMATS, creation_options, raw_bytes
from repmamba.scene.result.journal import Journal
from repmamba.scene.result.mosaic import Mosaic, piece_of
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.overviews import halved
from repmamba.scene.result.readback import (
    GDAL_FAILURES,
    OWN_FILES,
    PartProgress,
    gdal_window,
    squares,
)
from repmamba.scene.result.receipt import Level
from repmamba.scene.result.tile_file import TilePixels
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

WRITING = {"GDAL_TIFF_INTERNAL_MASK": "YES", "GDAL_NUM_THREADS": "1", **OWN_FILES}
# folders in the working folder: for the result, and for the file it is copied from
WHOLE, PARTS = "whole", "parts"
SQUARE = 1024  # hr pixels, edge of a write where tiles do not end on block edges
NOT_WRITABLE = {"bidx", "ns"}  # names of tags that are arguments of update_tags
ALMOST_FULL = 16 << 20  # bytes; with less free space, lost pixels are blamed on a full disk


@dataclass(frozen=True, slots=True)
class Assembled:
    """A complete file that was read back and verified, not yet at the target."""

    path: Path
    sidecars: tuple[Path, ...]
    levels: tuple[Level, ...]


def assemble(
    folder: Path, name: str, profile: OutputProfile, journal: Journal, progress: PartProgress
) -> Assembled:
    """Write the result into a folder inside `folder`, sync it to disk and verify all of it.

    Raises NoSpace, TargetError, VerificationError; then the file is removed and the tiles stay.
    """
    clear_drafts(folder)
    whole = folder / WHOLE
    path = whole / name
    try:
        with gdal_errors(path), bounded_cache():
            whole.mkdir()
            mosaic = Mosaic(journal, profile)
            expected = _WRITERS[profile.format](
                path, profile, mosaic, lambda done: progress(0.6 * done)
            )
            durable.sync_file(path)
            levels = read_back(
                path, profile, expected, mosaic, lambda done: progress(0.6 + 0.4 * done)
            )
            check_description(path, profile)
            sidecars = _sidecars(path, profile)
    except BaseException:
        durable.remove(whole)
        raise
    return Assembled(path, sidecars, levels)


def clear_drafts(folder: Path) -> None:
    """Remove incomplete results that a killed run left in a working folder; tiles stay."""
    for name in (WHOLE, PARTS):
        durable.remove(folder / name)


@contextmanager
def gdal_errors(path: Path) -> Iterator[None]:
    """Turn errors while path is assembled into NoSpace, TargetError, VerificationError."""
    try:
        yield
    except (RepmambaError, *GDAL_FAILURES) as error:
        ours = isinstance(error, RepmambaError)
        if ours and not isinstance(error, VerificationError):
            raise
        free = durable.free_bytes(path.parent.parent)
        if free < ALMOST_FULL or getattr(error, "errno", None) in durable.FULL:
            raise NoSpace(
                f"No space left while {path.name} was assembled ({durable.readable(free)} free). "
                "All tiles are kept: free space and run the same command again."
            ) from error
        if ours:
            raise
        # rasterio's own text is "Write failed. See previous exception for details."
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise TargetError(
            f"{path.name} cannot be assembled ({reason}). All tiles are kept: the same command "
            "continues."
        ) from error


def _write_gtiff(
    path: Path, profile: OutputProfile, mosaic: Mosaic, progress: PartProgress
) -> tuple[Level, ...]:
    options = creation_options(profile)
    _write_tiff(path, profile, options, mosaic, progress)
    return (_base_level(profile, mosaic),)


def _write_cog(
    path: Path, profile: OutputProfile, mosaic: Mosaic, progress: PartProgress
) -> tuple[Level, ...]:
    options = creation_options(profile)
    parts = path.parent.parent / PARTS
    parts.mkdir()
    try:
        base = parts / "level.tif"
        _write_tiff(
            base, profile, _intermediate(profile, 256), mosaic, lambda done: progress(0.4 * done)
        )
        levels = [_base_level(profile, mosaic)]
        files = [base]
        while max(levels[-1].width, levels[-1].height) > int(options["BLOCKSIZE"]):
            # GDAL reads level.tif.ovr.ovr as the second overview of level.tif
            files.append(Path(f"{files[-1]}.ovr"))
            levels.append(_write_overview(files[-2], files[-1], levels[-1], profile))
        check_intermediates(files, levels, profile)
        with settings(WRITING):
            gdal_copy(base, path, driver="COG", OVERVIEWS="FORCE_USE_EXISTING", **options)
        progress(1.0)
    finally:
        durable.remove(parts)
    return tuple(levels)


def _write_copy(
    path: Path, profile: OutputProfile, mosaic: Mosaic, progress: PartProgress
) -> tuple[Level, ...]:
    parts = path.parent.parent / PARTS
    parts.mkdir()
    base = parts / "level.tif"
    described = profile if profile.has_place else replace(profile, tags={"": _tags_inside(profile)})
    try:
        _write_tiff(
            base, described, _intermediate(profile, 64), mosaic, lambda done: progress(0.5 * done)
        )
        # A side-car file only for georeferencing: no .aux.xml beside every picture.
        pam = "YES" if profile.has_place else "NO"
        text = {"WRITE_METADATA_AS_TEXT": "YES"} if profile.format == "PNG" and pam == "NO" else {}
        with settings(WRITING | {"GDAL_PAM_ENABLED": pam}):
            gdal_copy(
                base,
                path,
                driver=FORMATS[profile.format].driver,
                **creation_options(profile),
                **text,
            )
        progress(1.0)
    finally:
        durable.remove(parts)
    return (_base_level(profile, mosaic),)


def _tags_inside(profile: OutputProfile) -> dict[str, str]:
    """The tags that a picture without side-car file carries: PNG as text, JPEG in EXIF."""
    tags = profile.tags.get("", {})
    own = {name: text for name, text in tags.items() if name.startswith("SUPER_RESOL")}
    if profile.format == "PNG" or not own:
        return own
    return {"EXIF_ImageDescription": ", ".join(f"{name}={text}" for name, text in own.items())}


_WRITERS = {"GTiff": _write_gtiff, "COG": _write_cog, "PNG": _write_copy, "JPEG": _write_copy}


def _intermediate(profile: OutputProfile, rows: int) -> dict[str, str]:
    # Blocks of 256 x rows: when read line by line, a row of blocks must fit into GDAL's cache.
    big = "YES" if raw_bytes(profile) > 2 << 30 else "NO"
    interleave = "PIXEL" if profile.count <= 4 else "BAND"
    colours = "RGB" if profile.colorinterp[:3] == ("red", "green", "blue") else "MINISBLACK"
    alpha = {"ALPHA": "YES"} if profile.has_alpha else {}
    return {
        "TILED": "YES",
        "BLOCKXSIZE": "256",
        "BLOCKYSIZE": str(rows),
        "COMPRESS": "ZSTD",
        "ZSTD_LEVEL": "1",
        "PREDICTOR": "2" if "int" in profile.dtype else "3",
        "BIGTIFF": big,
        "INTERLEAVE": interleave,
        "PHOTOMETRIC": colours,
        **alpha,
    }


def _write_tiff(
    path: Path,
    profile: OutputProfile,
    options: Mapping[str, str],
    mosaic: Mosaic,
    progress: PartProgress,
) -> None:
    grid = profile.grid
    place = {"transform": grid.transform, "crs": grid.crs}
    place = {name: value for name, value in place.items() if value is not None}
    shape = _shape(profile, grid.width, grid.height)
    with writing_alone(), settings(WRITING), created(path, **shape, **place, **options) as dataset:
        _describe(dataset, profile)
        windows = _writing_order(mosaic.windows, grid.width, grid.height, options)
        for number, window in enumerate(windows, start=1):
            pixels = mosaic.read(window)
            dataset.write(pixels.data, window=gdal_window(window))
            if pixels.valid is not None:
                dataset.write_mask(pixels.valid, window=gdal_window(window))
            write_out_blocks()
            progress(number / len(windows))


def _shape(profile: OutputProfile, width: int, height: int) -> dict[str, Any]:
    return {
        "width": width,
        "height": height,
        "count": profile.count,
        "dtype": profile.dtype,
        "nodata": profile.nodata,
    }


def _writing_order(
    tiles: Sequence[Window], width: int, height: int, options: Mapping[str, str]
) -> tuple[Window, ...]:
    # A block shared by two windows would be written, read and written again, so none is shared.
    block_height, block_width = int(options["BLOCKYSIZE"]), int(options["BLOCKXSIZE"])
    if all(_on_blocks(tile, block_height, block_width, width, height) for tile in tiles):
        return tuple(tiles)
    edge = int(np.lcm(block_height, block_width))
    return squares(width, height, max(edge, SQUARE // edge * edge))


def _on_blocks(tile: Window, block_height: int, block_width: int, width: int, height: int) -> bool:
    return (
        tile.row % block_height == 0
        and tile.col % block_width == 0
        and (tile.bottom % block_height == 0 or tile.bottom == height)
        and (tile.right % block_width == 0 or tile.right == width)
    )


def _describe(dataset: Any, profile: OutputProfile) -> None:
    # Before the first block; later changes make GDAL write the directory again at the end.
    dataset.colorinterp = tuple(ColorInterp[name] for name in profile.colorinterp)
    for namespace, tags in (
        profile.tags if profile.format == "GTiff" else _folded(profile.tags)
    ).items():
        if profile.gcps is not None and namespace == "":
            # With AREA_OR_POINT=Point, GDAL 3.10 shifts control points by a pixel.
            tags = {name: text for name, text in tags.items() if name != "AREA_OR_POINT"}
        _write_tags(dataset, 0, namespace, tags)
    for band, (text, spaces) in enumerate(
        zip(profile.descriptions, profile.band_tags, strict=True), start=1
    ):
        if text is not None:
            dataset.set_band_description(band, text)
        for namespace, tags in (spaces if profile.format == "GTiff" else _folded(spaces)).items():
            if tags:
                _write_tags(dataset, band, namespace, tags)
    if set(profile.scales) != {1.0} or set(profile.offsets) != {0.0}:
        dataset.scales, dataset.offsets = profile.scales, profile.offsets
    if any(profile.units):
        dataset.units = tuple(unit or "" for unit in profile.units)
    if profile.gcps is not None:
        points, crs = profile.gcps
        dataset.gcps = (list(points), crs)
    if profile.rpcs is not None:
        dataset.update_tags(ns="RPC", **profile.rpcs)


def _write_tags(dataset: Any, band: int, namespace: str, tags: Mapping[str, str]) -> None:
    """Write tags of a band, or with 0 of the dataset, except those in NOT_WRITABLE."""
    if lost := sorted(NOT_WRITABLE & tags.keys()):
        logger.warning("Tags named %s cannot be written and are left out.", " and ".join(lost))
    where = {"ns": namespace} if namespace else {}
    dataset.update_tags(
        band, **where, **{name: text for name, text in tags.items() if name not in NOT_WRITABLE}
    )


def _folded(spaces: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Tags as NAMESPACE.NAME in the default namespace, the only one that a GDAL copy keeps."""
    folded = dict(spaces.get("", {}))
    for namespace, tags in spaces.items():
        if namespace and not namespace.startswith("xml:"):
            folded |= {f"{namespace}.{name}": text for name, text in tags.items()}
    return {"": folded}


def _base_level(profile: OutputProfile, mosaic: Mosaic) -> Level:
    pieces = tuple(mosaic.pieces[index] for index in range(len(mosaic.windows)))
    return Level(profile.grid.width, profile.grid.height, pieces)


def _write_overview(above: Path, path: Path, level: Level, profile: OutputProfile) -> Level:
    """Write half the resolution of the file above to path, and return what it holds."""
    width, height = -(-level.width // 2), -(-level.height // 2)
    options = _shape(profile, width, height) | _intermediate(profile, 256)
    pieces = []
    with settings(WRITING), opened(above) as source, created(path, **options) as target:
        target.colorinterp = source.colorinterp
        for window in squares(width, height, SQUARE // 2 if profile.count <= 8 else 256):
            place = gdal_window(window.scaled(2).clipped(Window(0, 0, level.height, level.width)))
            data = source.read(window=place)
            valid = source.read_masks(1, window=place) != 0 if profile.mask else None
            half, half_valid = halved(data, valid, nodata=profile.band_nodata, alpha=profile.alpha)
            target.write(half, window=gdal_window(window))
            if half_valid is not None:
                target.write_mask(half_valid, window=gdal_window(window))
            pixels = TilePixels(np.ascontiguousarray(half.transpose(1, 0, 2)), half_valid)
            pieces.append(piece_of(window, pixels, profile))
    return Level(width, height, tuple(pieces))


def _sidecars(path: Path, profile: OutputProfile) -> tuple[Path, ...]:
    """The .aux.xml that GDAL wrote, and a world file for programs that read nothing else."""
    world, transform = FORMATS[profile.format].world, profile.grid.transform
    if world is not None and transform is not None:
        durable.write_synced(path.with_suffix(world), world_file(transform).encode())
    found = tuple(sorted(other for other in path.parent.iterdir() if other != path))
    for sidecar in found:
        durable.sync_file(sidecar)
    return found


def world_file(transform: Affine) -> str:
    """The six lines of a world file; its origin is the centre of the first pixel."""
    a, b, c, d, e, f = transform[:6]
    return "".join(f"{number!r}\n" for number in (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2))
