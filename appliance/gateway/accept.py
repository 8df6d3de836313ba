"""Accepts connections of the HTTPS front: decides before TLS, which costs, and ends half hellos.

Rules kept here:
* who is over its share is closed with a reset before anything is computed for it;
* a handshake has its time; until it is complete it holds a place like any connection;
* when the process has no descriptors left, it waits and accepts later: connections that are open
  go on.

The attack: handshakes that are begun and never end, and so many of them that there is time for
nothing else. Made by `appliance.gateway.http`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import struct
from collections.abc import Callable

from appliance.core.errors import Exhausted
from appliance.gateway.connections import Connections, ConnectionSlot
from appliance.wire.admission import source_of

logger = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
GOODBYE_SECONDS = 2.0
"""Time for the end of TLS, also of a peer that reads nothing."""
ACCEPTS_AT_ONCE = 32
"""Connections taken before others have their turn again."""
PAUSE_SECONDS = 0.5
_RESET = struct.pack("ii", 1, 0)

Refused = Callable[[str, str], None]
"""Takes note of a source and of why a connection of it was closed."""


class Acceptor:
    """One listening socket.

    Args:
        listening: bound and listening.
        context: of TLS, asked for at each handshake.
        connections: who may have a place.
        protocol: makes what serves a connection; from when the connection is made, the place's
            `end` aborts it, and when it is lost, it leaves the place.
        refused: is told of each connection that came to nothing.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: Callable[[], ssl.SSLContext],
        connections: Connections,
        protocol: Callable[[ConnectionSlot], asyncio.Protocol],
        refused: Refused,
    ) -> None:
        self._listening = listening
        self._context = context
        self._connections = connections
        self._protocol = protocol
        self._refused = refused
        self._opening: dict[asyncio.Task[None], ConnectionSlot] = {}
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._listening.setblocking(False)
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Accept nothing more; handshakes under way end."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for place in [*self._opening.values()]:
            place.end()

    async def wait_closed(self) -> None:
        """Return when no handshake is under way."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Mostly that there are no descriptors left.
                logger.error("no connection can be accepted now: %s", error.strerror)  # noqa: TRY400 - one line
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(PAUSE_SECONDS, self.start)
                return
            self._enter(connection, source_of(str(address[0])))

    def _enter(self, connection: socket.socket, source: str) -> None:
        try:
            place, leaving = self._connections.enter(source)
        except Exhausted:
            self._refused(source, "CONNECTIONS")
            _reset(connection)
            return
        if leaving is not None:
            self._refused(leaving.source, "CONNECTIONS")
            leaving.end()
        task = self._loop.create_task(self._open(connection, place))
        place.end = functools.partial(_cancel, task)
        self._opening[task] = place
        task.add_done_callback(functools.partial(self._opened, connection, place))

    async def _open(self, connection: socket.socket, place: ConnectionSlot) -> None:
        """Complete the handshake; afterwards the protocol has the connection."""
        protocol = self._protocol(place)
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context(),
                ssl_handshake_timeout=HELLO_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except (OSError, TimeoutError):
            self._connections.leave(place)
            self._refused(place.source, "HANDSHAKE")
            connection.close()

    def _opened(
        self, connection: socket.socket, place: ConnectionSlot, task: asyncio.Task[None]
    ) -> None:
        """The handshake is over; when somebody else got the place, maybe before it began."""
        del self._opening[task]
        if task.cancelled():
            self._connections.leave(place)
            connection.close()
        elif (bug := task.exception()) is not None:
            logger.error("a connection could not be opened", exc_info=bug)
            self._refused(place.source, "HANDSHAKE")
            self._connections.leave(place)
            connection.close()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _reset(connection: socket.socket) -> None:
    """Close at once, without a state that is kept for it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
