"""upscale_file: a raster file in, the same raster out at two, three or four times the resolution.

It opens the source, loads the network and makes a plan, then reads, computes and writes tile by
tile, and assembles the result. Nothing that can change a pixel is decided here.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

from repmamba.durable import check_local
from repmamba.errors import UsageError
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.inference.workers import map_tiles
from repmamba.scene.choice import Chooser, WeightsChoice
from repmamba.scene.cluster import Cluster, connected
from repmamba.scene.confidence import ConfidencePlan, with_confidence
from repmamba.scene.estimate import Estimate, check_memory, estimate, with_time
from repmamba.scene.memory import Source, Target, through_memory
from repmamba.scene.options import NetworkOptions, RunOptions, SceneOptions, ValueRange, group_of
from repmamba.scene.plan import ScenePlan, plan_scene
from repmamba.scene.result.corrupt import CorruptBlocks
from repmamba.scene.result.journal import work_folder
from repmamba.scene.result.readback import PartProgress
from repmamba.scene.result.receipt import receipt_path
from repmamba.scene.result.space import check_space
from repmamba.scene.result.target import (
    check_place,
    check_target,
    sidecars,
    was_left_by_a_stopped_run,
)
from repmamba.scene.scene_result import SceneResult
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.grid import Grid
from repmamba.scene.source.origin import check_addresses, file_behind, refuse_to_continue_unknown
from repmamba.scene.source.pixels import Pixels
from repmamba.scene.source.raster import Raster, open_raster
from repmamba.scene.tile_step import TileResult, upscale_tile
from repmamba.scene.writers import SceneWriters, disk_needs, files_written, standing_results
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

PixelProgress = Callable[[int, int], None]  # pixels done, and their total
Weights = str | os.PathLike[str] | Upscaler | Chooser | None


P = ParamSpec("P")
R = TypeVar("R")


def _with_signature_of(function: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the signature of another; it gets all arguments by keyword, with defaults."""
    signature = inspect.signature(function)

    def decorate(own: Callable[..., R]) -> Callable[P, R]:
        @wraps(own)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            return own(**call.arguments)

        returned = own.__annotations__["return"]
        run.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return run

    return decorate


@through_memory("path")
def upscale_file(
    source: Source,
    target: Target,
    weights: Weights = None,
    *,
    scale: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    ensemble: bool = False,
    tile: int | None = None,
    halo: int | None = None,
    window: Window | tuple[int, int, int, int] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    bands: Iterable[int | str] | None = None,
    rgb: Sequence[int | str] | None = None,
    nodata: float | Sequence[float] | Literal["none"] | None = None,
    alpha: bool = True,
    value_range: ValueRange | None = None,
    consistent: bool | None = None,
    confidence: str | os.PathLike[str] | None = None,
    format: str | None = None,
    creation: Mapping[str, str] | None = None,
    workers: int | None = None,
    cluster: Any = None,
    untrusted: bool = False,
    max_pixels: int | None = None,
    on_corrupt: Literal["error", "fill"] = "error",
    expand_palette: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    keep_finished: bool = False,
    progress: PixelProgress | None = None,
    assembling: PixelProgress | None = None,
    measuring: PixelProgress | None = None,
) -> SceneResult:
    """Upscale a raster file into another one at the same place on the map.

    A stopped run continues when the same call is made again. What is left as None follows from the
    weights and the scene.

    Args:
        source: Any raster that GDAL reads: a path, a GDAL name, or in memory: bytes, a binary file
            object (read from its current position) or an open rasterio dataset.
        target: A path that ends in .tif, .cog.tif, .png or .jpg; the file appears when it is
            complete. A name under /vsimem/ or a binary file object takes the result in memory,
            without side-car files; a file object gets a GeoTIFF unless `format` is given.
        weights: What `load` takes, or an Upscaler. By default the packaged weights of the scale,
            or those for real pictures (x4-real) where noise or JPEG compression is found.
        scale: 2, 3 or 4; weights of another scale are refused.
        device: cpu, cuda, cuda:1, mps; cuda by default where there is one.
        backend: How the scan is computed, a name that `repmamba info` lists.
        precision: float32 or bfloat16.
        ensemble: Take the mean over the eight flips and rotations, for eight times the work.
        tile: Edge of the part kept of each tile, in input pixels, even.
        halo: Pixels read around each tile, in input pixels, even.
        window: Only this part, in input pixels: col, row, width, height, or a rasterio Window.
        bbox: Only this part: left, bottom, right, top in the scene's CRS.
        bands: Only these bands, by number from 1 or by name. A band that the file calls alpha and
            that is named here is data.
        rgb: Numbers or names of the red, green and blue bands; by default as the file says.
        nodata: The nodata value, or one per band, in place of what the file declares. "none": no
            value is nodata.
        alpha: False upscales a band that the file calls alpha like the others.
        value_range: What is black and white to the network: two numbers, "robust" (percentiles) or
            "type" (the ends of the data type). Nothing is clipped to it.
        consistent: Adjust the result so that downsampling it gives back the input (except outliers
            and clipped values). On by default where the scene has a place on the map, unless the
            weights remove noise.
        confidence: Also write a raster of the expected error of each pixel here; turns `ensemble`
            on.
        format: GTiff, COG, PNG or JPEG; by default from the target's suffix.
        creation: GDAL creation options.
        workers: Tiles computed at the same time; by default the number of CPU cores. Does not
            change the result.
        cluster: Compute on a Dask cluster: its scheduler's address, its scheduler file (.json), or
            a distributed.Client.
        untrusted: Read a file of unknown origin: few formats, no side-car files, size limits.
        max_pixels: Allow a source of this many pixels.
        on_corrupt: "fill" treats blocks that cannot be read as missing pixels.
        expand_palette: Upscale the colours of a palette even if they are classes.
        overwrite: Replace a target that exists.
        restart: Discard the finished tiles of a stopped run instead of continuing it.
        keep_finished: Return a target that is already the complete result of this call as it is.
        progress: Called with the output pixels finished, and their total.
        assembling: Called likewise while the finished tiles are assembled and checked.
        measuring: Called likewise with input pixels while the value range of a large scene is
            measured.

    Returns:
        What was written, and how.

    Raises:
        UsageError: An option makes no sense, alone or for this scene.
        SourceError: The source cannot be read, or changed while it was read.
        CheckpointError: The weights cannot be loaded.
        TargetError: The target cannot be written, or exists.
        JobChanged: A stopped run with other options left tiles at the target.
        OutOfMemory: The scene does not fit into memory with this tile size.
        ClusterError: The cluster does not answer, or a worker failed.
    """
    begun = time.monotonic()
    call = _Call.of(locals())
    with _planned(call) as planned:
        plan, upscaler, confidence_plan = planned.plan, planned.upscaler, planned.confidence
        writers = SceneWriters(call.target, plan, confidence_plan, call.run)
        kept = call.run.keep_finished and writers.landed
        with _stopping_cleanly(writers):
            remaining, corrupt = writers.remaining(), CorruptBlocks(writers.folder)
            computing = time.monotonic()
            if remaining:
                _compute(planned, writers, remaining, corrupt, progress)
            computing = time.monotonic() - computing
            planned.raster.check_unchanged()
            check_addresses(plan.job.source)
            writers.finish(_in_pixels(assembling, plan.profile.grid))
    result = SceneResult(
        path=call.target,
        grid=plan.profile.grid,
        scale=plan.scale,
        bands=plan.profile.count,
        tiles=len(plan.tiles),
        resumed=len(plan.tiles) - len(remaining),
        seconds=time.monotonic() - begun,
        corrupt_pixels=corrupt.pixels,
        weights=upscaler.name,
        chosen=None if plan.choice is None else plan.choice.why,
        consistent=plan.consistent,
        confidence=None if confidence_plan is None else confidence_plan.target,
        kept=kept,
        computed=sum(plan.tiles[index].write.area for index in remaining),
        seconds_computing=computing,
    )
    logger.debug("%s", result.summary())
    return result


@through_memory("target")
@_with_signature_of(upscale_file)
def plan_file(**arguments: Any) -> Estimate:
    """What upscale_file would do with the same arguments, and what it would take.

    Writes nothing, and calls neither progress nor assembling. Raises what upscale_file raises
    before its first pixel, except that another process holds the lock.
    """
    call = _Call.of(arguments)
    with _planned(call) as planned:
        plan, confidence = planned.plan, planned.confidence
        standing = standing_results(call.target, plan, confidence, call.run)
        if call.run.keep_finished and None not in standing:
            return replace(planned.estimate, kept=True, seconds=0.0)
        check_space(disk_needs(call.target, plan, confidence))
        return with_time(planned.estimate, plan, planned.upscaler, planned.cluster)


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of upscale_file, with its options in groups."""

    source: str
    target: Path
    weights: Weights
    network: NetworkOptions
    read: ReadOptions
    scene: SceneOptions
    run: RunOptions
    measuring: PixelProgress | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Call:
        """Raises UsageError for values that make no sense for any scene."""
        return cls(
            source=os.fspath(arguments["source"]),
            target=_target_path(arguments["target"]),
            weights=arguments["weights"],
            network=group_of(NetworkOptions, arguments),
            read=group_of(ReadOptions, arguments),
            scene=group_of(SceneOptions, arguments),
            run=group_of(RunOptions, arguments),
            measuring=arguments["measuring"],
        )


@dataclass(frozen=True, slots=True)
class _Planned:
    """A scene about to be computed."""

    raster: Raster  # open
    upscaler: Upscaler
    plan: ScenePlan
    confidence: ConfidencePlan | None
    estimate: Estimate
    cluster: Cluster | None  # computes the tiles, if not this machine


@contextmanager
def _planned(call: _Call) -> Iterator[_Planned]:
    """The open source with everything that was decided about it. Refuses what cannot be done."""
    _check_targets(call)
    with open_raster(call.source, call.read) as raster, _cluster_at(call.run.cluster) as cluster:
        for output in filter(None, (call.target, call.run.confidence)):
            _refuse_what_is_read(output, [output], raster)
        plan, confidence, upscaler = _plans(call, raster)
        files = files_written(call.target, plan, confidence)
        for file, profile, _ in files:
            _refuse_what_is_read(file, [*sidecars(file, profile), receipt_path(file)], raster)
        expected = estimate(
            raster, call.target, plan, upscaler, call.run.workers, confidence, cluster
        )
        check_memory(expected, raster, plan)
        if not call.run.restart:
            for file, _, job in files:
                refuse_to_continue_unknown(job.source, work_folder(file, job.id))
        yield _Planned(raster, upscaler, plan, confidence, expected, cluster)


def _plans(call: _Call, raster: Raster) -> tuple[ScenePlan, ConfidencePlan | None, Upscaler]:
    """The plan of the result, that of the confidence raster if one is wanted, and the network."""
    second = call.run.confidence
    upscaler, choice = _loaded(call.weights, call.network, raster, confidence=second is not None)
    if second is not None:
        upscaler = replace(upscaler, ensemble=True)
    plan = plan_scene(raster, call.target, upscaler, call.scene, call.read, call.measuring, choice)
    if second is None:
        return plan, None, upscaler
    return *with_confidence(plan, call.target, second, upscaler), upscaler


def _target_path(given: str | os.PathLike[str]) -> Path:
    """The file to write. Raises UsageError, also for a name that ends in a slash."""
    text = os.fspath(given)
    check_local(text)
    if text.endswith(("/", os.sep)):
        raise UsageError(f"{text} is a folder: name a file in it.")
    return Path(text)


def _check_targets(call: _Call) -> None:
    """Refuse targets that cannot be written, before anything is read."""
    target, second, run = call.target, call.run.confidence, call.run
    check_place(target)
    # A finished target, or one of a stopped run, may be the result of this job. That is known once
    # the scene is planned.
    may_be_ours = was_left_by_a_stopped_run(target) or (
        run.keep_finished and os.path.isfile(receipt_path(Path(os.path.realpath(target))))
    )
    check_target(call.source, target, overwrite=run.overwrite or may_be_ours)
    if second is not None:
        if os.path.realpath(second) == os.path.realpath(target):
            raise UsageError(
                f"{target} cannot be both the result and its confidence raster: give two names."
            )
        check_place(second)
        check_target(call.source, second, overwrite=run.overwrite or may_be_ours)


def _cluster_at(place: Any) -> AbstractContextManager[Cluster | None]:
    return nullcontext() if place is None else connected(place)


def _loaded(
    weights: Weights, options: NetworkOptions, raster: Raster, *, confidence: bool
) -> tuple[Upscaler, WeightsChoice | None]:
    """The Upscaler given or loaded, or the one chosen for the scene with the reason."""
    if weights is None:
        return Chooser.loading(**options.as_keywords())(raster, confidence=confidence)
    if isinstance(weights, Chooser):
        upscaler, choice = weights(raster, confidence=confidence)
        _refuse_options_of_load(upscaler, options)
        return upscaler, choice
    if isinstance(weights, Upscaler):
        _refuse_options_of_load(weights, options)
        return weights, None
    return load(weights, **options.as_keywords()), None


def _refuse_options_of_load(upscaler: Upscaler, options: NetworkOptions) -> None:
    """Raise UsageError for options that an Upscaler cannot be given after it was loaded."""
    if options.scale not in (None, upscaler.scale):
        raise UsageError(
            f"The Upscaler {upscaler.name} is of x{upscaler.scale}, and x{options.scale} was asked "
            f"for: load weights of x{options.scale}, or leave the scale out."
        )
    asked = [name for name, value in options.as_keywords().items() if value and name != "scale"]
    if asked:
        raise UsageError(
            f"The Upscaler {upscaler.name} is loaded already: give {', '.join(asked)} to load."
        )


def _refuse_what_is_read(output: Path, replaced: Sequence[Path], raster: Raster) -> None:
    """Raise UsageError if an output would replace a file that the input is read from."""
    for file in map(file_behind, raster.facts.read_from):
        for name in replaced:
            if file is not None and name.exists() and name.samefile(file):
                with_it = "" if name == output else f", which goes with {output},"
                raise UsageError(
                    f"{name}{with_it} is a part of the input {raster.facts.name}: give the output "
                    "another name."
                )


def _compute(
    planned: _Planned,
    writers: SceneWriters,
    remaining: list[int],
    corrupt: CorruptBlocks,
    progress: PixelProgress | None,
) -> None:
    """Read, compute and write the remaining tiles, reading and writing while workers compute."""
    raster, plan, upscaler = planned.raster, planned.plan, planned.upscaler
    total = plan.profile.grid.width * plan.profile.grid.height
    done = total - sum(plan.tiles[index].write.area for index in remaining)
    if progress is not None:
        progress(done, total)

    def pieces() -> Iterator[tuple[int, Pixels]]:
        for index in remaining:
            yield index, raster.read(plan.tiles[index].read)

    def step(piece: tuple[int, Pixels]) -> tuple[int, TileResult]:
        index, pixels = piece
        return index, upscale_tile(pixels, plan.tiles[index], plan, upscaler)

    has_data = len(remaining) < len(plan.tiles)  # what an earlier run computed is unknown

    with closing(
        map_tiles(step, pieces(), planned.estimate.workers, len(remaining))
        if planned.cluster is None
        else planned.cluster.compute(pieces(), plan, upscaler)
    ) as results:
        for index, result in results:
            corrupt.add(raster.corrupt_blocks)
            has_data = has_data or bool(np.isfinite(result.numbers[:, result.valid]).any())
            writers.put(index, result)
            done += plan.tiles[index].write.area
            logger.debug("tile %d of %d written", index + 1, len(plan.tiles))
            if progress is not None:
                progress(done, total)
    if not has_data:
        part = "" if plan.tiles.window == raster.whole else " in the part asked for"
        logger.warning(
            "%s has no valid pixel%s: the whole result is missing.", raster.facts.name, part
        )


def _in_pixels(progress: PixelProgress | None, grid: Grid) -> PartProgress | None:
    """A callback for fractions (0 to 1) that reports pixels to progress."""
    if progress is None:
        return None
    total = grid.width * grid.height
    return lambda part: progress(round(part * total), total)


@contextmanager
def _stopping_cleanly(writers: SceneWriters) -> Iterator[None]:
    """Keep finished tiles whatever stops a run, Ctrl-C included."""
    try:
        yield
    except BaseException:
        writers.abandon()
        raise
