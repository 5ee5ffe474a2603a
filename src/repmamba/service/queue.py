"""Queue: the jobs of a service in SQLite, which survive the server.

A request is answered after its job is on the disk. A job is claimed in one transaction, and each
change of its status names the status that it had, so no job is done twice.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = Any

STATUSES = ("accepted", "running", "successful", "failed", "dismissed")
ACCEPTED, RUNNING, SUCCESSFUL, FAILED, DISMISSED = STATUSES

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    request TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    started REAL,
    finished REAL,
    message TEXT NOT NULL DEFAULT '',
    result TEXT,
    deaths INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Times are seconds since 1970."""

    id: str
    status: str
    request: Mapping[str, Json]  # name, inputs, reference, response, transmission
    created: float
    updated: float
    started: float | None
    finished: float | None
    message: str
    result: Mapping[str, Json] | None  # file, type, and what the engine says
    deaths: int  # how often its process ended without an answer

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.status in (ACCEPTED, RUNNING)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs to list. Times are seconds since 1970, durations seconds."""

    statuses: Collection[str] = STATUSES
    created: tuple[float, float] = (-math.inf, math.inf)  # from, and before
    duration: tuple[float, float] | None = None  # least and most, of jobs that run or have ended


COLUMNS = ", ".join(field.name for field in fields(Job))


class Queue:
    """The jobs in a database file. Threads may share it. Methods raise sqlite3.Error."""

    def __init__(self, file: Path):
        self._lock = threading.RLock()
        self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_TABLE)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def add(self, job_id: str, request: Mapping[str, Json]) -> Job:
        """Store a new job, durably."""
        now = time.time()
        with self._transaction() as database:
            database.execute(
                "INSERT INTO jobs (id, status, request, created, updated) VALUES (?, ?, ?, ?, ?)",
                (job_id, ACCEPTED, json.dumps(request), now, now),
            )
        return Job(job_id, ACCEPTED, request, now, now, None, None, "", None, 0)

    def claim(self) -> Job | None:
        """Mark the oldest waiting job as running and return it; None if there is none."""
        now = time.time()
        with self._transaction() as database:
            row = database.execute(
                f"UPDATE jobs SET status = ?, started = ?, updated = ? WHERE number = "
                f"(SELECT min(number) FROM jobs WHERE status = ?) RETURNING {COLUMNS}",
                (RUNNING, now, now, ACCEPTED),
            ).fetchone()
        return None if row is None else _job(row)

    def finish(
        self, job_id: str, status: str, message: str, result: Mapping[str, Json] | None = None
    ) -> bool:
        """End a running job; False if it is not running."""
        now = time.time()
        text = None if result is None else json.dumps(result)
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE jobs SET status = ?, message = ?, result = ?, finished = ?, updated = ? "
                "WHERE id = ? AND status = ?",
                (status, message, text, now, now, job_id, RUNNING),
            )
            return changed.rowcount == 1

    def put_back(self, job_id: str, *, died: bool) -> None:
        """Let a running job wait again. died: its process ended without an answer."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET status = ?, updated = ?, deaths = deaths + ? "
                "WHERE id = ? AND status = ?",
                (ACCEPTED, time.time(), int(died), job_id, RUNNING),
            )

    def put_all_back(self) -> int:
        """Put back all jobs that a killed server left running; their number."""
        with self._transaction() as database:
            return database.execute(
                "UPDATE jobs SET status = ?, updated = ? WHERE status = ?",
                (ACCEPTED, time.time(), RUNNING),
            ).rowcount

    def dismiss(self, job_id: str) -> Job | None:
        """Dismiss a job in any state; the job as it was, None if there is none."""
        now = time.time()
        with self._transaction() as database:
            before = self.get(job_id)
            database.execute(
                "UPDATE jobs SET status = ?, message = '', result = NULL, finished = ?, "
                "updated = ? WHERE id = ?",
                (DISMISSED, now, now, job_id),
            )
        return before

    def get(self, job_id: str) -> Job | None:
        """A job by its id."""
        with self._lock:
            row = self._database.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,)
            ).fetchone()
        return None if row is None else _job(row)

    def newest(self, limit: int, offset: int = 0, wanted: Wanted | None = None) -> list[Job]:
        """Jobs, the newest first."""
        wanted = wanted or Wanted()
        statuses = ", ".join("?" * len(wanted.statuses))
        conditions = f"created >= ? AND created < ? AND status IN ({statuses})"
        values = [*wanted.created, *wanted.statuses]
        if wanted.duration is not None:
            conditions += " AND status <> ? AND coalesce(finished, ?) - started BETWEEN ? AND ?"
            values += [ACCEPTED, time.time(), *wanted.duration]
        with self._lock:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE {conditions} "
                "ORDER BY number DESC LIMIT ? OFFSET ?",
                (*values, limit, offset),
            ).fetchall()
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        with self._lock:
            rows = self._database.execute(
                "SELECT status, count(*) FROM jobs GROUP BY status"
            ).fetchall()
        return dict.fromkeys(STATUSES, 0) | dict(rows)

    def ids(self) -> set[str]:
        """The ids of all jobs."""
        with self._lock:
            return {row[0] for row in self._database.execute("SELECT id FROM jobs")}

    def forget(self, before: float) -> list[str]:
        """Delete the jobs that finished before a time; their ids."""
        with self._transaction() as database:
            rows = database.execute(
                "DELETE FROM jobs WHERE finished < ? RETURNING id", (before,)
            ).fetchall()
        return [row[0] for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._database.execute("ROLLBACK")
                raise


def _job(row: tuple[Any, ...]) -> Job:
    values = dict(zip((field.name for field in fields(Job)), row, strict=True))
    values["request"] = json.loads(values["request"])
    values["result"] = None if values["result"] is None else json.loads(values["result"])
    return Job(**values)
