"""Where a raster is read from, and how a different raster in its place is detected.

GDAL uses one kind of name for files, archive members and URLs, and rasterio does not expose their
size and time. So the name is taken apart here: local files and archives are identified by content,
URLs by what their server reports. Nothing identifies the rest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import rasterio

from repmamba.errors import JobChanged, SourceError
from repmamba.gdal import opened
from repmamba.scene.source.admission import VIRTUAL

logger = logging.getLogger(__name__)

# prefixes of a local file's name
_INTO_A_FILE = re.compile(r"/?vsi(?:zip|gzip|tar|7z|rar|subfile)/")
_AT_AN_ADDRESS = re.compile(r"(?:/vsi(?:curl|curl_streaming)/)?(https?://.*)")
_OFFSET = re.compile(r"\d+(?:_\d+)?,")  # of /vsisubfile/
# prefix of one of several rasters in a file: NETCDF:"a.nc":heat
_OF_SEVERAL = re.compile(r"[A-Za-z]\w*:")
_QUOTED = re.compile(r'"([^"]+)"')
ADDRESS_SECONDS = 20  # timeout
ASKED_SIDE_BY_SIDE = 16


def names_read(dataset: Any) -> tuple[str, ...]:
    """All GDAL names that an open dataset is read from, through nested virtual rasters."""
    if dataset.driver != "VRT":
        return tuple(dataset.files)
    read: dict[str, None] = {}
    waiting = [dataset.name, *dataset.files]
    while waiting:
        name = waiting.pop()
        if name not in read and _is_virtual(name):
            try:
                with opened(name) as virtual:
                    waiting += virtual.files
            except rasterio.errors.RasterioIOError as failure:  # reading it will raise
                logger.debug("%s cannot be opened: %s", name, failure)
        read[name] = None
    # A virtual raster given as text has no file of its own.
    return tuple(name for name in read if VIRTUAL not in name)


def _is_virtual(name: str) -> bool:
    if not os.path.isfile(name):
        return name.startswith("vrt://") or ".vrt" in name.lower() or VIRTUAL in name
    with Path(name).open("rb") as file:
        return VIRTUAL.encode() in file.read(1024)


def file_behind(name: str) -> Path | None:
    """The local file or archive that a GDAL name refers to; None if it is elsewhere."""
    if os.path.isfile(name):
        return Path(name)
    if name.startswith("vrt://"):
        return file_behind(name.removeprefix("vrt://").partition("?")[0])
    if not _OF_SEVERAL.match(name):
        return _archive_around(name)
    if quoted := _QUOTED.search(name):
        return file_behind(quoted[1])
    parts = name.split(":")  # the path is one part, or several if it contains colons
    ends = range(2, len(parts) + 1)
    runs = sorted(
        (":".join(parts[first:end]) for end in ends for first in range(1, end)),
        key=len,
        reverse=True,
    )
    found = (Path(run) if os.path.isfile(run) else _archive_around(run) for run in runs)
    return next((file for file in found if file is not None), None)


def _archive_around(name: str) -> Path | None:
    if not _INTO_A_FILE.match(name) or not name.startswith("/"):
        return None
    rest = name
    while prefix := _INTO_A_FILE.match(rest):  # archives may be nested
        rest = rest[prefix.end() :]
    inner = _OFFSET.sub("", rest.removeprefix("{").split("}")[0], count=1)
    return next((part for part in (Path(inner), *Path(inner).parents) if part.is_file()), None)


def source_identity(name: str, read_from: Sequence[str]) -> dict[str, Any]:
    """The identity of an input.

    name: as the user gave it.  read_from: the GDAL names of everything that is read for it.
    "unidentified" lists what could be replaced without being noticed.
    """
    parts = list(dict.fromkeys(read_from or [name]))
    files = list(dict.fromkeys(path for path in map(file_behind, parts) if path is not None))
    elsewhere = [part for part in parts if file_behind(part) is None]
    reports = _reports_of(elsewhere)
    identity: dict[str, Any] = {"files": [identify_file(path) for path in files]}
    if not os.path.isfile(name):  # the member of an archive, or one of several rasters in a file
        identity["name"] = name
    if addresses := {part: report for part, report in reports.items() if report}:
        identity["addresses"] = addresses
    if unidentified := [part for part, report in reports.items() if report is None]:
        identity["unidentified"] = unidentified
    return identity


def identify_file(path: Path) -> dict[str, Any]:
    """The identity of a local file: name, size and digest.

    Above 64 MiB, a digest of its two ends and its modification time.
    """
    end = 1 << 20
    status = path.stat()
    state = hashlib.sha256()
    with path.open("rb") as file:
        if status.st_size <= 64 * end:
            while piece := file.read(end):
                state.update(piece)
            return {"name": path.name, "bytes": status.st_size, "digest": state.hexdigest()[:32]}
        state.update(file.read(end))
        file.seek(-end, os.SEEK_END)
        state.update(file.read(end))
    return {
        "name": path.name,
        "bytes": status.st_size,
        "ends": state.hexdigest()[:32],
        "mtime_ns": status.st_mtime_ns,
    }


def _reports_of(names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """What servers report for many files, requested in parallel."""
    with ThreadPoolExecutor(ASKED_SIDE_BY_SIDE) as pool:
        return dict(zip(names, pool.map(identify_address, names), strict=True))


def identify_address(name: str) -> dict[str, Any] | None:
    """What a server reports for a file: ETag, time, size. None without the first two."""
    address = _AT_AN_ADDRESS.fullmatch(name)
    if address is None:
        return None
    # A GET of the first byte rather than a HEAD: signed URLs only allow GET.
    request = Request(address[1], headers={"Range": "bytes=0-0"})
    try:
        with urlopen(request, timeout=ADDRESS_SECONDS) as answer:
            headers = answer.headers
            size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get(
                "Content-Length"
            )
            report = {
                "etag": headers.get("ETag"),
                "modified": headers.get("Last-Modified"),
                "bytes": size,
            }
    except (OSError, ValueError) as failure:
        logger.debug("%s cannot be identified: %s", name, failure)
        return None
    return report if report["etag"] or report["modified"] else None


def refuse_to_continue_unknown(source: Mapping[str, Any], folder: Path) -> None:
    """Raise JobChanged if a stopped run left folder and the input is unidentified."""
    if source.get("unidentified") and folder.is_dir():
        raise JobChanged(
            f"A stopped run left {folder}, but {source['unidentified'][0]} may have changed since: "
            "it is not a local file and has no ETag or modification time. Start again with "
            "restart=True, or copy it here first."
        )


def check_addresses(source: Mapping[str, Any]) -> None:
    """Raise SourceError if a server now reports something else than the identity source has."""
    before = source.get("addresses", {})
    for address, now in _reports_of(list(before)).items():
        if now is not None and now != before[address]:
            raise SourceError(
                f"{address} changed while it was read: run again when it is no longer written to."
            )
