"""upscale_file: a raster file in, the same raster out at two, three or four times the resolution,
in the same place.

The walk is one page: open, load, plan, then tile by tile read, compute and write, then finish. What
each step does is in the module it is named after. Nothing that can change a pixel is decided here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from repmamba.durable import check_local
from repmamba.errors import TargetError, TargetExists, UsageError
from repmamba.inference.options import CALLED, FLAG, checked, path_of
from repmamba.inference.upscaler import Upscaler, load
from repmamba.inference.workers import choose_workers, side_by_side
from repmamba.scene.arguments import Arguments, checked_arguments
from repmamba.scene.choice import Choice, Chooser
from repmamba.scene.cluster import Cluster, connected
from repmamba.scene.confidence import ConfidencePlan, with_confidence
from repmamba.scene.estimate import Estimate, check_memory, estimate, fitting_workers, with_time
from repmamba.scene.memory import Source, Target, through_memory
from repmamba.scene.plan import SceneOptions, ScenePlan, plan_scene, said_of_consistency
from repmamba.scene.result.corrupt import CorruptBlocks
from repmamba.scene.result.journal import check_name, other_jobs, refuse_changed_job, work_folder
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.readback import TellPart
from repmamba.scene.result.receipt import receipt_path
from repmamba.scene.result.space import check_space
from repmamba.scene.result.writer import finished_receipt, read_beside, refuse_other_result
from repmamba.scene.source.admission import Reading
from repmamba.scene.source.grid import Grid
from repmamba.scene.source.origin import check_addresses, file_behind, refuse_to_continue_unknown
from repmamba.scene.source.pixels import Pixels
from repmamba.scene.source.raster import Raster, open_raster
from repmamba.scene.tile_step import TileResult, upscale_tile
from repmamba.scene.writers import SceneWriters, disk_needs, files_written
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

TellPixels = Callable[[int, int], None]  # output pixels finished, of how many
NO_JOB = "0" * 32  # the id of none, so that all working folders are those of others
CALLED_WITH = {
    **dict.fromkeys(("overwrite", "restart", "keep_finished"), FLAG),
    **dict.fromkeys(("progress", "assembling", "measuring"), CALLED),
}
Weights = str | os.PathLike[str] | Upscaler | Chooser | None


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


@through_memory("path")
def upscale_file(
    source: Source,
    target: Target,
    weights: Weights = None,
    *,
    overwrite: bool = False,
    restart: bool = False,
    keep_finished: bool = False,
    progress: TellPixels | None = None,
    assembling: TellPixels | None = None,
    measuring: TellPixels | None = None,
    **arguments: Unpack[Arguments],
) -> SceneResult:
    """Enlarge a raster file into another, in place on the map.

    source: any raster that GDAL reads: a path, a name of GDAL's, or in memory: bytes, a binary file
    object (read from
    where it stands) or an open dataset of rasterio.  target: .tif, .cog.tif, .png or .jpg; the name
    appears when the
    file is whole. A name that begins with /vsimem/ and a binary file object take the result in
    memory, a file object a GeoTIFF unless format says otherwise; its side-car files, and what a
    stopped run leaves, are not kept then. weights: as `load` takes them, or an Upscaler that is
    loaded already; without any, those packaged for the scale, or for real pictures (x4-real) where
    noise or JPEG is found. overwrite: replace a target that is there. restart: begin anew where a
    stopped run, or one with other arguments, left finished tiles; without it the same call
    goes on with them.  keep_finished: where the target is the whole result of this very call,
    return it as it is.
    progress: called with the output pixels finished, and of how many.  assembling: likewise, while
    the finished ones are put together and checked.  measuring: likewise, with input pixels, while
    the range of a large
    scene is found.  Further: see Arguments.
    Raises RepmambaError of the kinds Usage, Checkpoint, Source, Target, JobChanged, OutOfMemory,
    Cluster.
    """
    begun = time.monotonic()
    target = _target(target)
    checked(
        {"keep_finished": keep_finished, "progress": progress, "assembling": assembling},
        CALLED_WITH,
    )
    keep_finished = keep_finished and not (overwrite or restart)
    how: Any = {"overwrite": overwrite, "restart": restart, "keep_finished": keep_finished}
    with _planned(source, target, weights, arguments, **how, measuring=measuring) as planned:
        plan, upscaler, confidence = planned.plan, planned.upscaler, planned.confidence
        writers = SceneWriters(target, plan, confidence, **how)
        kept = keep_finished and writers.landed
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
        path=target,
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
        confidence=None if confidence is None else confidence.target,
        kept=kept,
        computed=sum(_area(plan.tiles[index].write) for index in remaining),
        seconds_computing=computing,
    )
    logger.debug("%s", result.summary())
    return result


@through_memory("target")
def plan_file(
    source: Source,
    target: Target,
    weights: Weights = None,
    *,
    overwrite: bool = False,
    restart: bool = False,
    keep_finished: bool = False,
    measuring: TellPixels | None = None,
    **arguments: Unpack[Arguments],
) -> Estimate:
    """What upscale_file would do with the same arguments, and what it would take. Writes nothing.

    Raises what upscale_file would before its first pixel, except what only a run finds out: that
    another process holds the lock, or that side-car files of another raster lie at the target.
    """
    target = _target(target)
    checked({"keep_finished": keep_finished}, CALLED_WITH)
    keep_finished = keep_finished and not (overwrite or restart)
    how: Any = {"overwrite": overwrite, "restart": restart, "keep_finished": keep_finished}
    with _planned(source, target, weights, arguments, **how, measuring=measuring) as planned:
        plan, confidence = planned.plan, planned.confidence
        if keep_finished and _is_finished(target, plan, confidence):
            return replace(planned.estimate, kept=True, seconds=0.0)
        if target.exists() and not overwrite and not _was_left_by_a_stopped_run(target):
            refuse_other_result(target, plan.job)
        # What the writers of a run look at themselves.
        for file, _, job in files_written(target, plan, confidence):
            others = other_jobs(file, job.id)
            if others and not restart and not work_folder(file, job.id).is_dir():
                refuse_changed_job(file, job, others)
        check_space(disk_needs(target, plan, confidence))
        return with_time(planned.estimate, plan, planned.upscaler, planned.cluster)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A scene about to be computed."""

    raster: Raster  # open
    upscaler: Upscaler
    plan: ScenePlan
    confidence: ConfidencePlan | None  # where that is wanted
    estimate: Estimate
    cluster: Cluster | None  # that computes the tiles, if not this machine


@contextmanager
def _planned(
    source: str | os.PathLike[str],
    target: Path,
    weights: Weights,
    arguments: Arguments,
    *,
    overwrite: bool,
    restart: bool,
    keep_finished: bool,
    measuring: TellPixels | None,
) -> Iterator[_Planned]:
    """The source, open, with all that was decided about it; what cannot be done is refused."""
    given, source = checked_arguments(arguments), path_of("source", source)
    checked({"overwrite": overwrite, "restart": restart, "measuring": measuring}, CALLED_WITH)
    # Whether a finished target is that of this very job is known once it is planned.
    there = keep_finished and os.path.isfile(receipt_path(Path(os.path.realpath(target))))
    check_targets(source, target, given.get("confidence"), overwrite=overwrite or there)
    load_options = {
        name: given.pop(name, None) for name in ("scale", "device", "backend", "precision")
    }
    load_options["ensemble"] = given.pop("ensemble", False)
    reading = Reading(
        untrusted=given.pop("untrusted", False),
        max_pixels=given.pop("max_pixels", None),
        fill_corrupt=given.pop("on_corrupt", "error") == "fill",
        expand_palette=given.pop("expand_palette", False),
        nodata=given.pop("nodata", None),
        alpha=given.pop("alpha", True),
        data_bands=given.get("bands", ()),
    )
    workers, place = given.pop("workers", None), given.pop("cluster", None)
    if workers is not None and place is not None:
        raise UsageError("The workers are those of the cluster: leave workers= out, or cluster=.")
    second = given.pop("confidence", None)
    options = SceneOptions(**given)
    with open_raster(source, reading) as raster, _cluster_at(place) as cluster:
        for output in (target, *([] if second is None else [Path(second)])):
            _refuse_what_is_read(output, [output], raster)
        upscaler, choice = _loaded(weights, load_options, raster, confidence=second is not None)
        if second is not None:
            upscaler = replace(upscaler, ensemble=True)
        plan, confidence = (
            plan_scene(raster, target, upscaler, options, reading, measuring, choice),
            None,
        )
        facts = raster.facts
        logger.info(
            "%s: %s",
            facts.name,
            said_of_consistency(plan.consistent, options.consistent, facts.has_place),
        )
        if facts.alpha is not None:
            logger.info("%s: alpha: %s.", facts.name, plan.said["alpha"])
        if second is not None:
            plan, confidence = with_confidence(plan, target, Path(second), upscaler)
        for file, profile, _ in files_written(target, plan, confidence):
            _refuse_what_is_read(file, [*read_beside(file, profile), receipt_path(file)], raster)
        side = choose_workers(workers, upscaler.device) if cluster is None else cluster.slots
        name = None if cluster is None else cluster.name
        expected = estimate(raster, target, plan, upscaler, side, confidence, name)
        expected = fitting_workers(expected, raster, plan)
        check_memory(expected, raster, plan)
        if not restart:
            for file, _, job in files_written(target, plan, confidence):
                refuse_to_continue_unknown(job.source, work_folder(file, job.id))
        yield _Planned(raster, upscaler, plan, confidence, expected, cluster)


def _target(given: str | os.PathLike[str]) -> Path:
    """The file to write. Raises UsageError, also for a name that ends in a slash and so is that of
    a folder.
    """
    text = path_of("target", given)
    check_local(text)
    if text.endswith(("/", os.sep)):
        raise UsageError(f"{text} is a folder: name a file in it.")
    return Path(text)


def _cluster_at(place: Any) -> AbstractContextManager[Cluster | None]:
    return nullcontext() if place is None else connected(place)


def _loaded(
    weights: Weights, load_options: dict[str, Any], raster: Raster, *, confidence: bool
) -> tuple[Upscaler, Choice | None]:
    """The Upscaler of the weights, the one given, or one that fits the scene, and then why.

    Options that an Upscaler was made with cannot be given again.
    """
    if weights is not None and not isinstance(weights, str | os.PathLike | Upscaler | Chooser):
        raise UsageError(
            f"weights is a {type(weights).__name__}; it takes what load takes, or an Upscaler."
        )
    if weights is None:
        return Chooser.loading(**load_options)(raster, confidence=confidence)
    if isinstance(weights, Chooser):
        upscaler, choice = weights(raster, confidence=confidence)
        return _made_already(upscaler, load_options), choice
    if isinstance(weights, Upscaler):
        return _made_already(weights, load_options), None
    return load(weights, **load_options), None


def _made_already(weights: Upscaler, load_options: dict[str, Any]) -> Upscaler:
    scale = load_options.pop("scale") or weights.scale
    if scale != weights.scale:
        raise UsageError(
            f"The Upscaler {weights.name} is of x{weights.scale}, and x{scale} was asked for: "
            f"load weights of x{scale}, or leave the scale out."
        )
    asked = [name for name, value in load_options.items() if value]
    if asked:
        raise UsageError(
            f"The Upscaler {weights.name} is made already: give {', '.join(asked)} to load."
        )
    return weights


def check_targets(
    source: str | os.PathLike[str],
    target: Path,
    confidence: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool,
) -> None:
    """Refuse outputs that cannot be, before anything is read. Raises UsageError, TargetError."""
    check_target(source, target, overwrite=overwrite)
    if confidence is not None:
        second = Path(confidence)
        if os.path.realpath(second) == os.path.realpath(target):
            raise UsageError(
                f"{target} cannot be the result and its confidence: give them two names."
            )
        # It may be what a stopped run of this very job has put in place already: its writer knows.
        check_target(source, second, overwrite=overwrite or _was_left_by_a_stopped_run(target))


def check_target(source: str | os.PathLike[str], target: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be. Raises UsageError, TargetError."""
    check_local(target)
    check_name(target)
    if not os.path.isdir(target.parent):  # Path.is_dir raises for a name too long to be that of any
        raise TargetError(f"The folder {target.parent} does not exist: make it first.")
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise UsageError(f"{target} is the input: give the output another name.")
    if target.is_dir():
        raise TargetError(f"{target} is a folder: name a file in it.")
    # What a stopped run left may be its whole result, not yet tidied up: the writer knows.
    if target.exists() and not overwrite and not _was_left_by_a_stopped_run(target):
        raise TargetExists(
            f"{target} is there already: choose another name, or replace it with overwrite=True."
        )
    # the rights of the user that the process acts for
    as_now = os.access in os.supports_effective_ids
    if not os.access(target.parent, os.W_OK | os.X_OK, effective_ids=as_now):
        raise TargetError(f"The folder {target.parent} cannot be written to: choose another one.")


def _refuse_what_is_read(output: Path, replaced: Sequence[Path], raster: Raster) -> None:
    """Raise UsageError where the input is read from a file that an output replaces: a part, or a
    world file, say.
    """
    for file in map(file_behind, raster.facts.read_from):
        for name in replaced:
            if file is not None and name.exists() and name.samefile(file):
                with_it = "" if name == output else f", which goes with {output},"
                raise UsageError(
                    f"{name}{with_it} is a part of the input {raster.facts.name}: give the output "
                    "another name."
                )


def _is_finished(target: Path, plan: ScenePlan, confidence: ConfidencePlan | None) -> bool:
    """Whether all that a plan puts in place is there, whole, and of this very job."""
    return all(
        finished_receipt(file, job) is not None
        for file, _, job in files_written(target, plan, confidence)
    )


def _was_left_by_a_stopped_run(target: Path) -> bool:
    """Whether a run at this target was stopped; the lock is the last that it would have removed."""
    return bool(other_jobs(target, NO_JOB)) or TargetLock(target).path.exists()


def _compute(
    planned: _Planned,
    writers: SceneWriters,
    remaining: list[int],
    corrupt: CorruptBlocks,
    progress: TellPixels | None,
) -> None:
    """Read, compute and write the remaining tiles. Reading and writing go on here while the workers
    compute.
    """
    raster, plan, upscaler = planned.raster, planned.plan, planned.upscaler
    total = plan.profile.grid.width * plan.profile.grid.height
    done = total - sum(_area(plan.tiles[index].write) for index in remaining)
    if progress is not None:
        progress(done, total)

    def pieces() -> Iterator[tuple[int, Pixels]]:
        for index in remaining:
            yield index, raster.read(plan.tiles[index].read)

    def step(piece: tuple[int, Pixels]) -> tuple[int, TileResult]:
        index, pixels = piece
        return index, upscale_tile(pixels, plan.tiles[index], plan, upscaler)

    has_data = len(remaining) < len(plan.tiles)  # of what an earlier run computed nothing is known

    with closing(
        side_by_side(step, pieces(), planned.estimate.workers, len(remaining))
        if planned.cluster is None
        else planned.cluster.compute(pieces(), plan, upscaler)
    ) as results:
        for index, result in results:
            corrupt.add(raster.corrupt_blocks)
            has_data = has_data or bool(np.isfinite(result.numbers[:, result.valid]).any())
            writers.put(index, result)
            done += _area(plan.tiles[index].write)
            logger.debug("tile %d of %d written", index + 1, len(plan.tiles))
            if progress is not None:
                progress(done, total)
    if not has_data:
        part = "" if plan.tiles.window == raster.whole else " in the part asked for"
        logger.warning(
            "%s has no valid pixel%s: all of the result is missing.", raster.facts.name, part
        )


def _in_pixels(progress: TellPixels | None, grid: Grid) -> TellPart | None:
    """A progress in parts of the whole, 0 to 1, told in pixels."""
    if progress is None:
        return None
    total = grid.width * grid.height
    return lambda part: progress(round(part * total), total)


def _area(window: Window) -> int:
    return window.height * window.width


@contextmanager
def _stopping_cleanly(writers: SceneWriters) -> Iterator[None]:
    """Whatever stops a run, Ctrl-C included: finished tiles stay, for the same call to go on
    with.
    """
    try:
        yield
    except BaseException:
        writers.abandon()
        raise
