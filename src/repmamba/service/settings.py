"""The settings of a service, checked before it starts: where it listens, for whom, its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from repmamba.errors import UsageError
from repmamba.service.references import PORTS, Allowed, split_url

SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request or job may take. A limit that is exceeded ends it, not the service."""

    upload_bytes: int = 1 << 30
    pixels: int = 1 << 26  # of an input
    memory_bytes: int = 4 << 30  # of a job's process
    disk_bytes: int = 20 << 30  # of a job
    seconds: float = 3600.0  # of a job, from each start
    waiting: int = 1000  # jobs that have not started
    reserved_bytes: int = 1 << 30  # that stay free on the disk of the folder
    patience: float = 20.0  # seconds that a client may send or take nothing
    connections: int = 500


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a service listens, where it stores its files, and who may use it.

    Raises UsageError for combinations that would leave it open to anybody.
    """

    folder: Path
    weights: Mapping[str, str]  # name for clients -> what `load` takes
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str | None = None  # under which clients reach it; by default host and port
    token: str | None = None
    allowed: tuple[Allowed, ...] = ()
    jobs: int = 1  # at the same time
    workers: int | None = None  # tiles of a job at the same time
    keep_seconds: float = 7 * 86400.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.public_url is not None:
            parts = split_url(self.public_url)
            if parts is None or parts.path.strip("/") or parts.query or parts.fragment:
                raise UsageError(
                    f"The public URL is {self.public_url}: expected http(s)://host or "
                    "http(s)://host:port, without a path."
                )
        if not is_loopback(self.host) and self.token is None:
            raise UsageError(
                f"{self.host} can be reached from other machines, and no token is set: put one "
                "into REPMAMBA_TOKEN or a file (--token-file), or listen on 127.0.0.1."
            )
        if self.host in ("0.0.0.0", "::") and self.public_url is None:
            raise UsageError(
                f"{self.host} means all addresses, and clients need one: give the URL under which "
                "they reach the service (--public-url https://sr.example.org)."
            )
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise UsageError(
                f"The token has {len(self.token)} characters: use {SHORTEST_TOKEN} or more."
            )

    @property
    def url(self) -> str:
        """The URL under which clients reach the service, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return _origin(self.public_url or f"http://{host}:{self.port}")

    @property
    def urls(self) -> frozenset[str]:
        """All URLs under which requests are answered: on loopback, its three names too."""
        names = ("localhost", "127.0.0.1", "[::1]") if is_loopback(self.host) else ()
        return frozenset({self.url, *(_origin(f"http://{name}:{self.port}") for name in names)})

    @property
    def hosts(self) -> frozenset[str]:
        """The values of the header Host that are answered."""
        parts = [urlsplit(url) for url in self.urls]
        ports = {f"{one.netloc}:{PORTS[one.scheme]}" for one in parts if one.port is None}
        return frozenset(ports | {one.netloc for one in parts})


def _origin(url: str) -> str:
    """Scheme and host as browsers name them: in lower case, without the scheme's usual port."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{PORTS[parts.scheme]}')}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host that the service listens on."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None) -> str | None:
    """The token in a file, or else in REPMAMBA_TOKEN.

    The variable is removed, so that processes of jobs do not inherit it. Raises UsageError for a
    file that cannot be read.
    """
    given = os.environ.pop("REPMAMBA_TOKEN", "").strip()
    if file is None:
        return given or None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The token file {file} cannot be read: {error}.") from error
