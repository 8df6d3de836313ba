"""The HTTPS server of the OpenAI-compatible front, in the event loop of the gateway.

Rules kept here: TLS 1.2 at least, with the certificate that the gRPC front shows; a taken port is
one sentence; a connection that says or reads nothing is ended; connections are limited; a stop
lets running answers end within the grace.

Called by `appliance.gateway.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

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
    """Ends a connection whose next head does not come in time, or whose peer reads nothing.

    The server's own time-out ends with the first byte after an answer, and does not begin before
    the first request; and it would wait for a reader for ever.

    Args:
        send_seconds: time a peer may read nothing.
        known: what the server's own protocol takes.
    """

    def __init__(self, *, send_seconds: float, **known: Any) -> None:
        super().__init__(**known)
        self._send_seconds = send_seconds
        self._head: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrowing
        """A handshake is complete."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._have_head()
        self._is_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body came."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._have_head()
        elif self._head is None:
            self._expect_head()

    def pause_writing(self) -> None:
        """More waits for the peer than should."""
        super().pause_writing()
        # Not `close`, which would first send what waits.
        self._stuck = self.loop.call_later(self._send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads."""
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

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
        send_seconds: time a caller may read nothing.
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
        send_seconds: float,
        grace: float,
    ) -> None:
        check_free(address, SETTING)
        host, port = split_address(address, SETTING)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        settings = uvicorn.Config(
            application,
            http=cast("Any", functools.partial(_Protocol, send_seconds=send_seconds)),
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
        # What it says at the level of information is said by the gateway itself.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self.task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Take nothing new, let running calls end, close."""
        self._server.should_exit = True
        await asyncio.wait({self.task})
