"""Tiles on a Dask cluster: the tile step as tasks of its workers. Reading, writing and the journal
stay with the run.

Only arrays travel: a tile goes out as it was read, and its result comes back, so a worker needs
neither the source nor the target, and a run ends as one without a cluster does. A task holds all
that it needs but the network, which the scheduler keeps: what a lost worker had in hand, another
one computes.
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
from repmamba.inference.upscaler import Upscaler, pin_backend
from repmamba.inference.workers import one_compute_thread
from repmamba.scene.plan import ScenePlan
from repmamba.scene.source.pixels import Pixels
from repmamba.scene.tile_step import TileResult, upscale_tile
from repmamba.tiles.plan import Tile

logger = logging.getLogger(__name__)

# tiles for each slot: one that is computed, and one that waits there so that none is waited for
IN_HAND = 2
PATIENCE = 30  # seconds for a scheduler to answer
LARGE = "1 GiB"  # Dask would warn of tasks that hold 10 MiB, as a tile of many bands does
AGAIN = "What is finished is kept: the same command goes on, with a cluster or without."

Addressed = Any  # an address, the path of a scheduler file, or a distributed.Client


class Cluster:
    """A Dask cluster that computes tiles. Made by `connected`."""

    def __init__(self, client: Any, name: str):
        self.name = name  # where its scheduler is
        self._client = client

    @property
    def slots(self) -> int:
        """Tiles computed side by side: the threads of its workers now, 1 while there are none.
        Raises ClusterError.
        """
        return max(1, self._threads())

    def compute(
        self, pieces: Iterable[tuple[int, Pixels]], plan: ScenePlan, upscaler: Upscaler
    ) -> Generator[tuple[int, TileResult]]:
        """The result of each piece (number of the tile, what was read), in the order in which the
        workers finish.

        Pieces are drawn by the caller's thread, two for each slot ahead, so that neither here nor
        there more is in memory. What is closed or fails leaves nothing to begin. Raises
        ClusterError, and what the tile step raises.
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
            # of a client that is closed or lost, which has nothing in hand any more
            with suppress(Exception):
                self._client.cancel(list(results.futures))
            results.clear()

    def seconds(self, plan: ScenePlan, upscaler: Upscaler, sample: int) -> float:
        """How long a tile of sample x sample lr pixels takes a slot, all others computing too.
        Raises ClusterError.
        """
        shared = self._shared(plan, upscaler)
        for _ in range(2):  # in the first round, the workers compile
            futures = [self._submitted(_timed, shared, None, sample) for _ in range(self.slots)]
            found: list[float] = [self._taken(future, plan)[1] for future in futures]
        return statistics.median(found)

    def _shared(self, plan: ScenePlan, upscaler: Upscaler) -> Any:
        """What all tiles of a run share, as one value that each worker fetches once."""
        from cloudpickle import dumps

        if not self._threads():
            logger.warning(
                "The cluster at %s has no workers yet; the run waits for them.", self.name
            )
        # a million of them, in a large area
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
        """The number and the result of a task. Raises what it raised, or ClusterError."""
        with self._faults():
            index, result = future.result()
        if not isinstance(result, _Fault):
            return index, result
        if issubclass(result.kind, OutOfMemory):
            raise OutOfMemory(
                f"A tile did not fit into the memory of a worker of the cluster at {self.name}: "
                "give its workers fewer "
                f"threads or more memory, or take a tile= below {plan.tiles.tile} (that starts "
                f"anew). {AGAIN}"
            )
        raise result.kind(result.text)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What becomes of a cluster while it is asked something, in one line."""
        from distributed.client import ClosedClientError
        from distributed.scheduler import KilledWorker

        try:
            if self._client.status != "running":
                raise CancelledError(f"the client is {self._client.status}")
            yield
        except KilledWorker as killed:
            raise ClusterError(
                f"Workers of the cluster at {self.name} ended {killed.allowed_failures + 1} times "
                "over one tile, most "
                f"likely for want of memory: give each more of it, or fewer threads. {AGAIN}"
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
                f"The scheduler or a worker of the cluster at {self.name} lacks what a tile needs "
                f"({why}): install "
                f"repmamba {__version__} in the environment of both."
            ) from lacking


@contextmanager
def connected(cluster: Addressed) -> Iterator[Cluster]:
    """The cluster of an address ("tcp://host:8786"), of a scheduler file (.json), or of a Client,
    which stays open.

    Raises ClusterError where no scheduler answers, UsageError, MissingExtra.
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
    where = (
        {"scheduler_file": _scheduler_file(Path(name))}
        if name.endswith(".json")
        else {"address": name}
    )
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    except (
        OSError,
        ValueError,
        TypeError,
        ImportError,
    ) as silent:  # the last two for tls:// and ucx:// not set up
        raise ClusterError(
            f"No Dask scheduler answers at {name} ({_first_line(silent)}): give its address, as in "
            "tcp://host:8786, or its scheduler file; for others, set up Dask's configuration."
        ) from silent
    with client:
        yield Cluster(client, client.scheduler.address)


def _scheduler_file(path: Path) -> str:
    """A scheduler file, which has an address in it. Raises UsageError."""
    try:
        told = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"There is no scheduler file {path} to read ({error.strerror}): dask scheduler "
            "--scheduler-file writes it."
        ) from error
    except ValueError:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("address"), str):
        raise UsageError(
            f"{path} is no scheduler file, as dask scheduler --scheduler-file writes it."
        )
    return str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class _Shared:
    """Plan and network on a worker: unpacked by the first tile there, and gone with the run."""

    def __init__(self, packed: bytes, device: str, version: str):
        self._packed, self._device, self._version = packed, device, version
        self._guard = threading.Lock()
        self._unpacked: tuple[ScenePlan, Upscaler] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared, (self._packed, self._device, self._version)

    def unpacked(self) -> tuple[ScenePlan, Upscaler]:
        """Raises ClusterError where this worker would give other pixels, or none."""
        with self._guard:
            if self._unpacked is None:
                self._unpacked = self._unpack()
            return self._unpacked

    def _unpack(self) -> tuple[ScenePlan, Upscaler]:
        if self._version != __version__:
            raise ClusterError(
                f"A worker has repmamba {__version__}, and the run is of {self._version}: install "
                "that one for all."
            )
        if self._device == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                "A worker has no GPU, and the run is to be computed by one: take device='cpu'."
            )
        plan, upscaler = pickle.loads(self._packed)
        try:
            pin_backend(upscaler)
        except UsageError as fault:
            raise ClusterError(f"A worker would give slightly other pixels. {fault}") from fault
        return plan, upscaler


class _Fault(NamedTuple):
    """What went wrong with a tile on a worker. It travels as a value, since Dask logs exceptions
    there, in full.
    """

    kind: type[RepmambaError]
    text: str


def _tile(
    shared: _Shared, index: int, tile: Tile, pixels: Pixels
) -> tuple[int, TileResult | _Fault]:
    """On a worker: one tile, as anywhere else."""

    def step(plan: ScenePlan, upscaler: Upscaler) -> TileResult:
        return upscale_tile(pixels, tile, plan, upscaler)

    return index, _on_worker(shared, step)


def _timed(shared: _Shared, index: None, edge: int) -> tuple[None, float | _Fault]:
    """On a worker: seconds for a made tile."""

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
    except (
        OSError
    ) as fault:  # of the worker's own system; raised here, it would be taken for the cluster's loss
        return _Fault(ClusterError, f"A tile failed on a worker: {fault}. {AGAIN}")
