"""serve: run the service until it is told to stop."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping

from repmamba.errors import MissingExtra, UsageError
from repmamba.service.settings import Settings


def serve(settings: Settings, explain: Mapping[str, str]) -> None:
    """Serve until SIGINT or SIGTERM; running jobs continue at the next start.

    explain: what each input is, by its name. Raises UsageError, MissingExtra.
    """
    if sys.platform == "win32":
        raise UsageError("The service needs a system that forks and limits processes, not Windows.")
    try:
        import uvicorn

        from repmamba.service.app import Service
        from repmamba.service.guards import PatientProtocol
        from repmamba.service.logs import log_as_json
    except ImportError as missing:
        raise MissingExtra(
            "The service needs an extra: pip install 'repmamba[serve]'."
        ) from missing
    listener = _listen(settings)
    log_as_json()
    PatientProtocol.patience = settings.limits.patience
    service = Service(settings, explain)
    config = uvicorn.Config(
        service.app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.limits.connections,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise UsageError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}."
        ) from error
