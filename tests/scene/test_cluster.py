"""Tiles on a Dask cluster of real processes: the same bytes as here, whatever ends, and one line
for what cannot be.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import rasterio
import torch
from distributed import Client, LocalCluster

from repmamba.cli.main import FAILED, MISUSED, run
from repmamba.errors import ClusterError, MissingExtra, OutOfMemory, UsageError
from repmamba.inference.upscaler import Upscaler
from repmamba.scene import cluster as cluster_module
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result.receipt import receipt_path
from repmamba.scene.source.raster import Raster

# What this file defines goes to the workers as it is: they cannot import it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NOWHERE = "tcp://127.0.0.1:9"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two processes with one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as workers:
        yield workers.scheduler_address


@pytest.fixture
def client(scheduler: str) -> Iterator[Client]:
    with Client(scheduler, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def scene(write_raster, smooth) -> Path:
    """16 bit, four bands, with a hole; tiles of 32 are twelve."""
    data = smooth(4, 96, 128, "uint16", 200, 3000)
    data[:, 40:50, 60:90] = 0
    return write_raster("scene.tif", data, nodata=0)


@pytest.fixture
def weights(tiny_weights) -> Path:
    return tiny_weights(2)


SMALL = {"tile": 32, "halo": 8}


def test_a_cluster_gives_the_bytes_of_this_machine(scheduler, scene, weights, tmp_path):
    here, there = tmp_path / "here" / "out.tif", tmp_path / "there" / "out.tif"
    told: list[tuple[int, int]] = []
    for target, where in (
        (here, {}),
        (there, {"cluster": scheduler, "progress": lambda *done: told.append(done)}),
    ):
        target.parent.mkdir()
        result = upscale_file(scene, target, weights, **SMALL, **where)
        assert (result.tiles, result.resumed) == (12, 0)
    assert there.read_bytes() == here.read_bytes()
    assert receipt_path(there).read_bytes() == receipt_path(here).read_bytes()
    assert sorted(path.name for path in there.parent.iterdir()) == sorted(
        path.name for path in here.parent.iterdir()
    )
    total = 4 * 96 * 128
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[0] == (0, total)
    assert told[-1] == (total, total)


def test_a_client_of_ones_own_stays_open_and_confidence_comes_along(client, scene, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        upscale_file(
            scene,
            tmp_path / name / "out.tif",
            "x4",
            window=(16, 16, 16, 16),
            confidence=tmp_path / name / "error.tif",
            cluster=client if name == "there" else None,
        )
    for file in ("out.tif", "error.tif"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    assert client.status == "running"


def test_what_a_killed_worker_had_in_hand_another_one_computes(client, scene, weights, tmp_path):
    victims = list(client.run(os.getpid).values())
    killed = []

    def progress(done: int, total: int) -> None:
        if done and not killed:
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    upscale_file(scene, tmp_path / "there.tif", weights, cluster=client, progress=progress, **SMALL)
    upscale_file(scene, tmp_path / "here.tif", weights, **SMALL)
    assert killed
    assert (tmp_path / "there.tif").read_bytes() == (tmp_path / "here.tif").read_bytes()


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_stopped_run_is_gone_on_with_here_or_there(scheduler, scene, weights, tmp_path, first):
    target = tmp_path / "out.tif"

    def stop(done: int, total: int) -> None:
        if done > total // 4:
            raise KeyboardInterrupt

    places = [{}, {"cluster": scheduler}][:: 1 if first == "here" else -1]
    with pytest.raises(KeyboardInterrupt):
        upscale_file(scene, target, weights, progress=stop, **SMALL, **places[0])
    result = upscale_file(scene, target, weights, **SMALL, **places[1])
    assert 3 <= result.resumed < 12
    upscale_file(scene, tmp_path / "whole.tif", weights, **SMALL)
    assert target.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_few_tiles_are_read_ahead_and_no_more(scheduler, scene, weights, tmp_path, monkeypatch):
    read, ahead = Raster.read, []
    counted = [0, 0]

    def reading(self: Raster, window: Any) -> Any:
        counted[0] += 1
        ahead.append(counted[0] - counted[1])
        return read(self, window)

    def progress(done: int, total: int) -> None:
        counted[1] += done > 0
        if done == 0:  # what was read before the first tile looked for nodata
            counted[0] = 0
            ahead.clear()

    with monkeypatch.context() as watching:
        watching.setattr(Raster, "read", reading)
        settings = {"value_range": (0, 4000), "progress": progress, **SMALL}
        upscale_file(scene, tmp_path / "out.tif", weights, cluster=scheduler, **settings)
    assert counted == [12, 12]
    assert max(ahead) <= 2 * cluster_module.IN_HAND + 1


def test_a_dry_run_says_where_and_how_long(client, scheduler, scene, weights, tmp_path):
    client.wait_for_workers(2, timeout=60)  # one that a test before has killed comes back
    made = plan_file(scene, tmp_path / "out.tif", weights, cluster=scheduler, **SMALL)
    here = plan_file(scene, tmp_path / "out.tif", weights, workers=2, **SMALL)
    assert (made.workers, made.cluster) == (2, scheduler)
    assert made.seconds > 0
    assert made.memory_bytes < here.memory_bytes  # nothing is computed here
    assert f"2 at a time on the cluster at {scheduler};" in made.summary()
    assert json.loads(json.dumps(made.as_json()))["cluster"] == scheduler
    assert not list(tmp_path.glob(".out*"))


def test_a_cluster_without_workers_is_waited_for(scene, weights, tmp_path, caplog):
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as workers:
        grown = threading.Timer(1.0, workers.scale, args=[1])
        grown.start()
        upscale_file(
            scene, tmp_path / "out.tif", weights, cluster=workers.scheduler_address, **SMALL
        )
    assert "has no workers yet; waiting for them" in caplog.text


@dataclass(frozen=True)
class Fatal:
    """In a network's place: what ends the process that runs it, or the run."""

    end: Callable[[], Any]
    scale: int = 2
    bands: int = 3

    def run(self, unit: torch.Tensor) -> torch.Tensor:
        self.end()
        raise RuntimeError("not enough memory: you tried to allocate 1 byte")


def fatal(end: Callable[[], Any]) -> Upscaler:
    return Upscaler(
        torch.nn.Identity(),
        Fatal(end),
        "fatal",
        "0" * 32,
        tile=32,
        halo=8,
        device=torch.device("cpu"),
    )


def test_a_tile_that_does_not_fit_into_a_workers_memory_is_one_line(scheduler, scene, tmp_path):
    with pytest.raises(
        OutOfMemory, match=r"of a worker of the cluster at tcp://.*fewer threads.*tile= below 32"
    ):
        upscale_file(scene, tmp_path / "out.tif", fatal(lambda: None), cluster=scheduler)
    assert not (tmp_path / "out.tif").exists()


def test_a_tile_that_ends_its_workers_is_one_line(scene, tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as workers,
        pytest.raises(
            ClusterError,
            match=r"ended 1 times while computing one tile, .* more memory .*Finished tiles are kept",
        ),
    ):
        upscale_file(
            scene,
            tmp_path / "out.tif",
            fatal(lambda: os._exit(1)),
            cluster=workers.scheduler_address,
        )


def test_a_scheduler_that_ends_is_one_line_and_the_run_can_be_gone_on_with(
    scene, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster_module, "PATIENCE", 1)
    target = tmp_path / "out.tif"
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as workers:

        def end(done: int, total: int) -> None:
            if done:
                workers.close()

        with pytest.raises(ClusterError, match="was lost"):
            upscale_file(
                scene, target, weights, cluster=workers.scheduler_address, progress=end, **SMALL
            )
    assert upscale_file(scene, target, weights, **SMALL).resumed > 0


def test_a_worker_of_another_version_is_refused(client, scene, weights, tmp_path):
    def pretend(version: str) -> str:
        from repmamba.scene import cluster

        before, cluster.__version__ = cluster.__version__, version
        return before

    before = client.run(pretend, "9.9")
    try:
        with pytest.raises(ClusterError, match=r"has repmamba 9\.9, but the run uses "):
            upscale_file(scene, tmp_path / "out.tif", weights, cluster=client, **SMALL)
    finally:
        client.run(pretend, next(iter(before.values())))


def test_a_worker_without_the_compiled_scan_is_refused_since_its_pixels_would_differ(
    client, scene, weights, tmp_path
):
    def pretend(name: str | None) -> None:
        from repmamba.inference import loading
        from repmamba.scan.backends import BackendChoice, explain

        loading.explain = explain if name is None else lambda *_: BackendChoice(name, "No kernels.")

    client.run(pretend, "chunked")
    try:
        with pytest.raises(
            ClusterError,
            match=r"would compute different pixels\. .* but chunked was chosen: No kernels",
        ):
            upscale_file(scene, tmp_path / "out.tif", weights, cluster=client, **SMALL)
    finally:
        client.run(pretend, None)


@dataclass(frozen=True)
class Slow:
    """In a network's place: takes its time."""

    seconds: float
    scale: int = 2
    bands: int = 3

    def run(self, unit: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.nn.functional.interpolate(unit, scale_factor=2)


def test_what_is_stopped_leaves_nothing_to_compute_in_a_cluster_of_ones_own(
    client, scene, tmp_path
):
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    def tiles(dask_scheduler: Any) -> int:
        return sum("repmamba" in key for key in dask_scheduler.tasks)

    slow = replace(fatal(lambda: None), runner=Slow(2.0))
    with pytest.raises(KeyboardInterrupt):
        upscale_file(scene, tmp_path / "out.tif", slow, cluster=client, progress=stop, bands=(1,))
    # of the two that each tile takes, and one is in hand for each worker, and one waits there
    time.sleep(1)
    assert client.run_on_scheduler(tiles) == 0


def test_a_fault_of_reading_is_none_of_the_cluster(
    scheduler, scene, weights, tmp_path, monkeypatch
):
    def failing(self: Raster, window: Any) -> Any:
        raise OutOfMemory("The window does not fit into memory while it is read.")

    monkeypatch.setattr(Raster, "read", failing)
    with pytest.raises(
        OutOfMemory, match=r"^The window does not fit into memory while it is read\.$"
    ):
        upscale_file(
            scene, tmp_path / "out.tif", weights, cluster=scheduler, value_range=(0, 4000), **SMALL
        )


def test_a_fault_of_a_workers_own_system_is_told_as_that(scheduler, scene, tmp_path):
    def failing() -> None:
        raise PermissionError("no access to the GPU")

    with pytest.raises(
        ClusterError, match=r"^A tile failed on a worker: no access to the GPU\. Finished tiles"
    ):
        upscale_file(scene, tmp_path / "out.tif", fatal(failing), cluster=scheduler)


def test_a_worker_without_a_gpu_is_told_before_anything_is_unpacked():
    shared = cluster_module._Shared(b"no pickle", "cuda", cluster_module.__version__)
    with pytest.raises(ClusterError, match=r"A worker has no GPU, .*device='cpu'"):
        shared.unpacked()


def test_a_client_that_is_closed_or_closes_is_one_line(scheduler, scene, weights, tmp_path):
    closed = Client(scheduler, set_as_default=False)

    def close(done: int, total: int) -> None:
        if done:
            closed.close()

    with pytest.raises(ClusterError, match=r"was lost \(the client is closed\)"):
        upscale_file(scene, tmp_path / "out.tif", weights, cluster=closed, progress=close, **SMALL)
    with pytest.raises(UsageError, match="The Client of the cluster is closed"):
        upscale_file(scene, tmp_path / "out.tif", weights, cluster=closed, **SMALL)


BARE = """
import sys
sys.modules["repmamba"] = None
from distributed.cli.dask_scheduler import main
main(["--scheduler-file", sys.argv[1], "--no-dashboard", "--port", "0", "--host", "127.0.0.1"])
"""


def test_a_scheduler_without_repmamba_is_one_line(scene, weights, tmp_path):
    file = tmp_path / "scheduler.json"
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(file)], stderr=subprocess.DEVNULL
    ) as bare:
        try:
            end = time.monotonic() + 60
            while not file.exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            with pytest.raises(
                ClusterError,
                match=r"The scheduler or a worker .* lacks a package \(.*\): install",
            ):
                upscale_file(scene, tmp_path / "out.tif", weights, cluster=file, **SMALL)
        finally:
            bare.terminate()


def test_a_worker_that_lacks_a_package_is_told_apart(scheduler, scene, tmp_path):
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'repmamba'")

    with pytest.raises(
        ClusterError,
        match=r"lacks a package \(No module named 'repmamba'\): install repmamba",
    ):
        upscale_file(scene, tmp_path / "out.tif", fatal(lacking), cluster=scheduler)


def test_what_is_no_cluster_is_refused_before_anything_is_written(
    scheduler, scene, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster_module, "PATIENCE", 1)
    target = tmp_path / "out.tif"
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    for place, fault, said in (
        (NOWHERE, ClusterError, "No Dask scheduler answers at tcp://127.0.0.1:9"),
        ("no/such://address", ClusterError, "No Dask scheduler answers at no/such://address"),
        (str(tmp_path / "none.json"), UsageError, "The scheduler file .* cannot be read"),
        (tmp_path / "none.json", UsageError, "The scheduler file .* cannot be read"),
        (str(broken), UsageError, "is not a scheduler file"),
        ("tls://127.0.0.1:9", ClusterError, "Dask's configuration"),
        (17, ClusterError, "No Dask scheduler answers at 17"),
    ):
        with pytest.raises(fault, match=said):
            upscale_file(scene, target, cluster=place)
    with pytest.raises(UsageError, match="give workers= or cluster="):
        upscale_file(scene, target, cluster=scheduler, workers=2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"pip install 'repmamba\[dask\]'"):
        upscale_file(scene, target, cluster=scheduler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "scene.tif"]


def test_a_client_that_is_asynchronous_is_refused(scheduler, scene, tmp_path):
    async def inside() -> None:
        async with Client(scheduler, asynchronous=True, set_as_default=False) as waiting:
            with pytest.raises(UsageError, match="asynchronous"):
                upscale_file(scene, tmp_path / "out.tif", cluster=waiting)

    asyncio.run(inside())


def test_the_command_line_takes_an_address_or_a_scheduler_file(
    client, scene, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(cluster_module, "PATIENCE", 1)
    file = tmp_path / "scheduler.json"
    # The client writes such a file too, with counts that JSON has no keys for once a task has run.
    file.write_text(json.dumps({"address": client.scheduler.address}))
    for place in (client.scheduler.address, str(file)):
        options = ["--weights", str(weights), "--tile", "32", "--overwrite", "--cluster", place]
        assert run(["upscale", str(scene), "-o", str(tmp_path / "out.tif"), *options]) == 0
        with rasterio.open(tmp_path / "out.tif") as result:
            assert result.shape == (192, 256)
            assert np.count_nonzero(result.read(1) == 0) == 4 * 10 * 30
    capsys.readouterr()
    assert (
        run(
            [
                "upscale",
                str(scene),
                "-o",
                str(tmp_path / "new.tif"),
                "--cluster",
                str(tmp_path / "no.json"),
            ]
        )
        == MISUSED
    )
    assert (
        run(["upscale", str(scene), "-o", str(tmp_path / "new.tif"), "--cluster", NOWHERE])
        == FAILED
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("Error: ") for line in said)
