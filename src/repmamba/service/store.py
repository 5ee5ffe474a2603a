"""Store: the folder of a service, with its database, uploads, and a folder for each job.

File names are ids made here, never names that a client gives.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from repmamba import durable
from repmamba.errors import NoSpace, TargetError, UsageError
from repmamba.scene.result.lock import TargetLock
from repmamba.service.queue import Queue

INPUT, BEFORE, AFTER = "input", "before.tif", "after.tif"  # in a job's folder
PICTURES = {"before": BEFORE, "after": AFTER}  # what the map shows
_ID = re.compile(r"[0-9a-f]{32}")


class Store:
    """The files of a service. One server uses a folder at a time.

    reserved: bytes that stay free on its disk. Raises UsageError if another server uses the folder,
    TargetError if it cannot be written.
    """

    def __init__(self, folder: Path, *, reserved: int):
        self.uploads, self.jobs, self._reserved = folder / "uploads", folder / "jobs", reserved
        with durable.write_errors(folder):
            for part in (self.uploads, self.jobs):
                part.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        self._lock = TargetLock(folder / "service")
        try:
            self._lock.acquire()
        except TargetError as held:
            raise UsageError(
                f"Another server uses {folder}: stop it, or name another folder (--folder)."
            ) from held
        self.queue = Queue(folder / "jobs.sqlite")

    def close(self) -> None:
        """Close the database and let another server use the folder."""
        self.queue.close()
        self._lock.release()

    def check_space(self, more: int = 0) -> None:
        """Raise NoSpace unless `more` bytes can be written without using the reserve."""
        if durable.free_bytes(self.jobs) < self._reserved + more:
            raise NoSpace("The disk of the service is full: try again later.")

    def new_upload(self) -> tuple[str, Path]:
        """An id, and the file to write before `keep_upload`."""
        upload_id = secrets.token_hex(16)
        return upload_id, self.uploads / f"{upload_id}.part"

    def keep_upload(self, upload_id: str) -> None:
        """Keep what was written, durably."""
        draft = self.uploads / f"{upload_id}.part"
        durable.sync_file(draft)
        durable.move_durable(draft, self.uploads / upload_id, replace=False)

    def upload(self, upload_id: str) -> Path | None:
        """The file of an upload; None if there is none of this id."""
        path = self.uploads / upload_id
        return path if _ID.fullmatch(upload_id) and path.is_file() else None

    def new_job(self, source: Path | bytes | None) -> str:
        """A new job's id, with a folder that holds its input. None: it is fetched by the job."""
        job_id = secrets.token_hex(16)
        folder = self.job(job_id)
        folder.mkdir()
        try:
            if isinstance(source, bytes):
                durable.write_synced(folder / INPUT, source)
            elif source is not None:
                os.link(source, folder / INPUT)  # the upload may serve several jobs
            durable.sync_folder(folder)
            durable.sync_folder(self.jobs)
        except BaseException:
            self.remove_job(job_id)
            raise
        return job_id

    def job(self, job_id: str) -> Path:
        """The folder of a job in the queue."""
        return self.jobs / job_id

    def remove_job(self, job_id: str) -> None:
        """Remove the files of a job."""
        durable.remove(self.job(job_id))

    def sweep(self, keep_seconds: float) -> int:
        """Remove jobs that finished, and uploads that came, longer ago; the number of jobs."""
        before = time.time() - keep_seconds
        expired = self.queue.forget(before)
        for job_id in expired:
            self.remove_job(job_id)
        for upload in self.uploads.iterdir():
            with suppress(FileNotFoundError):  # it has got its final name meanwhile
                if upload.stat().st_mtime < before:
                    durable.remove(upload)
        return len(expired)

    def tidy(self) -> None:
        """Remove what a killed server left: parts of uploads, and folders without a job."""
        known = self.queue.ids()
        for left in (*self.uploads.glob("*.part"), *self.jobs.iterdir()):
            if left.name not in known:
                durable.remove(left)
