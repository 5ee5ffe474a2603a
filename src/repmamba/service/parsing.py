"""What the parts of a request mean: its headers, numbers, names and base64."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

from starlette.datastructures import QueryParams

from repmamba.errors import UsageError
from repmamba.service import ogc
from repmamba.service.queue import STATUSES, Wanted

LONGEST_NAME = 100


def prefers_html(accept: str) -> bool:
    """Whether a client wants a page rather than JSON: browsers name HTML, others do not."""
    return "text/html" in accept and "application/json" not in accept.partition("text/html")[0]


def preference(headers: list[str]) -> tuple[bool, float | None]:
    """Whether Prefer asks for an answer before the job ends, and how long the client waits."""
    words = {word.strip().lower() for header in headers for word in re.split("[,;]", header)}
    waits = [int(word[5:]) for word in words if re.fullmatch(r"wait=\d{1,5}", word)]
    return "respond-async" in words and not waits, float(min(waits)) if waits else None


def whole(text: str, least: int = 0, most: int = 1 << 62) -> int:
    """A whole number of a request. Raises UsageError."""
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
        raise UsageError(f"{text!r:.50} is not a whole number from {least} to {most}.")
    return int(text)


def wanted_jobs(query: QueryParams) -> Wanted:
    """The jobs that the parameters of the list choose. Raises UsageError."""
    statuses = query.getlist("status") or list(STATUSES)
    if unknown := set(statuses) - set(STATUSES):
        raise UsageError(f"The status is {unknown.pop()!r:.50}; expected {', '.join(STATUSES)}.")
    for name, ours in (("processID", ogc.PROCESS), ("type", "process")):
        if name in query and ours not in query.getlist(name):
            statuses = []
    created = ogc.interval(query.get("datetime", "../.."))
    if not {"minDuration", "maxDuration"} & set(query):
        return Wanted(statuses, created)
    least = whole(query.get("minDuration", "0"))
    most = whole(query["maxDuration"]) if "maxDuration" in query else math.inf
    return Wanted(statuses, created, (least, most))


def label(name: Any) -> str:
    """A client's name for a file as one line to show. It never becomes the name of a file here."""
    text = " ".join(name.split()) if isinstance(name, str) else ""
    return (
        "".join(filter(str.isprintable, text)).replace("/", "_").lstrip(".")[:LONGEST_NAME]
        or "scene"
    )


def decoded(text: str) -> bytes:
    """The bytes of base64. Raises UsageError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("The scene is neither a link (href) nor valid base64 (value).") from error
