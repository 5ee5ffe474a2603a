"""What a service says about itself: log lines as JSON, and metrics for Prometheus."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_USUAL = frozenset(vars(logging.makeLogRecord({})))
SEE_LOG = "Something went wrong; the log of the service says what."  # what clients get for a bug
SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON, with what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. JSON escapes line breaks, so no value can start a line of its own."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Write the records of repmamba and uvicorn to stderr as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("repmamba", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


class Metrics(Collector):
    """Counts of jobs and the free disk space; both are looked up when Prometheus asks."""

    def __init__(self, counts: Callable[[], Mapping[str, int]], free: Callable[[], int]):
        self._counts, self._free = counts, free
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._ended = Counter(
            "repmamba_jobs_ended", "Jobs that ended.", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "repmamba_job_seconds",
            "Duration of jobs.",
            buckets=SECONDS,
            registry=self._registry,
        )

    def collect(self) -> Iterator[Metric]:
        """The values that are looked up."""
        jobs = GaugeMetricFamily("repmamba_jobs", "Jobs that are kept.", labels=["status"])
        for status, count in self._counts().items():
            jobs.add_metric([status], count)
        yield jobs
        yield GaugeMetricFamily("repmamba_disk_free_bytes", "Free disk space.", self._free())

    def ended(self, status: str, seconds: float) -> None:
        """Count a job that ended."""
        self._ended.labels(status).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
