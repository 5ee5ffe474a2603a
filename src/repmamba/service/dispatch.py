"""Dispatcher: threads that claim jobs, run each in a process of its own, and store its answer.

The processes are forked from one that has loaded torch but never used it, since loading takes
seconds. A process that ends without an answer was killed, so its job is tried again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from repmamba.durable import readable
from repmamba.errors import NoSpace, UsageError
from repmamba.service.inputs import keywords
from repmamba.service.logs import SEE_LOG
from repmamba.service.order import Order
from repmamba.service.queue import FAILED, SUCCESSFUL, Job
from repmamba.service.settings import Settings
from repmamba.service.store import Store

logger = logging.getLogger(__name__)

TRIES = 3  # of a job whose process ends without an answer
SWEEP_EVERY = 60.0  # seconds
RETRY_AFTER = 2.0  # seconds, when the disk cannot be written
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["repmamba.service.work"])


def carry_out(order: Order, connection: Connection) -> None:
    """The main function of a job's process, which loads torch."""
    from repmamba.service.work import run

    run(order, connection)


@dataclass(slots=True)
class _Running:
    process: ForkServerProcess
    done: float = 0.0  # 0 to 1


class Dispatcher:
    """Runs the jobs of a queue until `stop`.

    changed: called from its threads with the id of a job whose status or progress changed.
    finished: called with a job's status and seconds when it ends.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        changed: Callable[[str], None],
        finished: Callable[[str, float], None],
    ):
        self._store, self._settings = store, settings
        self._changed, self._finished = changed, finished
        self._running: dict[str, _Running] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._threads = [
            *(threading.Thread(target=self._work, name=f"jobs-{n}") for n in range(settings.jobs)),
            threading.Thread(target=self._sweep, name="sweeper"),
        ]

    def start(self) -> None:
        """Resume the jobs of a killed server, and take new ones."""
        self._store.tidy()
        forkserver.ensure_running()  # torch is loaded while the first job is awaited
        if left := self._store.queue.put_all_back():
            logger.info("jobs resumed", extra={"jobs": left})
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the processes; their jobs continue when the service starts again."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for running in list(self._running.values()):
            running.process.kill()
        for thread in self._threads:
            thread.join()

    def submitted(self) -> None:
        """Say that a job was added to the queue."""
        with self._wake:
            self._wake.notify_all()

    def dismiss(self, job_id: str) -> Job | None:
        """Dismiss a job in any state; the job as it was, None if there is none."""
        job = self._store.queue.dismiss(job_id)
        running = self._running.get(job_id)
        if running is not None:
            running.process.kill()  # its thread removes the files
        elif job is not None:
            self._store.remove_job(job_id)
        if job is not None:
            self._changed(job_id)
        return job

    def progress(self, job_id: str) -> float:
        """How much of a running job is done, 0 to 1."""
        running = self._running.get(job_id)
        return 0.0 if running is None else running.done

    @property
    def is_ready(self) -> bool:
        """Whether all its threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while not self._stopping:
            job = self._insist(self._claim)
            if job is not None:
                self._run(job)
                continue
            with self._wake:
                if not self._stopping:
                    self._wake.wait(SWEEP_EVERY)

    def _claim(self) -> Job | None:
        """The next job. Raises NoSpace, since none can be done on a full disk."""
        self._store.check_space()
        return self._store.queue.claim()

    def _run(self, job: Job) -> None:
        begun = time.monotonic()
        logger.info("job started", extra={"job": job.id})
        self._changed(job.id)
        try:
            answer, why = self._answer_of(job)
        except Exception:
            logger.exception("a job failed by a bug", extra={"job": job.id})
            answer, why = None, SEE_LOG
        finally:
            self._running.pop(job.id, None)
        queue = self._store.queue
        if answer is None and why is None and not self._is_dismissed(job.id):
            died = not self._stopping
            if not died or job.deaths + 1 < TRIES:
                logger.warning("job put back", extra={"job": job.id, "died": died})
                self._insist(lambda: queue.put_back(job.id, died=died))
                self._changed(job.id)
                return
            memory = readable(self._settings.limits.memory_bytes)
            why = (
                f"The process of the job ended {TRIES} times without an answer: it may need more "
                f"than the {memory} of memory that this service gives to one, or more disk space."
            )
        status = FAILED if answer is None else SUCCESSFUL
        stored = self._insist(lambda: queue.finish(job.id, status, why or "", answer))
        if stored is not None and (answer is None or not stored):
            self._store.remove_job(job.id)  # failed, or dismissed meanwhile
        if stored:
            seconds = time.monotonic() - begun
            computed = None if answer is None else not answer["facts"]["done_already"]
            facts = {"job": job.id, "status": status, "seconds": round(seconds, 3)}
            logger.info("job finished", extra={**facts, "computed": computed, "why": why})
            self._finished(status, seconds)
            self._changed(job.id)

    def _answer_of(self, job: Job) -> tuple[dict[str, Any] | None, str | None]:
        """The result of a job or why it failed; neither if its process was killed."""
        settings = self._settings
        try:
            order = Order(
                folder=self._store.job(job.id).absolute(),
                keywords=keywords(job.request["inputs"], settings.weights),
                reference=job.request["reference"],
                name=job.request["name"],
                allowed=settings.allowed,
                limits=settings.limits,
                workers=settings.workers,
            )
        except UsageError as changed:  # the service was restarted with other weights
            return None, str(changed)
        ours, theirs = PROCESSES.Pipe()
        with ours:
            process = PROCESSES.Process(target=carry_out, args=(order, theirs), name=job.id)
            process.start()
            theirs.close()
            running = self._running[job.id] = _Running(process)
            if self._stopping or self._is_dismissed(job.id):
                process.kill()
            try:
                return self._listen(job, running, ours)
            finally:
                process.kill()
                process.join()

    def _is_dismissed(self, job_id: str) -> bool:
        job = self._store.queue.get(job_id)
        return job is None or not job.is_open

    def _listen(
        self, job: Job, running: _Running, ours: Connection
    ) -> tuple[dict[str, Any] | None, str | None]:
        seconds = self._settings.limits.seconds
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not wait([ours], left):
                break
            try:
                message = json.loads(ours.recv_bytes(1 << 20))
            except (EOFError, OSError):
                return None, None
            if "done" not in message:
                return message.get("result"), message.get("failed")
            running.done = message["done"]
            self._changed(job.id)
        return None, f"The job took longer than the {seconds:g} s that this service gives to one."

    def _insist(self, write: Callable[[], Any]) -> Any:
        """Write to the disk, again and again while that fails; None when the service stops.

        A job whose end could not be stored runs again after the restart, and finds its result.
        """
        while True:
            try:
                return write()
            except (sqlite3.OperationalError, NoSpace) as error:
                logger.error("the disk cannot be written", extra={"why": str(error)})
                with self._wake:
                    if self._stopping:
                        return None
                    self._wake.wait(RETRY_AFTER)

    def _sweep(self) -> None:
        while not self._stopping:
            try:
                if expired := self._store.sweep(self._settings.keep_seconds):
                    logger.info("jobs expired", extra={"jobs": expired})
            except (sqlite3.OperationalError, OSError) as error:
                logger.error("expired jobs cannot be removed", extra={"why": str(error)})
            with self._wake:
                if not self._stopping:
                    self._wake.wait(SWEEP_EVERY)
