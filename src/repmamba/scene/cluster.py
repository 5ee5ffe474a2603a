"""Tiles on a Dask cluster: workers run the tile step; reading, writing and the journal stay local.

Only arrays are sent: input pixels go out and results come back, so workers need access to neither
source nor target. The network is stored once in the scheduler. If a worker is lost, others compute
its tiles.
"""

from __future__ import annotations

import json
import logging
import pickle
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from repmamba import __version__
from repmamba.errors import ClusterError, MissingExtra, OutOfMemory, RepmambaError, UsageError
from repmamba.inference.loading import pin_backend
from repmamba.inference.upscaler import Upscaler
from repmamba.inference.workers import one_compute_thread
from repmamba.scene.plan import ScenePlan
from repmamba.scene.source.pixels import Pixels
from repmamba.scene.tile_step import TileResult, upscale_tile
from repmamba.tiles.plan import Tile

logger = logging.getLogger(__name__)

IN_HAND = 2  # tiles per slot: one being computed and one queued
PATIENCE = 30  # seconds to wait for a scheduler
LARGE = "1 GiB"  # Dask warns of tasks over 10 MiB, and a tile with many bands is larger
AGAIN = "Finished tiles are kept: the same command continues, with a cluster or without."

Addressed = Any  # an address, the path of a scheduler file, or a distributed.Client


class Cluster:
    """A Dask cluster that computes tiles. Made by `connected`."""

    def __init__(self, client: Any, name: str):
        self.name = name  # address of its scheduler
        self._client = client

    @property
    def slots(self) -> int:
        """Tiles computed at once: the threads of all workers, at least 1. Raises ClusterError."""
        return max(1, self._threads())

    def compute(
        self, pieces: Iterable[tuple[int, Pixels]], plan: ScenePlan, upscaler: Upscaler
    ) -> Generator[tuple[int, TileResult]]:
        """The result of each piece (tile index, input pixels), in the order in which they finish.

        Pieces are read in the calling thread, at most two per slot ahead, which bounds memory on
        both sides. Closing it cancels what is queued. Raises ClusterError, and what the tile step
        raises.
        """
        from distributed import as_completed

        results = as_completed(loop=self._client.loop)
        try:
            shared = self._shared(plan, upscaler)
            for index, pixels in pieces:
                while results.count() >= IN_HAND * self.slots:
                    yield self._taken(next(results), plan)
                results.add(self._submitted(_tile, shared, index, plan.tiles[index], pixels))
            while results.count():
                yield self._taken(next(results), plan)
        finally:
            # A client that is closed or lost has nothing to cancel.
            with suppress(Exception):
                self._client.cancel(list(results.futures))
            results.clear()

    def seconds(self, plan: ScenePlan, upscaler: Upscaler, sample: int) -> float:
        """Seconds for a tile of sample x sample lr pixels while all slots are busy."""
        shared = self._shared(plan, upscaler)
        for _ in range(2):  # the first round compiles
            futures = [self._submitted(_timed, shared, None, sample) for _ in range(self.slots)]
            found: list[float] = [self._taken(future, plan)[1] for future in futures]
        return statistics.median(found)

    def _shared(self, plan: ScenePlan, upscaler: Upscaler) -> Any:
        """What all tiles of a run share, sent to each worker once."""
        from cloudpickle import dumps

        if not self._threads():
            logger.warning("The cluster at %s has no workers yet; waiting for them.", self.name)
        # There can be a million tiles.
        without_tiles = replace(plan, tiles=replace(plan.tiles, tiles=()))
        packed = dumps((without_tiles, upscaler))
        return self._submitted(_Shared, packed, upscaler.device.type, __version__)

    def _threads(self) -> int:
        with self._faults():
            threads: dict[str, int] = self._client.nthreads()
        return sum(threads.values())

    def _submitted(self, function: Callable[..., Any], *arguments: Any) -> Any:
        from dask import config

        with self._faults(), config.set({"distributed.admin.large-graph-warning-threshold": LARGE}):
            return self._client.submit(
                function, *arguments, key=f"repmamba{function.__name__}-{uuid.uuid4().hex}"
            )

    def _taken(self, future: Any, plan: ScenePlan) -> Any:
        """The index and result of a task. Raises what the task raised, or ClusterError."""
        with self._faults():
            index, result = future.result()
        if not isinstance(result, _Fault):
            return index, result
        if issubclass(result.kind, OutOfMemory):
            raise OutOfMemory(
                f"A tile did not fit into the memory of a worker of the cluster at {self.name}: "
                "give its workers fewer threads or more memory, or use a tile= below "
                f"{plan.tiles.tile} (which starts again). {AGAIN}"
            )
        raise result.kind(result.text)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn failures of the cluster into one line."""
        from distributed.client import ClosedClientError
        from distributed.scheduler import KilledWorker

        try:
            if self._client.status != "running":
                raise CancelledError(f"the client is {self._client.status}")
            yield
        except KilledWorker as killed:
            raise ClusterError(
                f"Workers of the cluster at {self.name} ended {killed.allowed_failures + 1} times "
                "while computing one tile, probably out of memory: give them more memory or fewer "
                f"threads. {AGAIN}"
            ) from killed
        except (CancelledError, ClosedClientError, OSError) as lost:
            raise ClusterError(
                f"The cluster at {self.name} was lost ({_first_line(lost)}). {AGAIN}"
            ) from lost
        except (ImportError, RuntimeError) as lacking:
            if isinstance(lacking, RuntimeError) and "deserializ" not in str(lacking):
                raise
            why = _first_line(lacking.__cause__ or lacking)
            raise ClusterError(
                f"The scheduler or a worker of the cluster at {self.name} lacks a package ({why}): "
                f"install repmamba {__version__} in the environment of both."
            ) from lacking


@contextmanager
def connected(cluster: Addressed) -> Iterator[Cluster]:
    """The cluster at an address ("tcp://host:8786"), in a scheduler file (.json) or of a Client.

    A Client stays open. Raises ClusterError if no scheduler answers, UsageError, MissingExtra.
    """
    try:
        from distributed import Client
    except ImportError as missing:
        raise MissingExtra(
            "A Dask cluster needs the extra dask: pip install 'repmamba[dask]'."
        ) from missing
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise UsageError(
                "The Client of the cluster is asynchronous: give one made with asynchronous=False."
            )
        if cluster.status != "running":
            raise UsageError(
                f"The Client of the cluster is {cluster.status}: give one that is open."
            )
        yield Cluster(cluster, cluster.scheduler.address)
        return
    name = str(cluster)
    in_file = name.endswith(".json")
    where = {"scheduler_file": _scheduler_file(Path(name))} if in_file else {"address": name}
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    # TypeError and ImportError: tls:// and ucx:// that are not set up
    except (OSError, ValueError, TypeError, ImportError) as silent:
        raise ClusterError(
            f"No Dask scheduler answers at {name} ({_first_line(silent)}): give its address, such "
            "as tcp://host:8786, or its scheduler file; other protocols need Dask's configuration."
        ) from silent
    with client:
        yield Cluster(client, client.scheduler.address)


def _scheduler_file(path: Path) -> str:
    """The path of a valid scheduler file. Raises UsageError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"The scheduler file {path} cannot be read ({error.strerror}): dask scheduler "
            "--scheduler-file writes one."
        ) from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("address"), str):
        raise UsageError(
            f"{path} is not a scheduler file: dask scheduler --scheduler-file writes one."
        )
    return str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class _Shared:
    """Plan and network on a worker: unpacked by its first tile, and released after the run."""

    def __init__(self, packed: bytes, device: str, version: str):
        self._packed, self._device, self._version = packed, device, version
        self._guard = threading.Lock()
        self._unpacked: tuple[ScenePlan, Upscaler] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared, (self._packed, self._device, self._version)

    def unpacked(self) -> tuple[ScenePlan, Upscaler]:
        """The plan and network. Raises ClusterError if this worker would compute other pixels."""
        with self._guard:
            if self._unpacked is None:
                self._unpacked = self._unpack()
            return self._unpacked

    def _unpack(self) -> tuple[ScenePlan, Upscaler]:
        if self._version != __version__:
            raise ClusterError(
                f"A worker has repmamba {__version__}, but the run uses {self._version}: install "
                "the same version everywhere."
            )
        if self._device == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                "A worker has no GPU, but the run was planned for one: use device='cpu'."
            )
        plan, upscaler = pickle.loads(self._packed)
        try:
            pin_backend(upscaler)
        except UsageError as fault:
            raise ClusterError(f"A worker would compute different pixels. {fault}") from fault
        return plan, upscaler


class _Fault(NamedTuple):
    """An error on a worker. Returned as a value, since Dask logs exceptions there in full."""

    kind: type[RepmambaError]
    text: str


def _tile(
    shared: _Shared, index: int, tile: Tile, pixels: Pixels
) -> tuple[int, TileResult | _Fault]:
    """On a worker: the result of one tile."""

    def step(plan: ScenePlan, upscaler: Upscaler) -> TileResult:
        return upscale_tile(pixels, tile, plan, upscaler)

    return index, _on_worker(shared, step)


def _timed(shared: _Shared, index: None, edge: int) -> tuple[None, float | _Fault]:
    """On a worker: seconds for a tile of zeros."""

    def step(plan: ScenePlan, upscaler: Upscaler) -> float:
        begun = time.perf_counter()
        upscaler.enlarge(np.zeros((len(plan.places), edge, edge), np.float32), plan.groups)
        return time.perf_counter() - begun

    return index, _on_worker(shared, step)


def _on_worker(shared: _Shared, step: Callable[[ScenePlan, Upscaler], Any]) -> Any:
    try:
        plan, upscaler = shared.unpacked()
        with one_compute_thread():
            return step(plan, upscaler)
    except RepmambaError as fault:
        return _Fault(type(fault), str(fault))
    except OSError as fault:  # of the worker; raised, it would look like a lost cluster
        return _Fault(ClusterError, f"A tile failed on a worker: {fault}. {AGAIN}")
