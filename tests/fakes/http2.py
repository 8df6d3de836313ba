"""HTTP/2 frames written by hand, for what no client library would send (RFC 9113).

async with Raw.connect(port) as raw:
    raw.request("/package.Service/Method", stream=1)     # headers alone: a call that is held
    raw.ping(); raw.reset(1)
    await raw.ended()                                    # until the server ends the connection
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
END_STREAM, END_HEADERS = 0x1, 0x4
ENHANCE_YOUR_CALM = 0xB
INITIAL_WINDOW = 0x4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, length = len(value) - 127, b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 | 128])
        rest //= 128
    return length + bytes([rest]) + value


def headers(path: str, more: Mapping[str, str]) -> bytes:
    """The header block of a call: literals without indexing (RFC 7541, 6.2.2)."""
    pairs = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "control.appliance",
        "content-type": "application/grpc",
        "te": "trailers",
        **more,
    }
    return b"".join(
        b"\x00" + _text(name.encode()) + _text(value.encode()) for name, value in pairs.items()
    )


class Raw:
    """One connection; everything is written at once and read in the background."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.frames: list[tuple[int, int, int, bytes]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port: int, *, window: int = 65_535) -> AsyncIterator[Raw]:
        """A connection over TLS whose server's certificate is not looked at.

        `window`: bytes of messages that it takes of each call (RFC 9113, 6.9.2).
        """
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        streams = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        raw = cls(*streams)
        raw.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
        try:
            yield raw
        finally:
            raw._writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)

    def request(self, path: str, stream: int, **more: str) -> None:
        """Open a stream with headers alone."""
        self.send(frame(HEADERS, END_HEADERS, stream, headers(path, more)))

    def message(self, stream: int, message: bytes, *, compressed: bool = False) -> None:
        """One whole gRPC message, and the end of what this side says."""
        head = struct.pack(">BI", compressed, len(message))
        self.send(frame(DATA, END_STREAM, stream, head + message))

    def reset(self, stream: int) -> None:
        """Take a stream back (CANCEL)."""
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 0x8)))

    def ping(self) -> None:
        """Ask for an answer."""
        self.send(frame(PING, 0, 0, bytes(8)))

    async def drain(self) -> None:
        """Wait until the socket takes more. Raises ConnectionError when it is gone."""
        await self._writer.drain()

    async def next(self) -> tuple[int, int, int, bytes] | None:
        """The server's next frame: kind, flags, stream, payload; None at the end."""
        try:
            head = await self._reader.readexactly(9)
            size = int.from_bytes(head[:3])
            payload = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return head[3], head[4], int.from_bytes(head[5:9]), payload

    async def end_of(self, stream: int) -> None:
        """Return when the server has ended a stream. Raises EOFError when it ends everything."""
        while (came := await self.next()) is not None:
            kind, flags, number, _ = came
            if number == stream and (kind == RST_STREAM or flags & END_STREAM):
                return
        raise EOFError

    async def ended(self) -> list[int]:
        """Error codes of the GOAWAY frames until the server closed the connection."""
        codes = []
        while (came := await self.next()) is not None:
            if came[0] == GOAWAY:
                codes.append(int.from_bytes(came[3][4:8]))
        return codes
