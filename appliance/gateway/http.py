"""The HTTPS server of the OpenAI-compatible front, in the event loop of the gateway.

Rules kept here: TLS 1.2 at least, with the certificate that the gRPC front shows; a taken port is
one sentence; a connection that says nothing is closed; connections are limited; a stop lets running
answers end within the grace.

Called by `appliance.gateway.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from appliance.wire.server import check_free, split_address

SETTING = "listen.openai"
KEEP_ALIVE_SECONDS = 75
LONGEST_HEAD = 16 << 10


class _Server(uvicorn.Server):
    """Leaves the signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpFront:
    """Serves one ASGI application over HTTPS.

    Args:
        address: `host:port`.
        certificate, key: PEM files.
        connections: most open ones.
        grace: seconds running calls have when it stops.

    Raises FailedPrecondition when the port is in use.
    """

    task: asyncio.Task[None]

    def __init__(  # noqa: PLR0913 - what a listener is made of
        self,
        application: ASGIApp,
        address: str,
        certificate: Path,
        key: Path,
        *,
        connections: int,
        grace: float,
    ) -> None:
        check_free(address, SETTING)
        host, port = split_address(address, SETTING)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        settings = uvicorn.Config(
            application,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(grace),
            h11_max_incomplete_event_size=LONGEST_HEAD,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        settings.load()
        if settings.ssl is not None:
            settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = _Server(settings)

    def start(self) -> None:
        """Serve from now on."""
        self.task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Take nothing new, let running calls end, close."""
        self._server.should_exit = True
        await asyncio.wait({self.task})
