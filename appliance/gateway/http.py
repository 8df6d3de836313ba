"""The HTTPS server of the OpenAI-compatible front, in the event loop of the gateway.

Rules kept here: TLS with what `front` shows at the time of a handshake; a taken port is one
sentence; a connection that says or reads nothing is ended; connections are shared out by
source, and strangers make way (`connections`); what is no HTTP, or has a head that is too long, is
answered in the API's own dialect and counted, never in the server's words; what a stranger sends
makes no line in the log; a stop lets running answers end within the grace.

The attacks: connections that are held, bytes that come one by one, heads and bodies without end.
Called by `appliance.gateway.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.core.addresses import check_free, place_of, split_address
from appliance.gateway import openai_answer as answers
from appliance.gateway.accept import Acceptor, Refused
from appliance.gateway.connections import Connections, ConnectionSlot
from appliance.wire.admission import Rates

SETTING = "listen.openai"
KEEP_ALIVE_SECONDS = 75
HEAD_SECONDS = 10.0
"""Time for the head of a request to come, whole."""
MAX_HEAD = 16 << 10
MAX_REST = 4 << 20
"""Bytes of a body taken after its answer, so that its sender gets to read the answer."""
BACKLOG = 1024


@dataclass(frozen=True)
class ConnectionLimits:
    """How connections are shared out.

    Attributes:
        connections: most open ones, of all sources and of one.
        per_second, burst: new ones of one source.
        send_seconds: time a caller may read nothing.
    """

    connections: int
    connections_per_source: int
    per_second: float
    burst: int
    send_seconds: float


class ConnectionInfo:
    """What the application knows of the connection that a request came by.

    In the state of its scope under the name `link`.
    """

    def __init__(self, connections: Connections, place: ConnectionSlot) -> None:
        self._connections = connections
        self._place = place

    @property
    def source(self) -> str:
        """The source that the connection counts for."""
        return self._place.source

    @property
    def is_full(self) -> bool:
        """Whether this caller is only let in to hear that all connections are taken."""
        return self._place.is_full

    def mark_authenticated(self) -> None:
        """Its caller showed a valid token: the connection makes way for nobody any more."""
        self._connections.mark_authenticated(self._place)

    def begin(self, end: Callable[[], None]) -> None:
        """It is made, and this ends it."""
        self._place.end = end

    def leave(self) -> None:
        """It is over."""
        self._connections.leave(self._place)


class _Server(uvicorn.Server):
    """Leaves the signals to the gateway and the connections to the acceptor."""

    def __init__(self, config: uvicorn.Config, acceptor: Callable[[_Server], Acceptor]) -> None:
        super().__init__(config)
        self._acceptor = acceptor

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets  # the acceptor has it
        await self.lifespan.startup()
        acceptor = self._acceptor(self)
        acceptor.start()
        self.servers: list[Any] = [acceptor]
        self.started = True


class _Protocol(H11Protocol):
    """Ends a connection whose next head does not come in time, or whose peer reads nothing.

    The server's own time-out ends with the first byte after an answer, and does not begin before
    the first request; and it would wait for a reader for ever.

    Args:
        link: its place among all.
        send_seconds: time a peer may read nothing.
        refused: is told of what was no request.
        known: what the server's own protocol takes.
    """

    def __init__(
        self, *, link: ConnectionInfo, send_seconds: float, refused: Refused, **known: Any
    ) -> None:
        super().__init__(app_state={"link": link}, **known)
        self._link = link
        self._send_seconds = send_seconds
        self._refused = refused
        self._rest = MAX_REST
        self._head: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrowing
        """A handshake is complete."""
        self._link.begin(transport.abort)
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._link.leave()
        self._have_head()
        self._is_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body came."""
        if self._is_rest():
            self._rest -= len(data)
            if self._rest < 0:
                self.transport.abort()
                return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._have_head()
            self._rest = MAX_REST
        elif self._head is None:
            self._expect_head()

    def _is_rest(self) -> bool:
        """Whether what comes is the body of a request that was answered before it was whole."""
        return (
            self.cycle is not None
            and self.cycle.response_complete
            and self.conn.their_state is h11.SEND_BODY
        )

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, in the API's dialect, and close."""
        del msg  # the server's own words
        self._refused(self._link.source, "NO_HTTP")
        if self.conn.our_state is not h11.IDLE:
            # In the middle of another answer nothing can be said.
            self.transport.close()
            return
        # The caller of this handles the parser's error.
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        is_long = hint == 431
        body = answers.encoded(
            answers.object_of(
                f"the head of a request may have {MAX_HEAD} bytes: send fewer or shorter fields"
                if is_long
                else "this is no HTTP request: send one as the API describes it",
                "invalid_request_error",
            )
        )
        fields = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", uuid.uuid4().hex.encode()),
            (b"connection", b"close"),
        ]
        status = 431 if is_long else 400
        for event in (
            h11.Response(status_code=status, headers=fields),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

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
        self._refused(self._link.source, "NO_REQUEST")
        self.transport.close()


class HttpFront:
    """Serves one ASGI application over HTTPS.

    Args:
        address: `host:port`.
        context: TLS 1.2 at least; asked for at each handshake.
        admission: how connections are shared out.
        refused: is told of each connection that came to nothing.
        grace: seconds running calls have when it stops.

    Raises FailedPrecondition when the port is in use.
    """

    task: asyncio.Task[None]

    def __init__(  # noqa: PLR0913 - what a listener is made of
        self,
        application: ASGIApp,
        address: str,
        context: Callable[[], ssl.SSLContext],
        *,
        admission: ConnectionLimits,
        refused: Refused,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_free(address, SETTING)
        host, port = split_address(address, SETTING)
        family, place = place_of(host, port)
        # On every address of this machine means both kinds, as it does for gRPC's listener.
        both = place[0] == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            (place[0], port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
        self.port: int = self._socket.getsockname()[1]
        self._admission = admission
        self._refused = refused
        self.connections = Connections(
            admission.connections,
            admission.connections_per_source,
            Rates(admission.per_second, admission.burst, clock),
        )
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
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(grace),
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        settings.load()
        self._context = context
        self._server = _Server(settings, self._acceptor)

    def _acceptor(self, server: _Server) -> Acceptor:
        def protocol(place: ConnectionSlot) -> _Protocol:
            return _Protocol(
                config=server.config,
                server_state=server.server_state,
                link=ConnectionInfo(self.connections, place),
                send_seconds=self._admission.send_seconds,
                refused=self._refused,
            )

        return Acceptor(self._socket, self._context, self.connections, protocol, self._refused)

    def start(self) -> None:
        """Serve from now on."""
        # Below an error it says what strangers do, once for each time they do it.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self.task = asyncio.create_task(self._server.serve())

    async def stop(self) -> None:
        """Take nothing new, let running calls end, close."""
        self._server.should_exit = True
        await asyncio.wait({self.task})
