"""Frames of HTTP/2 by hand: what a client library would never send.

RFC 9113 for the frames, RFC 7541 for the fields; fields are literals that are not indexed and not
compressed, which every peer has to take. Pure. Used by `bench.flood.floods`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = 8
LARGEST = 16_384
"""Bytes of payload that a frame may have unless its peer allows more."""

Field = tuple[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def hello() -> bytes:
    """What a connection begins with: the preface and empty settings."""
    return PREFACE + frame(SETTINGS, 0, 0)


def call(stream: int, path: str, *fields: Field, end: bool = False) -> bytes:
    """The head of a gRPC call, in as many frames as it takes."""
    always = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    block = fields_of((*always, *fields))
    parts = [block[at : at + LARGEST] for at in range(0, len(block), LARGEST)]
    flags = END_STREAM if end else 0
    found = []
    for number, part in enumerate(parts):
        last = END_HEADERS if number == len(parts) - 1 else 0
        kind = CONTINUATION if number else HEADERS
        found.append(frame(kind, last | (0 if number else flags), stream, part))
    return b"".join(found)


def message(stream: int, data: bytes, *, compressed: bool = False, end: bool = True) -> bytes:
    """A whole gRPC message in frames of data."""
    whole = bytes((compressed,)) + len(data).to_bytes(4, "big") + data
    parts = [whole[at : at + LARGEST] for at in range(0, len(whole), LARGEST)]
    return b"".join(
        frame(DATA, END_STREAM if end and number == len(parts) - 1 else 0, stream, part)
        for number, part in enumerate(parts)
    )


def reset(stream: int) -> bytes:
    """The end of a call that its caller has left."""
    return frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))


def fields_of(fields: Iterable[Field]) -> bytes:
    """Fields as literals (RFC 7541, 6.2.2)."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    data = text.encode()
    return encoded_number(len(data)) + data


def encoded_number(value: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if value < 127:
        return bytes((value,))
    found, rest = bytearray((127,)), value - 127
    while rest >= 128:
        found.append(rest % 128 + 128)
        rest //= 128
    found.append(rest)
    return bytes(found)


class Reader:
    """Cuts what a peer sends into frames."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that is whole now."""
        self._waiting += data
        while len(self._waiting) >= 9:
            size = int.from_bytes(self._waiting[:3], "big")
            if len(self._waiting) < 9 + size:
                return
            kind, flags = self._waiting[3], self._waiting[4]
            stream = int.from_bytes(self._waiting[5:9], "big") & 0x7FFF_FFFF
            payload = bytes(self._waiting[9 : 9 + size])
            del self._waiting[: 9 + size]
            yield kind, flags, stream, payload
