"""Where a raster is read from, and by what it is told from another one that takes its place.

GDAL has one kind of name for files, for members of archives and for addresses, and rasterio does
not hand on what GDAL knows of their size and time. So here the name is taken apart: a file or an
archive of this machine is known by its content, an address by what its server says,
and for all others nobody can say.
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

# what may stand before the name of a local file
_INTO_A_FILE = re.compile(r"/?vsi(?:zip|gzip|tar|7z|rar|subfile)/")
_AT_AN_ADDRESS = re.compile(r"(?:/vsi(?:curl|curl_streaming)/)?(https?://.*)")
_OFFSET = re.compile(r"\d+(?:_\d+)?,")  # of /vsisubfile/
# stands before one of several rasters in a file: NETCDF:"a.nc":heat
_OF_SEVERAL = re.compile(r"[A-Za-z]\w*:")
_QUOTED = re.compile(r'"([^"]+)"')
ADDRESS_SECONDS = 20  # for which a server may be silent
ASKED_SIDE_BY_SIDE = 16


def names_read(dataset: Any) -> tuple[str, ...]:
    """All that GDAL reads for an open dataset, by its names. GDAL lists one level of virtual
    rasters; here are all.
    """
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
            except rasterio.errors.RasterioIOError as failure:  # reading it says so
                logger.debug("%s cannot be looked into: %s", name, failure)
        read[name] = None
    # such a text is a part of what it stands in
    return tuple(name for name in read if VIRTUAL not in name)


def _is_virtual(name: str) -> bool:
    if not os.path.isfile(name):
        return name.startswith("vrt://") or ".vrt" in name.lower() or VIRTUAL in name
    with Path(name).open("rb") as file:
        return VIRTUAL.encode() in file.read(1024)


def file_behind(name: str) -> Path | None:
    """The file of this machine that a name of GDAL's leads to: itself, or the one around it. None
    for elsewhere.
    """
    if os.path.isfile(name):
        return Path(name)
    if name.startswith("vrt://"):
        return file_behind(name.removeprefix("vrt://").partition("?")[0])
    if not _OF_SEVERAL.match(name):
        return _archive_around(name)
    if quoted := _QUOTED.search(name):
        return file_behind(quoted[1])
    parts = name.split(":")  # the path is one of them, or several where it has colons of its own
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
    while prefix := _INTO_A_FILE.match(rest):  # an archive may lie in another one
        rest = rest[prefix.end() :]
    inner = _OFFSET.sub("", rest.removeprefix("{").split("}")[0], count=1)
    return next((part for part in (Path(inner), *Path(inner).parents) if part.is_file()), None)


def source_identity(name: str, read_from: Sequence[str]) -> dict[str, Any]:
    """The identity of an input. name: as the user gave it.  read_from: all that GDAL reads for it,
    by GDAL's names.

    Holds "not_told" where another raster could take the place of this one, and nobody would know.
    """
    parts = list(dict.fromkeys(read_from or [name]))
    files = list(dict.fromkeys(path for path in map(file_behind, parts) if path is not None))
    elsewhere = [part for part in parts if file_behind(part) is None]
    said = _said_of(elsewhere)
    identity: dict[str, Any] = {"files": [identify_file(path) for path in files]}
    if not os.path.isfile(name):  # which member of an archive, or which raster of several in a file
        identity["name"] = name
    if addresses := {part: told for part, told in said.items() if told is not None}:
        identity["addresses"] = addresses
    if not_told := [part for part, told in said.items() if told is None]:
        identity["not_told"] = not_told
    return identity


def identify_file(path: Path) -> dict[str, Any]:
    """The identity of an input file: name, size, digest; of one over 64 MiB, a digest of its two
    ends and its time.
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


def _said_of(names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """What servers say of many files, asked side by side: a virtual raster may name hundreds."""
    with ThreadPoolExecutor(ASKED_SIDE_BY_SIDE) as pool:
        return dict(zip(names, pool.map(identify_address, names), strict=True))


def identify_address(name: str) -> dict[str, Any] | None:
    """What a server says of a file: ETag, time and size. None where it says neither of the first
    two, or no server.
    """
    address = _AT_AN_ADDRESS.fullmatch(name)
    if address is None:
        return None
    # Asked for its first byte, rather than for its head alone: signed addresses allow no other
    # question.
    request = Request(address[1], headers={"Range": "bytes=0-0"})
    try:
        with urlopen(request, timeout=ADDRESS_SECONDS) as answer:
            said = answer.headers
            size = said.get("Content-Range", "").rpartition("/")[2] or said.get("Content-Length")
            told = {"etag": said.get("ETag"), "modified": said.get("Last-Modified"), "bytes": size}
    except (OSError, ValueError) as failure:
        logger.debug("%s does not say what it is: %s", name, failure)
        return None
    return told if told["etag"] or told["modified"] else None


def refuse_to_continue_unknown(source: Mapping[str, Any], folder: Path) -> None:
    """Raise JobChanged where a stopped run left folder, and the input may be another one since
    then.
    """
    if source.get("not_told") and folder.is_dir():
        raise JobChanged(
            f"A stopped run left {folder}, and nobody can say whether {source['not_told'][0]} is "
            "still what it read: "
            "it is no file, and has no ETag or time. Start anew with restart=True, or copy it here "
            "first."
        )


def check_addresses(source: Mapping[str, Any]) -> None:
    """Raise SourceError if a server reports another ETag, time or size than source, an identity."""
    before = source.get("addresses", {})
    for address, now in _said_of(list(before)).items():
        if now is not None and now != before[address]:
            raise SourceError(
                f"{address} changed while it was read: run again when nobody writes to it."
            )
