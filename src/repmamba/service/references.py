"""Inputs by reference: which URLs and files an operator allows, and how they are fetched.

By default nothing is allowed. A URL is compared part by part with the allowed prefixes, redirects
are refused, and only the bytes are taken: GDAL never sees a URL.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit

from repmamba.durable import PIECE, readable, write_errors
from repmamba.errors import SourceError, UsageError

PORTS = {"https": 443, "http": 80}


class NotAllowed(UsageError):
    """A reference that no allowed prefix admits."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One allowed prefix: a folder of this machine, or scheme, host, port and path of URLs."""

    folder: Path | None = None
    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str = "/"

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """From https://host/path or /folder. Raises UsageError."""
        if "://" not in text:
            folder = Path(text)
            if not folder.is_dir():
                raise UsageError(f"{text} is neither a folder nor a URL to allow references below.")
            return cls(folder=folder.resolve())
        parts = split_url(text)
        if parts is None or parts.query:
            raise UsageError(f"{text} is not a prefix of URLs: expected https://host/path.")
        path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        return cls(None, parts.scheme, parts.hostname or "", _port(parts), path)

    def admits(self, parts: SplitResult) -> bool:
        """Whether it admits a URL."""
        return (
            self.folder is None
            and (parts.scheme, parts.hostname, _port(parts)) == (self.scheme, self.host, self.port)
            and parts.path.startswith(self.path)
        )


def admitted(href: str, allowed: Sequence[Allowed]) -> str | Path:
    """The URL to fetch or the file to open. Raises NotAllowed."""
    refused = NotAllowed(
        "The reference is not allowed: upload the file, or ask the operator of this service to "
        "allow its address."
    )
    if href.startswith("file:///"):
        # Links are resolved first, so that none leads out of the folder.
        path = Path(os.path.realpath(unquote(href.removeprefix("file://")).replace("\0", "")))
        if any(one.folder is not None and path.is_relative_to(one.folder) for one in allowed):
            return path
        raise refused
    parts = split_url(href)
    if parts is None or not any(one.admits(parts) for one in allowed):
        raise refused
    return href


def fetch(url: str, target: Path, *, limit: int, patience: float) -> None:
    """Download a URL that is allowed into a file of at most `limit` bytes.

    patience: seconds without a byte. Raises SourceError, and TargetError if it cannot be written.
    """
    with _network_errors():
        response = urllib.request.build_opener(_NoRedirects).open(url, timeout=patience)
    with response, write_errors(target), target.open("wb") as file:
        left = limit
        while piece := _piece(response):
            left -= len(piece)
            if left < 0:
                raise SourceError(f"The reference has more than {readable(limit)}.")
            file.write(piece)


def _piece(response: http.client.HTTPResponse) -> bytes:
    with _network_errors():
        piece = response.read(PIECE)
    if not piece and response.length:
        raise SourceError(f"The reference ended {response.length} bytes early.")
    return piece


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise SourceError(f"The reference was answered with status {error.code}.") from error
    except (http.client.HTTPException, OSError) as error:
        raise SourceError(f"The reference cannot be fetched: {error}.") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a host that is not allowed."""

    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def split_url(url: str) -> SplitResult | None:
    """The parts of a plain http(s) URL; None for one that two programs could read differently."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    # Some servers ignore what follows a semicolon, so "..;" leads up too.
    segments = [part.partition(";")[0] for part in unquote(unquote(parts.path)).split("/")]
    if parts.scheme not in PORTS or not parts.hostname or port == 0 or "@" in parts.netloc:
        return None
    return None if "." in segments or ".." in segments or "\\" in unquote(parts.path) else parts


def _port(parts: SplitResult) -> int:
    return parts.port or PORTS[parts.scheme]
