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
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.wire.server import check_free, split_address

SETTING = "listen.openai"
KEEP_ALIVE_SECONDS = 75
HEAD_SECONDS = 10.0
"""Time for the head of a request to come, whole."""
LONGEST_HEAD = 16 << 10


class _Server(uvicorn.Server):
    """Leaves the signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Closes a connection whose next request's head does not come in time.

    The server's own time-out ends with the first byte after an answer, and does not begin before
    the first request.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrowing
        """A handshake is complete."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body came."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._have_head()
        elif self._head is None:
            self._expect_head()

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self._close)

    def _have_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _close(self) -> None:
        self.transport.close()


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
            http=_Protocol,
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
