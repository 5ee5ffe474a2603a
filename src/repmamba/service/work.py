"""The process of a job: it limits itself, gets the input, upscales it, and reports to the server.

Inputs are hostile until proven otherwise. So each job has its own process, which knows neither the
token nor the database. Messages to the server are lines of JSON: fractions done, then one answer.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from repmamba.durable import PIECE, free_bytes, readable
from repmamba.errors import NoSpace, RepmambaError, SourceError, TargetError, UsageError
from repmamba.scene.engine import upscale_file
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.raster import open_raster
from repmamba.service.display import write_display
from repmamba.service.inputs import OUTPUTS
from repmamba.service.logs import SEE_LOG, log_as_json
from repmamba.service.order import Order
from repmamba.service.references import admitted, fetch
from repmamba.service.settings import Limits
from repmamba.service.store import AFTER, INPUT

logger = logging.getLogger(__name__)

# how torch, the system and Python's threads say that memory is missing
NO_MEMORY = ("allocate memory", "Cannot allocate", "can't start new thread", "out of memory")
CHECK_EVERY = 5.0  # seconds between looks at the disk

# advice of the engine that only helps who calls it
_ADVICE = re.compile(
    r",? or leave untrusted=True out if you trust the file|Raise max_pixels=[^.]*\.|"
    r"(All|Finished) tiles are kept[^.]*\."
)


def run(order: Order, connection: Connection) -> None:
    """The main function of the process. It ends with the connection, so with the server too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    _limit_resources(order.limits)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    answer: dict[str, Any]
    try:
        answer = {"result": _upscale(order, lambda done: _say(connection, {"done": done}))}
    except Exception as error:
        full = isinstance(error, TargetError) and _is_full(order)
        answer = {"full": True} if full else {"failed": _why(error, order)}
    _say(connection, answer)


def _is_full(order: Order) -> bool:
    return free_bytes(order.folder) < max(order.limits.reserved_bytes, PIECE)


def _why(error: Exception, order: Order) -> str:
    """What to tell the client about an error; bugs are logged."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return _too_large(order.limits)
    if isinstance(error, RepmambaError):
        return _line(error, order)
    log_as_json()
    logger.exception("a job failed by a bug", extra={"job": order.folder.name})
    return SEE_LOG


def _limit_resources(limits: Limits) -> None:
    import resource

    # RLIMIT_DATA counts what is allocated. RLIMIT_AS would count libraries, stacks and reserved
    # addresses as well, gigabytes that are never used.
    for what, most in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _end_with(connection: Connection) -> None:
    """End the process when the other end is closed: by the server, or because it was killed."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _say(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _upscale(order: Order, tell: Callable[[float], None]) -> dict[str, Any]:
    """Do the job; what the server keeps about its result. Raises RepmambaError."""
    source, keywords = _source(order), dict(order.keywords)
    output = OUTPUTS[keywords["format"]]
    target = order.folder / f"result{output.suffix}"
    _check_size(source, order.limits)
    check = _disk_check(order)
    result = upscale_file(
        source,
        target,
        **keywords,
        untrusted=True,
        workers=order.workers,
        keep_finished=True,
        progress=_told(tell, check),
    )
    if not (order.folder / AFTER).exists():
        write_display(source, result, keywords, order.folder, check)
    facts = {name: value for name, value in result.as_json().items() if name != "path"}
    return {"file": target.name, "type": output.media_type, "scale": result.scale, "facts": facts}


def _source(order: Order) -> Path:
    if order.reference is None:
        return order.folder / INPUT
    found = admitted(order.reference, order.allowed)
    if isinstance(found, Path):
        return found
    target = order.folder / INPUT
    if not target.exists():
        part = order.folder / f"{INPUT}.part"
        limits = order.limits
        fetch(found, part, limit=limits.upload_bytes, patience=limits.patience)
        os.replace(part, target)
    return target


def _check_size(source: Path, limits: Limits) -> None:
    """Raise SourceError for too many pixels.

    max_pixels= of the engine would lift its limit of pixels per byte.
    """
    with open_raster(source, ReadOptions(untrusted=True)) as raster:
        width, height = raster.grid.width, raster.grid.height
    if width * height > limits.pixels:
        raise SourceError(
            f"{source} has {width} x {height} pixels; this service takes at most "
            f"{limits.pixels:,}: send a part of it."
        )


def _told(tell: Callable[[float], None], check: Callable[[], None]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        tell(round(done / total, 3))
        check()

    return progress


def _disk_check(order: Order) -> Callable[[], None]:
    """A function that looks at the disk now and then. It raises NoSpace, UsageError."""
    limits, checked = order.limits, -math.inf

    def check() -> None:
        nonlocal checked
        if time.monotonic() < checked + CHECK_EVERY:
            return
        checked = time.monotonic()
        if _is_full(order):
            raise NoSpace("The disk of the service is full.")
        if _bytes_in(order.folder) > limits.disk_bytes:
            raise UsageError(
                f"The job needs more than the {readable(limits.disk_bytes)} of disk space that "
                "this service gives to one: ask for a part of the scene (window)."
            )

    return check


def _bytes_in(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*"))


def _too_large(limits: Limits) -> str:
    return (
        f"The job needs more than the {readable(limits.memory_bytes)} of memory that this service "
        "gives to one: ask for fewer bands, or a part of the scene (window)."
    )


def _line(error: BaseException, order: Order) -> str:
    """The message for a client: one line of valid Unicode, without this machine's paths."""
    text = str(error).replace(str(order.folder / INPUT), order.name)
    allowed = (one.folder for one in order.allowed if one.folder is not None)
    for folder in (order.folder, *allowed):
        text = text.replace(f"{folder}{os.sep}", "").replace(f"{folder} ", f"{folder.name} ")
    text = _ADVICE.sub("", text).replace("untrusted=True", "this service")
    return " ".join(text.split()).encode(errors="replace").decode()
