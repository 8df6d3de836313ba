"""The flooder: one process on one core that does one thing to one listener, so often a second.

It opens connections from a source of its own, sends what the flood says, reads what it is told and
forgets it. Bounded: `Flood.most` acts in one burst, and the burst ends when its parent says so or
after `MAX_SECONDS`; then every connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from bench.flood import frames

MAX_SECONDS = 60.0
CONNECTIONS = 4
"""Connections that a flood of calls goes over, in turn."""
DRIP_SECONDS = 1.0
HANDSHAKE_SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """A listener, and what a stranger may say to it.

    Attributes:
        name: `control`, `gateway` or `openai`.
        method: path of an RPC that waits for its request.
        tokens: well-formed bearer tokens that were never issued.
    """

    name: str
    port: int
    method: str = ""
    watched: str = ""
    tokens: tuple[str, ...] = ()
    host: str = "127.0.0.1"

    @property
    def is_http(self) -> bool:
        """Whether it speaks HTTP/1.1 and not gRPC."""
        return self.name == "openai"


@dataclass
class Tally:
    """What came of a burst."""

    acts: int = 0
    answers: int = 0
    closed: int = 0
    failed: int = 0
    seconds: float = 0.0


class Peer(asyncio.Protocol):
    """One connection; answers settings and pings, forgets the rest."""

    transport: asyncio.Transport

    def __init__(self, tally: Tally, *, http2: bool) -> None:
        self._tally = tally
        self._http2 = http2
        self._frames = frames.Reader()
        self._next = 1
        self.streams = 0
        self.open = False
        self.drip: Callable[[], bytes] | None = None
        """What it sends each second, of a slow one."""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - a transport of any kind
        """Say the preface of HTTP/2."""
        self.transport = transport
        self.open = True
        if self._http2:
            transport.write(frames.hello())

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer, or this process, ended it."""
        del exc
        self.open = False
        self._tally.closed += 1

    def data_received(self, data: bytes) -> None:
        """Count answers."""
        if not self._http2:
            self._tally.answers += data.count(b"HTTP/1.1 ")
            return
        for kind, flags, _, payload in self._frames.feed(data):
            if kind == frames.SETTINGS and not flags & frames.ACK:
                self.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif kind == frames.RST_STREAM or (
                kind == frames.HEADERS and flags & frames.END_STREAM
            ):
                self._tally.answers += 1
            elif kind == frames.GOAWAY:
                self.transport.close()

    def send(self, data: bytes) -> None:
        """Send, unless it is over."""
        if self.open:
            self.transport.write(data)

    def stream(self) -> int:
        """The next stream's number."""
        self._next += 2
        self.streams += 1
        return self._next - 2


@dataclass
class Attacker:
    """What an act works with.

    Attributes:
        number: of this act, counted from 0 in each burst.
    """

    target: Target
    source: str
    tally: Tally = field(default_factory=Tally)
    number: int = 0
    held: list[Peer] = field(default_factory=list)
    _pool: dict[int, Peer] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tls: ssl.SSLContext | None = None

    async def connect(self, *, tls: bool = True) -> Peer:
        """A new connection, kept until the burst ends."""
        loop = asyncio.get_running_loop()
        http2 = tls and not self.target.is_http
        made: Peer
        _, made = await loop.create_connection(
            lambda: Peer(self.tally, http2=http2),
            self.target.host,
            self.target.port,
            ssl=self._context() if tls else None,
            server_hostname="localhost" if tls else None,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            local_addr=(self.source, 0),
        )
        self.held.append(made)
        return made

    async def peer(self, streams: int = 1 << 20) -> Peer:
        """One of a few connections that calls share; a new one when one is over or full."""
        place = self.number % CONNECTIONS
        async with self._opening:
            found = self._pool.get(place)
            if found is None or not found.open or found.streams >= streams:
                found = self._pool[place] = await self.connect()
        return found

    def token(self) -> str:
        """A token that nobody issued."""
        return self.target.tokens[self.number % len(self.target.tokens)]

    def half_hello(self) -> bytes:
        """The first half of a TLS handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        whole = outgoing.read()
        return whole[: len(whole) // 2]

    def end(self) -> None:
        """Close everything."""
        for peer in self.held:
            if peer.open:
                peer.transport.abort()
        self.held.clear()
        self._pool.clear()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            # A stranger does not care who answers.
            self._tls = ssl.create_default_context()
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
            self._tls.set_alpn_protocols(["http/1.1" if self.target.is_http else "h2"])
        return self._tls


Act = Callable[[Attacker], Awaitable[None]]


def serve(target: Target, act: Act, rate: float, most: int, parent: Connection) -> None:
    """Wait for orders of the parent: `("start", source)`, `("stop",)` (answered by a tally), end.

    Runs in a process of its own.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    while True:
        order = parent.recv()
        if order[0] != "start":
            return
        attacker = Attacker(target, order[1])
        uvloop.run(_quietly(burst(attacker, act, rate, most, parent.poll)))
        parent.recv()
        parent.send(asdict(attacker.tally))


async def _quietly(work: Coroutine[None, None, None]) -> None:
    """Without a word about connections that the flooded end has closed in the middle."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    await work


async def burst(
    attacker: Attacker, act: Act, rate: float, most: int, stopped: Callable[[], bool]
) -> None:
    """Act at the rate until it is stopped; acts that hang do not hold up the next ones."""
    started = time.monotonic()
    running: set[asyncio.Task[None]] = set()
    dripped = started
    tally = attacker.tally
    while not stopped() and time.monotonic() - started < MAX_SECONDS:
        due = min(most, int((time.monotonic() - started) * rate))
        # What was late is made up for, but never more than a tenth of a second at once.
        for _ in range(min(due - tally.acts, max(1, int(rate / 10)))):
            attacker.number = tally.acts
            tally.acts += 1
            task = asyncio.create_task(_guarded(attacker, act))
            running.add(task)
            task.add_done_callback(running.discard)
        if time.monotonic() - dripped >= DRIP_SECONDS:
            dripped = time.monotonic()
            for peer in attacker.held:
                if peer.drip is not None:
                    peer.send(peer.drip())
        await asyncio.sleep(0.005)
    tally.seconds = time.monotonic() - started
    for task in list(running):
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    attacker.end()
    # Let the transports close.
    await asyncio.sleep(0.05)


async def _guarded(attacker: Attacker, act: Act) -> None:
    try:
        await act(attacker)
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        attacker.tally.failed += 1
