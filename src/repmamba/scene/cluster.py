"""Tiles on a Dask cluster: the tile step as tasks of its workers. Reading, writing and the journal stay with the run.

Only arrays travel: a tile goes out as it was read, and its result comes back, so a worker needs neither the source nor
the target, and a run ends as one without a cluster does. A task holds all that it needs but the network, which the
scheduler keeps: what a lost worker had in hand, another one computes.
"""

from __future__ import annotations

import logging
import pickle
import statistics
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repmamba import __version__
from repmamba.errors import ClusterError, MissingExtra, OutOfMemory, RepmambaError, UsageError
from repmamba.inference.upscaler import Upscaler, pin_backend
from repmamba.inference.workers import one_compute_thread
from repmamba.scene.plan import ScenePlan
from repmamba.scene.stored import Pixels
from repmamba.scene.tile_step import TileResult, upscale_tile

logger = logging.getLogger(__name__)

IN_HAND = 2  # tiles for each slot: one that is computed, and one that waits there so that none is waited for
PATIENCE = 30  # seconds for a scheduler to answer
AGAIN = "What is finished is kept: the same command goes on, with a cluster or without."

Addressed = Any  # an address, the path of a scheduler file, or a distributed.Client


class Cluster:
    """A Dask cluster that computes tiles. Made by `connected`."""

    def __init__(self, client: Any, name: str):
        self.name = name  # where its scheduler is
        self._client = client

    @property
    def slots(self) -> int:
        """Tiles computed side by side: the threads of its workers now; 1 where none has come yet."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def compute(
        self, pieces: Iterable[tuple[int, Pixels]], plan: ScenePlan, upscaler: Upscaler
    ) -> Generator[tuple[int, TileResult]]:
        """The result of each piece (number of the tile, what was read), in the order in which the workers finish.

        Pieces are drawn by the caller's thread, two for each slot ahead, so that neither here nor there more is in
        memory. What is closed or fails leaves nothing to compute. Raises ClusterError, and what the tile step raises.
        """
        from cloudpickle import dumps
        from distributed import as_completed

        if not self._client.nthreads():
            logger.warning("The cluster at %s has no workers yet; the run waits for them.", self.name)
        run = uuid.uuid4().hex
        results = as_completed(loop=self._client.loop)
        try:
            with self._faults(plan):
                scene = self._client.submit(bytes, dumps((plan, upscaler)), key=f"repmamba-scene-{run}")
                for index, pixels in pieces:
                    while results.count() >= IN_HAND * self.slots:
                        yield _taken(next(results))
                    results.add(
                        self._client.submit(
                            _tile, scene, index, pixels, __version__, key=f"repmamba-tile-{run}-{index}", pure=False
                        )
                    )
                for future in results:
                    yield _taken(future)
        finally:
            results.clear()

    def seconds(self, plan: ScenePlan, upscaler: Upscaler, sample: int) -> float:
        """How long a tile of sample x sample lr pixels takes a slot, all others computing too. Raises ClusterError."""
        from cloudpickle import dumps

        slots = self.slots
        with self._faults(plan):
            scene = self._client.submit(bytes, dumps((plan, upscaler)), pure=False)
            rounds: list[list[float]] = [
                self._client.gather(
                    [self._client.submit(_timed, scene, sample, __version__, pure=False) for _ in range(slots)]
                )
                for _ in range(2)  # in the first, the workers compile
            ]
        return statistics.median(rounds[1])

    @contextmanager
    def _faults(self, plan: ScenePlan) -> Iterator[None]:
        """What becomes of a cluster, in one line."""
        from distributed.scheduler import KilledWorker

        try:
            yield
        except OutOfMemory as full:
            raise OutOfMemory(
                f"A tile did not fit into the memory of a worker of the cluster at {self.name}: give its workers fewer "
                f"threads or more memory, or take a --tile below {plan.tiles.tile} (that starts anew). {AGAIN}"
            ) from full
        except RepmambaError:
            raise
        except ImportError as missing:
            raise ClusterError(
                f"A worker of the cluster at {self.name} has not what a tile needs ({missing}): install repmamba "
                f"{__version__} in the environment of its workers."
            ) from missing
        except KilledWorker as killed:
            raise ClusterError(
                f"Workers of the cluster at {self.name} ended {killed.allowed_failures + 1} times over one tile, most "
                f"likely for want of memory: give each more of it, or fewer threads. {AGAIN}"
            ) from killed
        except (CancelledError, OSError) as lost:
            raise ClusterError(f"The cluster at {self.name} was lost. {AGAIN}") from lost


@contextmanager
def connected(cluster: Addressed) -> Iterator[Cluster]:
    """The cluster of an address ("tcp://host:8786"), of a scheduler file (.json), or of a Client, which stays open.

    Raises ClusterError where no scheduler answers, UsageError, MissingExtra.
    """
    try:
        from distributed import Client
    except ImportError as missing:
        raise MissingExtra("A Dask cluster needs the extra dask: pip install 'repmamba[dask]'.") from missing
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise UsageError("The Client of the cluster is asynchronous: give one made with asynchronous=False.")
        yield Cluster(cluster, cluster.scheduler.address)
        return
    name = str(cluster)
    where = {"scheduler_file": name} if name.endswith(".json") else {"address": name}
    if "scheduler_file" in where and not Path(name).is_file():
        raise UsageError(f"There is no scheduler file {name}: dask scheduler --scheduler-file writes it.")
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as silent:
        raise ClusterError(
            f"No Dask scheduler answers at {name} ({_first_line(silent)}): give its address, as in "
            "tcp://host:8786, or its scheduler file."
        ) from silent
    with client:
        yield Cluster(client, client.scheduler.address)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _taken(future: Any) -> tuple[int, TileResult]:
    index, result = future.result()
    if isinstance(result, _Fault):
        raise result.kind(result.text)
    return index, result


class _Fault(NamedTuple):
    """What repmamba raised on a worker. It travels as a value: Dask would log it there, and loses such exceptions."""

    kind: type[RepmambaError]
    text: str


def _tile(packed: bytes, index: int, pixels: Pixels, version: str) -> tuple[int, TileResult | _Fault]:
    """On a worker: one tile, as anywhere else."""
    try:
        plan, upscaler = _unpacked(packed, version)
        with one_compute_thread():
            return index, upscale_tile(pixels, plan.tiles[index], plan, upscaler)
    except RepmambaError as fault:
        return index, _Fault(type(fault), str(fault))


def _timed(packed: bytes, edge: int, version: str) -> float:
    """On a worker: seconds for a made tile."""
    plan, upscaler = _unpacked(packed, version)
    begun = time.perf_counter()
    with one_compute_thread():
        upscaler.enlarge(np.zeros((len(plan.places), edge, edge), np.float32), plan.groups)
    return time.perf_counter() - begun


@lru_cache(maxsize=4)  # several runs may share a cluster
def _unpacked(packed: bytes, version: str) -> tuple[ScenePlan, Upscaler]:
    """On a worker: what all tiles of a run share, unpacked once; refused where it would give other pixels."""
    if version != __version__:
        raise ClusterError(
            f"A worker has repmamba {__version__}, and the run is of {version}: install that one for all workers."
        )
    plan, upscaler = pickle.loads(packed)
    try:
        pin_backend(upscaler)
    except UsageError as fault:
        raise ClusterError(f"A worker would give slightly other pixels. {fault}") from fault
    return plan, upscaler
