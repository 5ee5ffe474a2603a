"""Answers to requests that fail: each kind of error as a problem document."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from repmamba.durable import FULL
from repmamba.errors import NoSpace, UsageError
from repmamba.service import ogc
from repmamba.service.logs import SEE_LOG
from repmamba.service.references import NotAllowed


def problem(status: int, detail: str, kind: str) -> HTTPException:
    """An error that the standard has a name for."""
    error = HTTPException(status, detail)
    error.kind = kind  # type: ignore[attr-defined]
    return error


def answer(
    status: int, detail: str, kind: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as a problem document."""
    return JSONResponse(
        ogc.exception(status, detail, kind),
        status,
        headers,
        media_type="application/problem+json",
    )


def _http_error(request: Request, error: Any) -> Response:
    kind = getattr(error, "kind", None)
    return answer(error.status_code, error.detail, kind, error.headers)


def _usage_error(request: Request, error: Exception) -> Response:
    return answer(403 if isinstance(error, NotAllowed) else 400, str(error))


def _disk_error(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError) and not isinstance(error, NoSpace) and error.errno not in FULL:
        raise error
    return answer(507, "The disk of the service is full: try again later.")


def _database_error(request: Request, error: Exception) -> Response:
    return answer(507, f"The service cannot store anything at the moment ({error}).")


def _gone(request: Request, error: Exception) -> Response:
    return answer(400, "The client has gone.")


def _bug(request: Request, error: Exception) -> Response:
    return answer(500, SEE_LOG)


HANDLERS: dict[Any, Any] = {
    HTTPException: _http_error,
    UsageError: _usage_error,
    OSError: _disk_error,
    sqlite3.OperationalError: _database_error,
    ClientDisconnect: _gone,
    Exception: _bug,
}
