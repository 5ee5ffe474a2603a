"""A real server in a process of its own, on a free port, and small rasters to send to it."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from repmamba.scene.engine import upscale_file

PROGRAM = """
import json, sys
from pathlib import Path
from repmamba.service.references import Allowed
from repmamba.service.server import serve
from repmamba.service.settings import Limits, Settings

given = json.loads(sys.argv[1])
given["folder"] = Path(given["folder"])
given["allowed"] = tuple(map(Allowed.parse, given.pop("allowed", ())))
given["limits"] = Limits(**{"reserved_bytes": 0, **given.pop("limits", {})})
serve(Settings(**given), {"scale": "Upscaling factor."})
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def picture(seed: int = 0, edge: int = 24, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


class Server:
    """A server that can be killed and started again on the same folder and port."""

    def __init__(self, **settings: Any):
        self.port = free_port()
        self.settings = {"port": self.port, "workers": 1, **settings}
        self.url = f"http://127.0.0.1:{self.port}"
        token = settings.get("token")
        self.client = httpx.Client(
            base_url=self.url,
            timeout=60,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )
        self.log_file = Path(self.settings["folder"]).parent.with_suffix(".log")
        self.start()

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(self.settings)],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        for _ in range(600):
            try:
                self.client.get("/health")
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.log_file.read_text()
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.stop()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind, of all lives of the server."""
        lines = []
        for line in self.log_file.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the server was killed in the middle of it
                continue
        return [line for line in lines if line["event"] == event]

    def processes(self) -> dict[int, str]:
        """The processes below the server's: pid -> command line."""
        parents, commands = {}, {}
        for entry in Path("/proc").iterdir():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
                parents[int(entry.name)] = int(stat[1])
            except (OSError, ValueError):
                continue
        below, found = {self.process.pid}, {}
        while new := {pid for pid, parent in parents.items() if parent in below} - set(found):
            found |= {pid: commands[pid] for pid in new}
            below |= new
        return found

    def upload(self, content: bytes) -> str:
        answer = self.client.post("/uploads", content=content)
        assert answer.status_code == 201, answer.text
        href: str = answer.json()["href"]
        return href

    def execute(self, scene: Any, *, wait: bool = True, **inputs: Any) -> httpx.Response:
        """Ask for a job. scene: bytes are uploaded first, text is a link."""
        if isinstance(scene, bytes):
            scene = self.upload(scene)
        if isinstance(scene, str):
            scene = {"href": scene}
        return self.client.post(
            "/processes/upscale/execution",
            json={"inputs": {"scene": scene, "weights": "small", "scale": 2, **inputs}},
            headers={} if wait else {"Prefer": "respond-async"},
        )

    def ended(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """The status of a job that has ended."""
        for _ in range(int(seconds / 0.05)):
            status: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
            if status["status"] not in ("accepted", "running"):
                return status
            time.sleep(0.05)
        raise AssertionError(f"the job has not ended: {status}")

    def failure(self, scene: Any, **inputs: Any) -> str:
        """Why a job failed."""
        answer = self.execute(scene, **inputs)
        assert answer.status_code == 400, answer.text
        detail: str = answer.json()["detail"]
        return detail


@pytest.fixture(scope="session")
def small(tiny_weights: Callable[..., Path]) -> dict[str, str]:
    return {"small": str(tiny_weights())}


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, small: dict[str, str]
) -> Iterator[Callable[..., Server]]:
    """Start a server with settings of its own."""
    started: list[Server] = []

    def server(**settings: Any) -> Server:
        settings.setdefault("folder", str(tmp_path_factory.mktemp("service") / "state"))
        started.append(Server(weights=small, **settings))
        return started[-1]

    yield server
    for one in started:
        one.close()


@pytest.fixture
def expected(small: dict[str, str], tmp_path: Path) -> Callable[[bytes], np.ndarray]:
    """What upscale_file makes of a picture, (bands, h, w)."""

    def pixels(content: bytes) -> np.ndarray:
        out = io.BytesIO()
        upscale_file(content, out, small["small"], workers=1)
        return bands_of(out.getvalue())

    return pixels


def bands_of(content: bytes) -> np.ndarray:
    import rasterio

    with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
        return np.asarray(dataset.read())


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
