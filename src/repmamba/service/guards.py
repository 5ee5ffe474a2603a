"""Guards around the application: who may ask, how slowly, and what browsers do with answers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from repmamba.service.answers import answer
from repmamba.service.settings import Settings

logger = logging.getLogger(__name__)

# answered without a token: they tell nothing about jobs
OPEN_PATHS = ("/health", "/ready", "/")
OPEN_PREFIX = "/static/"
TILE = re.compile(r"/jobs/[^/]+/tiles/[^/]+/\d+/\d+/\d+\.png")
READS = ("GET", "HEAD")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept, Authorization",
}


class Guards:
    """Refuses forged hosts, foreign origins and missing tokens; adds headers; logs each request."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = refused(scope["method"], scope["path"], Headers(scope=scope), self._settings)
        try:
            await (refusal or self._app)(scope, receive, guarded_send)
        finally:
            # a page asks for hundreds of tiles
            quiet = status == 200 and TILE.fullmatch(scope["path"]) is not None
            level = logging.DEBUG if quiet else logging.INFO
            facts = {"method": scope["method"], "path": scope["path"], "status": status}
            client = scope["client"][0] if scope.get("client") else None
            seconds = round(time.monotonic() - begun, 4)
            logger.log(level, "request", extra={**facts, "client": client, "seconds": seconds})


def refused(method: str, path: str, headers: Headers, settings: Settings) -> JSONResponse | None:
    """The answer to a request that may not be made; None if it may."""
    if headers.get("host", "").lower() not in settings.hosts:
        return answer(421, "The header Host does not name this service (--public-url).")
    origin = headers.get("origin")
    if method not in READS and (
        (origin is not None and origin.lower() not in settings.urls)
        or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    ):
        return answer(403, "Pages of other origins may not change anything here.")
    if settings.token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(given.strip(), settings.token):
        return None
    return answer(
        401,
        "This service needs a token: send it as 'Authorization: Bearer TOKEN'.",
        headers={"WWW-Authenticate": 'Bearer realm="repmamba"'},
    )


def is_token(given: str, token: str) -> bool:
    """Whether a token is the right one, compared in constant time."""
    return hmac.compare_digest(given.encode(), token.encode())


class PatientProtocol(H11Protocol):
    """HTTP that drops a client that is slow to send the head of a request, or to read an answer.

    uvicorn limits how long an idle connection lives, but neither of these.
    """

    patience = 20.0  # seconds
    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first head."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Stop the timer when a head is complete, and start it for the next one."""
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """Start the timer for the client to read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop it: the client has read."""
        super().resume_writing()
        self._stop("_reading")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both timers, which would keep the connection in memory."""
        self._stop("_head", "_reading")
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("_head")
        elif self._head is None:
            self._head = self.loop.call_later(self.patience, self.transport.abort)

    def _stop(self, *timers: str) -> None:
        for name in timers:
            if (timer := getattr(self, name)) is not None:
                timer.cancel()
                setattr(self, name, None)
