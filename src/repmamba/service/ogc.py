"""The documents of OGC API - Processes - Part 1: Core (1.0) as plain JSON values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from repmamba import __version__
from repmamba.errors import UsageError
from repmamba.service.inputs import MEDIA_TYPES, OUTPUTS, Json, schemas
from repmamba.service.queue import RUNNING, SUCCESSFUL, Job

Link: TypeAlias = dict[str, str]

PROCESS = "upscale"
OPENAPI = "application/vnd.oai.openapi+json;version=3.0"
_SPEC = "http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf"
_RELATION = "http://www.opengis.net/def/rel/ogc/1.0"
_EXCEPTION = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0"
CONFORMANCE = (
    "http://www.opengis.net/spec/ogcapi-common-1/1.0/conf/core",
    *(f"{_SPEC}/{name}" for name in ("core", "ogc-process-description", "json")),
    *(f"{_SPEC}/{name}" for name in ("oas30", "job-list", "dismiss")),
)
NO_SUCH_PROCESS, NO_SUCH_JOB, NOT_READY = "no-such-process", "no-such-job", "result-not-ready"
_TITLES = {
    400: "Bad request",
    401: "No token",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    421: "Wrong host",
    500: "Failed",
    503: "Too busy",
    507: "Disk full",
}


def link(href: str, rel: str, title: str, media_type: str = "application/json") -> Link:
    """A link object."""
    rel = f"{_RELATION}/{rel.removeprefix('ogc:')}" if rel.startswith("ogc:") else rel
    return {"href": href, "rel": rel, "type": media_type, "title": title}


def exception(status: int, detail: str, kind: str | None = None) -> dict[str, Json]:
    """An error as a problem document (RFC 7807). kind: the standard's name for it, if any."""
    return {
        "type": "about:blank" if kind is None else f"{_EXCEPTION}/{kind}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
    }


def landing(url: str) -> dict[str, Json]:
    """The landing page."""
    return {
        "title": "repmamba",
        "description": "Super-resolution of satellite and aerial imagery.",
        "links": [
            link(f"{url}/", "self", "This document"),
            link(f"{url}/", "alternate", "A page for people", "text/html"),
            link(f"{url}/api", "service-desc", "OpenAPI", OPENAPI),
            link(f"{url}/conformance", "ogc:conformance", "Conformance"),
            link(f"{url}/conformance", "conformance", "Conformance"),
            link(f"{url}/processes", "ogc:processes", "Processes"),
            link(f"{url}/jobs", "ogc:job-list", "Jobs"),
        ],
    }


def process_summary(url: str) -> dict[str, Json]:
    """The process in the list of processes."""
    return {
        "id": PROCESS,
        "version": __version__,
        "title": "Upscale a raster",
        "description": "The same raster at 2, 3 or 4 times the resolution, in the same place.",
        "jobControlOptions": ["sync-execute", "async-execute", "dismiss"],
        "outputTransmission": ["value", "reference"],
        "links": [link(f"{url}/processes/{PROCESS}", "self", "Description of the process")],
    }


def process(url: str, weights: Mapping[str, str], explain: Mapping[str, str]) -> dict[str, Json]:
    """The description of the process. explain: what each input is, by its name."""
    content = [
        {"type": "string", "contentEncoding": "binary", "contentMediaType": media}
        for media in MEDIA_TYPES
    ]
    scene = {
        "title": "scene",
        "description": "The raster: the link of an upload, an allowed reference, or base64.",
        "schema": {"oneOf": content},
        "minOccurs": 1,
        "maxOccurs": 1,
    }
    others = {
        name: {
            "title": name,
            "description": explain.get(name, ""),
            "schema": schema,
            "minOccurs": 0,
            "maxOccurs": 1,
        }
        for name, schema in schemas(weights).items()
    }
    results = [
        {"type": "string", "contentEncoding": "binary", "contentMediaType": output.media_type}
        for output in OUTPUTS.values()
    ]
    execute = f"{url}/processes/{PROCESS}/execution"
    summary = process_summary(url)
    return {
        **summary,
        "inputs": {"scene": scene, **others},
        "outputs": {"result": {"title": "The result", "schema": {"oneOf": results}}},
        "links": [*summary["links"], link(execute, "ogc:execute", "Execute")],
    }


def status_info(url: str, job: Job, done: float) -> dict[str, Json]:
    """The status of a job. done: how much of it, 0 to 1, while it runs."""
    at = f"{url}/jobs/{job.id}"
    links = [link(at, "self", "This document")]
    if job.status == SUCCESSFUL:
        links.append(link(f"{at}/results", "ogc:results", "Results"))
    if job.is_open:
        links.append(link(f"{at}/events", "monitor", "Progress", "text/event-stream"))
    percent = 100 if job.status == SUCCESSFUL else int(100 * done) if job.status == RUNNING else 0
    times = {"created": job.created, "started": job.started, "finished": job.finished}
    return {
        "jobID": job.id,
        "processID": PROCESS,
        "type": "process",
        "status": job.status,
        "message": job.message,
        "progress": percent,
        **{name: _time(at) for name, at in times.items() if at is not None},
        "updated": _time(job.updated),
        "name": job.request["name"],
        **({} if job.result is None else {"facts": job.result["facts"]}),
        "links": links,
    }


def _time(seconds: float) -> str:
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def interval(text: str) -> tuple[float, float]:
    """The parameter datetime, an instant or a/b, as seconds since 1970: from, and before.

    Instants are taken as milliseconds, as _time writes them. Raises UsageError.
    """
    start, slash, end = text.partition("/")
    end = end if slash else start
    try:
        return (
            -math.inf if start in ("", "..") else _seconds(start),
            math.inf if end in ("", "..") else _seconds(end) + 0.001,
        )
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"datetime is {text!r:.100}; expected 2027-05-01T12:00:00Z, or two with a slash."
        ) from error


def _seconds(text: str) -> float:
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def openapi(url: str, paths: Sequence[tuple[str, Sequence[str], str]]) -> dict[str, Json]:
    """The interface in OpenAPI 3.0. paths: path, methods and what they do."""
    described: dict[str, Json] = {}
    for path, methods, summary in paths:
        names = re.findall(r"{(\w+)}", path)
        entry = described.setdefault(path, {})
        if names:
            entry["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        for method in methods:
            answers = {"default": {"description": summary}}
            entry[method.lower()] = {"summary": summary, "responses": answers}
    return {
        "openapi": "3.0.3",
        "info": {"title": "repmamba", "version": __version__},
        "servers": [{"url": url}],
        "paths": described,
    }
