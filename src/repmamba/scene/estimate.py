"""What a plan will need in memory, disk space and time, known before the first pixel.

Estimates never change a pixel. A plan that does not fit into memory is refused with the tile size
that would fit, not adjusted: otherwise two machines could give two results.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from repmamba.container import memory_left
from repmamba.durable import free_bytes, readable
from repmamba.errors import OutOfMemory
from repmamba.inference.compiled_runner import COMPILED_SCAN
from repmamba.inference.upscaler import Upscaler
from repmamba.inference.workers import IN_FLIGHT, choose_workers, map_tiles
from repmamba.scene.band_selection import describe_grey_bands
from repmamba.scene.cluster import Cluster
from repmamba.scene.confidence import ConfidencePlan
from repmamba.scene.plan import ScenePlan
from repmamba.scene.result.formats import raw_bytes
from repmamba.scene.source.raster import Raster
from repmamba.scene.writers import disk_needs
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

GDAL_BYTES = 250_000_000  # caches, reading and writing: 1.8 times GDAL_CACHEMAX and 125 MB
NETWORK_BYTES_PER_PIXEL = 5800  # of the input tile, in the widest layer computed by torch
PASSES_BYTES_PER_PIXEL = 2700  # the same in compiled passes
# of the result: for three bands the first, the sum, the differences, their squares
VARIANCE_BYTES_PER_PIXEL = 4 * 3 * 4
STATM = Path("/proc/self/statm")
MEMINFO = Path("/proc/meminfo")
SAMPLE = 96  # edge of the tile for timing, lr pixels


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one scene will need on this machine; sizes in bytes."""

    source: str
    target: Path | None  # None: a file object
    width: int  # of the output
    height: int
    bands: int
    dtype: str
    format: str
    scale: int
    weights: str
    tiles: int
    tile: int  # lr
    halo: int  # lr
    workers: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    consistent: bool
    output_bytes: int  # before compression
    disk_bytes: int  # peak, without what a stopped run left
    free_bytes: int  # in the folder of the output
    memory_bytes: int  # peak of the whole process
    program_bytes: int  # what the process already uses of them: Python, torch, the weights
    cluster: str | None = None  # address of the cluster that computes the tiles, if any
    confidence: Path | None = None  # the confidence raster, if wanted
    decisions: Mapping[str, str] = field(default_factory=dict)  # what was decided about the source
    chosen: str | None = None  # why these weights were chosen, if the scene decided
    bands_alone: str | None = None  # note on bands that go through the network as grey
    seconds: float | None = None
    kept: bool = False  # the complete result of this job is already there

    def __repr__(self) -> str:
        return (
            f"<Estimate {self.source} -> {self.target or 'memory'}: {self.width} x {self.height} "
            f"pixels, {self.tiles} tile{'s' * (self.tiles > 1)}, x{self.scale} with "
            f"{self.weights}, memory {readable(self.memory_bytes)}, "
            f"disk {readable(self.disk_bytes)}>"
        )

    def summary(self) -> str:
        """A few lines of text."""
        if self.kept:
            return f"{self.source} -> {self.target}: already done by the same command"
        took = "" if self.seconds is None else f"\n  time     about {_duration(self.seconds)}"
        bands = f"{self.bands} band{'s' * (self.bands > 1)}"
        tiles = f"{self.tiles} tile{'s' * (self.tiles > 1)}"
        why = f"\n  weights  {self.weights}: the scene is {self.chosen}"
        chosen = "" if self.chosen is None else why
        alone = "" if self.bands_alone is None else f"\n  network  {self.bands_alone}"
        where = "" if self.cluster is None else f" on the cluster at {self.cluster}"
        second = "" if self.confidence is None else f", confidence: {self.confidence}"
        return (
            f"{self.source} -> {self.target or 'memory'}{second}\n"
            f"  output   {self.width} x {self.height} pixels, {bands} of {self.dtype}, "
            f"{self.format}, x{self.scale} with {self.weights}\n"
            f"  plan     {tiles} of {self.tile} + {self.halo} input pixels, {self.workers} at a "
            f"time{where}; {'' if self.consistent else 'not '}made consistent{chosen}{alone}\n"
            f"{''.join(f'  {name:<8} {text}{chr(10)}' for name, text in self.decisions.items())}"
            f"  disk     at most {readable(self.disk_bytes)} during the run, "
            f"{readable(self.free_bytes)} free\n"
            f"  memory   about {readable(self.memory_bytes)} for the whole process, "
            f"of which it already uses {readable(self.program_bytes)}{took}"
        )

    @property
    def method(self) -> str:
        """What is usually the same for several inputs, in a few words."""
        where = "" if self.cluster is None else f" on the cluster at {self.cluster}"
        return (
            f"x{self.scale} with {self.weights}, tiles of {self.tile} + {self.halo} input pixels, "
            f"{self.workers} at a time{where}, {'' if self.consistent else 'not '}made consistent"
        )

    def brief(self) -> str:
        """One line, with what may differ between several inputs."""
        if self.kept:
            return f"{self.source} -> {self.target}: already done"
        time_taken = "" if self.seconds is None else f", about {_duration(self.seconds)}"
        alone = "" if self.bands_alone is None else f"; {self.bands_alone}"
        return (
            f"{self.source} -> {self.target}: {self.width} x {self.height} pixels, {self.bands} "
            f"band{'s' * (self.bands > 1)} of {self.dtype}, {self.format}, range {min(self.low):g} "
            f"to {max(self.high):g}, {self.tiles} tile{'s' * (self.tiles > 1)}{time_taken}{alone}"
        )

    def as_json(self) -> dict[str, Any]:
        """The values as JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Total:
    """What several scenes need together, one after the other; sizes in bytes."""

    megapixels: float  # of the outputs
    disk_bytes: int  # at most
    memory_bytes: int  # of the largest
    seconds: float

    def summary(self) -> str:
        """One line of text."""
        return (
            f"{self.megapixels:,.1f} megapixels, about {_duration(self.seconds)}, at most "
            f"{readable(self.disk_bytes)} of disk space, about {readable(self.memory_bytes)} of "
            "memory"
        )

    def as_json(self) -> dict[str, Any]:
        """The values as JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def total_of(estimates: Sequence[Estimate]) -> Total:
    """The total of several scenes, one after the other."""
    return Total(
        megapixels=sum(one.width * one.height for one in estimates) / 1e6,
        disk_bytes=sum(one.disk_bytes for one in estimates),
        memory_bytes=max((one.memory_bytes for one in estimates), default=0),
        seconds=sum(one.seconds or 0.0 for one in estimates),
    )


def estimate(
    raster: Raster,
    target: Path,
    plan: ScenePlan,
    upscaler: Upscaler,
    workers: int | None = None,
    confidence: ConfidencePlan | None = None,
    cluster: Cluster | None = None,
) -> Estimate:
    """Size and memory of a plan; `with_time` adds the time.

    workers: as asked for; reduced if memory does not suffice.
    """
    profile, program = plan.profile, resident_bytes()
    side = choose_workers(workers, upscaler.device) if cluster is None else cluster.slots
    made = Estimate(
        source=raster.facts.name,
        target=target,
        width=profile.grid.width,
        height=profile.grid.height,
        bands=profile.count,
        dtype=profile.dtype,
        format=profile.format,
        scale=plan.scale,
        weights=upscaler.name,
        tiles=len(plan.tiles),
        tile=plan.tiles.tile,
        halo=plan.tiles.halo,
        workers=side,
        low=plan.radiometry.low,
        high=plan.radiometry.high,
        consistent=plan.consistent,
        decisions=plan.decisions,
        output_bytes=raw_bytes(profile)
        + (0 if confidence is None else raw_bytes(confidence.profile)),
        disk_bytes=sum(needed for _, needed in disk_needs(target, plan, confidence)),
        free_bytes=free_bytes(target.parent),
        memory_bytes=program
        + _memory(raster, plan, plan.tiles.tile, side if cluster is None else 0),
        program_bytes=program,
        cluster=None if cluster is None else cluster.name,
        confidence=None if confidence is None else confidence.target,
        chosen=None if plan.choice is None else plan.choice.why,
        bands_alone=describe_grey_bands(plan.job.settings["together"], raster.facts),
    )
    return _fitting_workers(made, raster, plan)


def with_time(
    made: Estimate, plan: ScenePlan, upscaler: Upscaler, cluster: Cluster | None = None
) -> Estimate:
    """The estimate with a time, extrapolated from small tiles computed in parallel."""
    side = min(made.workers, made.tiles)
    if cluster is None:
        seconds = _seconds_here(plan, upscaler, side)
    else:
        seconds = cluster.seconds(plan, upscaler, SAMPLE)
    return replace(made, seconds=seconds * plan.tiles.pixels_read / SAMPLE**2 / side)


def _seconds_here(plan: ScenePlan, upscaler: Upscaler, side: int) -> float:
    """Seconds for a small tile while `side` of them are computed in parallel."""
    sample = np.zeros((len(plan.places), SAMPLE, SAMPLE), np.float32)

    def timed(_: int) -> float:
        begun = time.perf_counter()
        upscaler.enlarge(sample, plan.groups)
        return time.perf_counter() - begun

    # the first tile of each worker compiles
    seconds = list(map_tiles(timed, range(2 * side), side, side))[side:]
    return statistics.median(seconds)


def _fitting_workers(made: Estimate, raster: Raster, plan: ScenePlan) -> Estimate:
    """The estimate with as many workers as fit into memory, at least one."""
    there, more = available_memory(), made.memory_bytes - made.program_bytes
    if there is None or more <= there or made.cluster is not None:
        return made
    tile, workers = plan.tiles.tile, min(made.workers, len(plan.tiles))
    while workers > 1 and _memory(raster, plan, tile, workers) > there:
        workers -= 1
    if workers < min(made.workers, len(plan.tiles)):
        logger.info(
            "%s: workers: %d instead of %d, because %s of memory are free; the result is the same.",
            *(made.source, workers, made.workers, readable(there)),
        )
    taken = made.program_bytes + _memory(raster, plan, tile, workers)
    return replace(made, workers=workers, memory_bytes=taken)


def check_memory(made: Estimate, raster: Raster, plan: ScenePlan) -> None:
    """Raise OutOfMemory, naming a tile size that fits, if the plan needs too much memory."""
    there, more = available_memory(), made.memory_bytes - made.program_bytes
    if there is None or more <= there:
        return
    here = made.workers if made.cluster is None else 0
    smaller = range(16, plan.tiles.tile, 16)
    fitting = [tile for tile in smaller if _memory(raster, plan, tile, here) <= there]
    advice = "No tile= is small enough"
    if fitting:
        advice = f"tile={fitting[-1]} fits (and gives slightly different pixels)"
    side = f"{here} worker{'s' * (here > 1)}" if here else "no tiles computed here"
    raise OutOfMemory(
        f"{made.source} needs about {readable(more)} of memory with tile={plan.tiles.tile} and "
        f"{side}, and {readable(there)} are free. {advice}."
    )


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def available_memory() -> int | None:
    """Bytes that the system and the container still allow; None if unknown."""
    try:
        lines = MEMINFO.read_text().splitlines()
        there = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None
    left = memory_left()
    return there if left is None else min(there, left)


def _memory(raster: Raster, plan: ScenePlan, tile: int, workers: int) -> int:
    """Peak memory of a plan in bytes, without that of the program."""
    edge = tile + 2 * plan.tiles.halo
    lr = min(edge, raster.grid.height) * min(edge, raster.grid.width)
    hr = lr * plan.scale**2
    size = np.dtype(plan.profile.dtype).itemsize
    together = max(len(group) for group in plan.groups)
    waiting = (lr + hr) * plan.profile.count * size
    if plan.calibration is not None:  # expected errors: a float32 per group
        waiting += hr * len(plan.groups) * 4
    network = lr * (PASSES_BYTES_PER_PIXEL if _in_passes(plan) else NETWORK_BYTES_PER_PIXEL)
    computing = network + hr * together * (4 + 8 + 8) + waiting  # unit, and numbers in float64
    if plan.calibration is not None:
        computing += hr * VARIANCE_BYTES_PER_PIXEL
    workers = min(workers, _tiles(plan.tiles.window, tile))
    return (
        GDAL_BYTES + workers * computing + (workers + IN_FLIGHT) * waiting + raster.memory_of(edge)
    )


def _tiles(window: Window, tile: int) -> int:
    """How many tiles of this edge a window intersects; both in lr pixels."""
    rows = -(-window.bottom // tile) - window.row // tile
    return rows * (-(-window.right // tile) - window.col // tile)


def _in_passes(plan: ScenePlan) -> bool:
    """Whether the network runs in compiled passes; False if that depends on the processor."""
    settings = plan.job.settings
    return (settings["scan"], settings["precision"]) == (COMPILED_SCAN, "float32")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
