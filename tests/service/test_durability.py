"""Jobs through kills of the server and of their processes, full disks, limits and expiry."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx
import pytest

from repmamba import durable
from repmamba.errors import UsageError
from repmamba.service import dispatch, work
from repmamba.service.dispatch import Dispatcher, carry_out
from repmamba.service.order import Order
from repmamba.service.queue import Queue
from repmamba.service.references import Allowed
from repmamba.service.settings import Limits, Settings
from repmamba.service.store import INPUT, Store

from .conftest import Server, bands_of, picture

SHORT, LONG = (20, 8, 2), pytest.param(500, 50, 10, marks=pytest.mark.long)


def again(request: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """Ask until the server is there and answers with a status."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            answer = request()
            if answer.status_code == status:
                return answer
            assert answer.status_code in (404, 503), answer.text
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("no answer")


def kill_a_worker(server: Server, draw: random.Random) -> None:
    """Kill the process of a job, if one runs: a child of the process that they are forked from."""
    forked = [pid for pid, line in server.processes().items() if "forkserver" in line]
    if len(forked) > 1:
        os.kill(draw.choice(sorted(forked)[1:]), signal.SIGKILL)


@pytest.mark.parametrize(("jobs", "clients", "kills"), [SHORT, LONG])
def test_no_job_is_lost_or_done_twice_when_server_and_workers_are_killed(
    start, expected, jobs, clients, kills
):
    server: Server = start(jobs=2)
    draw = random.Random(0)
    inputs = [picture(seed) for seed in range(8)]
    accepted: dict[str, int] = {}

    def submit(session: httpx.Client, number: int) -> None:
        seed = number % len(inputs)
        upload = again(lambda: session.post("/uploads", content=inputs[seed]), 201)
        scene = {"href": upload.json()["href"], "title": f"{number}.png"}
        asked = {"json": {"inputs": {"scene": scene, "weights": "small"}}}
        asked["headers"] = {"Prefer": "respond-async"}
        job = again(lambda: session.post("/processes/upscale/execution", **asked), 201)
        accepted[job.json()["jobID"]] = seed

    def client(first: int) -> None:
        with httpx.Client(base_url=server.url, timeout=120) as session:
            for number in range(first, jobs, clients):
                submit(session, number)

    with ThreadPoolExecutor(clients) as pool:
        submitted = [pool.submit(client, first) for first in range(clients)]
        for kill in range(kills):
            while len(server.events("job finished")) < (kill + 1) * jobs // (kills + 2):
                time.sleep(0.05)
            if kill % 2 == 0:
                kill_a_worker(server, draw)
            else:
                server.kill()
                server.start()
        for one in submitted:
            one.result()
    assert len(accepted) == jobs
    digests = {
        seed: hashlib.sha256(expected(content).tobytes()).digest()
        for seed, content in enumerate(inputs)
    }
    for job_id, seed in accepted.items():
        assert server.ended(job_id, 600)["status"] == "successful"
        result = bands_of(server.client.get(f"/jobs/{job_id}/results").content)
        assert hashlib.sha256(result.tobytes()).digest() == digests[seed]
    ends = Counter(line["job"] for line in server.events("job finished"))
    assert set(accepted) <= set(
        ends
    )  # a killed server may have stored one more that nobody heard of
    assert set(ends.values()) == {1}
    folder = Path(server.settings["folder"])
    assert not list(folder.rglob("*.part"))
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        assert memory_of(server.process.pid) < 200 << 20


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_killed_server_takes_the_processes_of_its_jobs_with_it(start):
    server: Server = start()
    server.execute(picture(edge=300), wait=False, ensemble=True)
    while sum("forkserver" in line for line in server.processes().values()) < 2:
        time.sleep(0.05)
    left = server.processes()
    server.kill()
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if not has_ended(pid)}
        time.sleep(0.05)
    assert not left


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(start, small_disk):
    folder = small_disk(8000)
    limits = {"reserved_bytes": 200_000}
    with closing(start(folder=str(folder / "state"), limits=limits)) as server:
        done = server.execute(picture(1), wait=False).json()["jobID"]
        server.ended(done)
        slow = server.execute(picture(edge=150), wait=False, ensemble=True).json()["jobID"]
        waiting = server.execute(picture(2), wait=False).json()["jobID"]
        with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert server.client.post("/uploads", content=picture(3)).status_code == 507
        assert server.client.get("/ready").status_code == 507
        assert server.client.get(f"/jobs/{done}/results").status_code == 200
        time.sleep(1)
        (folder / "filler").unlink()
        for job_id in (slow, waiting):
            status = server.ended(job_id)
            assert status["status"] == "successful"
        assert server.execute(picture(3)).status_code == 200


@pytest.fixture
def settings(tmp_path: Path, small: dict[str, str]) -> Callable[..., Settings]:
    def settings(**limits: Any) -> Settings:
        limits.setdefault("reserved_bytes", 0)
        return Settings(tmp_path / "state", small, workers=1, limits=Limits(**limits))

    return settings


class Run:
    """A dispatcher without a web server."""

    def __init__(self, settings: Settings):
        self.store = Store(settings.folder, reserved=0)
        self.ended = threading.Event()
        self.dispatcher = Dispatcher(self.store, settings, lambda job: None, self._finished)

    def _finished(self, status: str, seconds: float) -> None:
        self.ended.set()

    def add(self, content: bytes, **inputs: Any) -> str:
        job_id = self.store.new_job(content)
        inputs = {"weights": "small", **inputs}
        self.store.queue.add(job_id, {"name": "a.png", "inputs": inputs, "reference": None})
        self.dispatcher.submitted()
        return job_id

    def __enter__(self) -> "Run":
        self.dispatcher.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.dispatcher.stop()
        self.store.close()


def test_a_job_that_takes_too_long_fails_and_leaves_no_file(settings):
    with Run(settings(seconds=0.01)) as run:
        job_id = run.add(picture(edge=300), ensemble=True)
        assert run.ended.wait(60)
        job = run.store.queue.get(job_id)
        assert (job.status, "longer than the 0.01 s" in job.message) == ("failed", True)
        assert not run.store.job(job_id).exists()


def test_a_job_whose_process_keeps_dying_fails_at_last(settings):
    with Run(settings()) as run:
        job_id = run.add(picture(edge=400), ensemble=True)
        killed = set()
        while not run.ended.wait(0.02):
            running = run.dispatcher._running.get(job_id)
            if running is not None and running.process.pid not in killed:
                killed.add(running.process.pid)
                running.process.kill()
        job = run.store.queue.get(job_id)
        assert (job.status, len(killed)) == ("failed", dispatch.TRIES)
        assert "ended 3 times without an answer" in job.message


def test_a_bug_in_one_job_does_not_end_the_others(settings, monkeypatch):
    with Run(settings()) as run:
        with monkeypatch.context() as patch:
            patch.setattr(run.dispatcher, "_answer_of", lambda job: {}["missing"])
            job_id = run.add(picture())
            assert run.ended.wait(60)
        job = run.store.queue.get(job_id)
        assert (job.status, job.message.partition(";")[0]) == ("failed", "Something went wrong")
        assert run.dispatcher.is_ready
        run.ended.clear()
        job_id = run.add(picture())
        assert run.ended.wait(60)
        assert run.store.queue.get(job_id).status == "successful"


def test_ctrl_c_is_left_to_the_server_and_no_job_dumps_its_memory(settings):
    with Run(settings()) as run:
        job_id = run.add(picture(edge=500))
        while run.dispatcher.progress(job_id) == 0:
            time.sleep(0.01)
        pid = run.dispatcher._running[job_id].process.pid
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text())
        os.kill(pid, signal.SIGINT)
        assert run.ended.wait(120)
        job = run.store.queue.get(job_id)
        assert (job.status, job.deaths) == ("successful", 0)


def test_a_job_that_sends_more_than_a_message_is_not_listened_to(settings):
    run = Run(settings())
    ours, theirs = Pipe()

    def send() -> None:
        with suppress(BrokenPipeError):
            theirs.send_bytes(bytes(2 << 20))

    sender = threading.Thread(target=send)
    sender.start()
    with ours:
        job = run.store.queue.add("0" * 32, {})
        running = dispatch._Running(None)
        assert run.dispatcher._listen(job, running, ours) == (None, None)
    sender.join()
    theirs.close()
    run.store.close()


def test_a_job_that_was_stopped_goes_on_from_its_finished_tiles(settings, monkeypatch):
    asked = settings()
    with Run(asked) as run:
        job_id = run.add(picture(edge=700))
        while run.dispatcher.progress(job_id) == 0:
            time.sleep(0.01)
    with Run(asked) as run:
        assert run.ended.wait(120)
        job = run.store.queue.get(job_id)
        assert (job.status, job.deaths) == ("successful", 0)
        assert job.result["facts"]["tiles_resumed"] > 0


def answer_of(
    folder: Path,
    small: dict[str, str],
    content: bytes,
    edge: int = 16,
    reference: str | None = None,
    allowed: tuple[Allowed, ...] = (),
    **limits: Any,
) -> Any:
    """What the process of a job says at last. edge: of the window to upscale."""
    folder.mkdir()
    (folder / INPUT).write_bytes(content)
    order = Order(
        folder=folder,
        keywords={"format": "GTiff", "weights": small["small"], "window": (0, 0, edge, edge)},
        reference=reference,
        name="a.png",
        allowed=allowed,
        limits=Limits(**{"reserved_bytes": 0, **limits}),
        workers=1,
    )
    ours, theirs = dispatch.PROCESSES.Pipe()
    process = dispatch.PROCESSES.Process(target=carry_out, args=(order, theirs))
    process.start()
    theirs.close()
    message: Any = {"done": 0}
    with ours:
        while "done" in message:
            message = json.loads(ours.recv_bytes())
    process.join()
    return message


@pytest.mark.parametrize(
    ("limits", "edge", "said"),
    [
        # the input and a small result together, then one large file
        ({"disk_bytes": 400_000}, 16, "needs more than the 400.0 kB of disk space"),
        ({"disk_bytes": 500_000}, 256, "File too large"),
        ({"pixels": 1000}, 16, "this service takes at most 1,000"),
    ],
    ids=["disk", "file", "pixels"],
)
def test_a_job_stays_within_its_limits(tmp_path, small, limits, edge, said):
    content = picture(edge=400, kind="TIFF")
    failed = answer_of(tmp_path / "job", small, content, edge, **limits)["failed"]
    assert said in failed
    assert str(tmp_path) not in failed


def test_a_reference_that_is_no_longer_allowed_is_not_opened(tmp_path, small):
    (tmp_path / "a.png").write_bytes(picture())
    reference = f"file://{tmp_path}/a.png"
    answer = answer_of(tmp_path / "before", small, b"", reference=reference)
    assert answer["failed"].startswith("The reference is not allowed")
    allowed = (Allowed.parse(str(tmp_path)),)
    assert "result" in answer_of(tmp_path / "now", small, b"", reference=reference, allowed=allowed)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{job}/input has 4 bands", "a.png has 4 bands"),
        ("{job}/result.tif is\nfull", "result.tif is full"),
        ("{job} is full", "job is full"),
        ("{data}/in/b.tif is damaged", "in/b.tif is damaged"),
        ("{data} is a folder", "data is a folder"),
        ("a.tif is large. Raise max_pixels=5 for it. Wait.", "a.tif is large. Wait."),
        ("Send less, or leave untrusted=True out if you trust the file.", "Send less."),
        ("in no format that untrusted=True reads", "in no format that this service reads"),
        ("The disk is full. All tiles are kept in x.", "The disk is full."),
        ("the band \ud800", "the band ?"),
    ],
)
def test_what_a_client_is_told_names_no_path_and_no_option_of_python(tmp_path, said, told):
    job, data = tmp_path / "job", tmp_path / "data"
    data.mkdir()
    order = Order(job, {}, None, "a.png", (Allowed.parse(str(data)),), Limits(), 1)
    assert work._line(UsageError(said.format(job=job, data=data)), order) == told


def test_a_job_waits_while_the_disk_is_full(settings, monkeypatch):
    monkeypatch.setattr(dispatch, "RETRY_AFTER", 0.05)
    with Run(settings()) as run:
        monkeypatch.setattr(run.store, "_reserved", 1 << 60)
        time.sleep(0.2)
        job_id = run.add(picture())
        assert not run.ended.wait(1)
        assert run.store.queue.get(job_id).status == "accepted"
        monkeypatch.setattr(run.store, "_reserved", 0)
        assert run.ended.wait(60)
        assert run.store.queue.get(job_id).status == "successful"


def test_a_job_that_finds_the_disk_full_is_tried_again(tmp_path, small):
    answer = answer_of(tmp_path / "job", small, picture(), reserved_bytes=1 << 60)
    assert answer == {"full": True}


def test_a_job_that_needs_too_much_memory_fails_and_says_so(settings):
    with Run(settings(memory_bytes=230 << 20)) as run:
        job_id = run.add(picture(edge=300))
        assert run.ended.wait(60)
        job = run.store.queue.get(job_id)
        assert (job.status, "241.2 MB of memory" in job.message) == ("failed", True)


def test_a_bug_in_a_job_is_answered_without_its_details(tmp_path):
    answer = answer_of(tmp_path / "job", {"small": 5}, picture())
    assert answer == {"failed": "Something went wrong; the log of the service says what."}


def test_a_job_within_its_limits_succeeds(tmp_path, small):
    answer = answer_of(tmp_path / "job", small, picture(), disk_bytes=100_000)
    assert answer["result"]["file"] == "result.tif"


def test_a_folder_serves_one_server_at_a_time(tmp_path):
    store = Store(tmp_path, reserved=0)
    with pytest.raises(UsageError, match="Another server uses"):
        Store(tmp_path, reserved=0)
    store.close()
    Store(tmp_path, reserved=0).close()


def test_what_is_older_than_it_is_kept_is_removed(tmp_path):
    store = Store(tmp_path, reserved=0)
    old, open_job = store.new_job(b"x"), store.new_job(b"x")
    for job_id in (old, open_job):
        store.queue.add(job_id, {})
    assert store.queue.claim().id == old
    store.queue.finish(old, "successful", "", {})
    upload_id, draft = store.new_upload()
    draft.write_bytes(b"x")
    store.keep_upload(upload_id)
    assert store.sweep(60) == 0
    (store.uploads / "gone").symlink_to("nowhere")  # as if it had been renamed meanwhile
    assert store.sweep(-60) == 1
    assert store.queue.get(old) is None
    assert not store.job(old).exists()
    assert store.upload(upload_id) is None
    assert store.queue.get(open_job) is not None
    assert store.job(open_job).exists()
    store.close()


def test_a_job_that_cannot_be_stored_leaves_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path, reserved=0)
    with pytest.raises(FileNotFoundError):
        store.new_job(store.uploads / "expired")

    def fail(path: Path, *parts: bytes) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_synced", fail)
    with pytest.raises(OSError, match="No space"):
        store.new_job(b"x")
    assert list(store.jobs.iterdir()) == []
    store.close()


def test_what_a_killed_server_left_is_tidied(tmp_path):
    store = Store(tmp_path, reserved=0)
    kept, orphan = store.new_job(b"x"), store.new_job(b"x")
    store.queue.add(kept, {})
    _, draft = store.new_upload()
    draft.write_bytes(b"half")
    store.tidy()
    assert store.job(kept).exists()
    assert not store.job(orphan).exists()
    assert not draft.exists()
    store.close()


def test_a_job_is_claimed_once_and_ends_once(tmp_path):
    queue = Queue(tmp_path / "jobs.sqlite")
    for number in range(40):
        queue.add(f"{number}", {})
    with ThreadPoolExecutor(8) as pool:
        claimed = [job.id for job in pool.map(lambda _: queue.claim(), range(60)) if job]
    assert sorted(claimed, key=int) == [f"{number}" for number in range(40)]
    assert queue.claim() is None
    assert queue.finish("3", "successful", "", {})
    assert not queue.finish("3", "failed", "", None)
    queue.dismiss("4")
    assert not queue.finish("4", "successful", "", {})
    queue.put_back("4", died=True)
    assert queue.get("4").status == "dismissed"
    assert queue.put_all_back() == 38
    queue.close()
