"""FLOE written a second time, from the public specification, to check the product's against.

Uses the standard library's HMAC for HKDF-Expand and takes IV and nonces as arguments, so that it
can make known answers. Slow and for tests alone.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OVERHEAD = 4 + 12 + 16


def expand(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand-SHA-384 (RFC 5869, 2.3) for at most one block."""
    return hmac.new(key, info + b"\x01", hashlib.sha384).digest()[:size]


class Reference:
    """One stream."""

    def __init__(self, key: bytes, aad: bytes, segment_size: int, iv: bytes) -> None:
        self.segment_size = segment_size
        self.parameters = struct.pack(">BBII", 0, 0, segment_size, len(iv))
        self.iv = iv
        self.aad = aad
        self.tag = self.derive(key, b"HEADER_TAG:", 32)
        self.message_key = self.derive(key, b"MESSAGE_KEY:", 48)

    def derive(self, key: bytes, purpose: bytes, size: int) -> bytes:
        return expand(key, self.parameters + self.iv + purpose + self.aad, size)

    def cipher(self, position: int) -> AESGCM:
        masked = position & ~((1 << 20) - 1)
        return AESGCM(self.derive(self.message_key, b"DEK:" + struct.pack(">Q", masked), 32))

    def seal_segment(self, position: int, plain: bytes, nonce: bytes, *, last: bool) -> bytes:
        aad = struct.pack(">QB", position, 1 if last else 0)
        sealed = self.cipher(position).encrypt(nonce, plain, aad)
        marker = struct.pack(">I", len(plain) + OVERHEAD) if last else b"\xff\xff\xff\xff"
        return marker + nonce + sealed


def encrypt(
    key: bytes, aad: bytes, plain: bytes, *, segment_size: int, random: Callable[[int], bytes]
) -> bytes:
    stream = Reference(key, aad, segment_size, random(32))
    step = segment_size - OVERHEAD
    pieces = [plain[i : i + step] for i in range(0, len(plain), step)] or [b""]
    segments = [
        stream.seal_segment(position, piece, random(12), last=position == len(pieces) - 1)
        for position, piece in enumerate(pieces)
    ]
    return stream.parameters + stream.iv + stream.tag + b"".join(segments)


def decrypt(key: bytes, aad: bytes, sealed: bytes) -> bytes:
    _, _, segment_size, iv_size = struct.unpack(">BBII", sealed[:10])
    stream = Reference(key, aad, segment_size, sealed[10 : 10 + iv_size])
    body = sealed[42 + 32 :]
    if sealed[42 : 42 + 32] != stream.tag:
        raise ValueError("header tag")
    segments = [body[i : i + segment_size] for i in range(0, len(body), segment_size)]
    plain = b""
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        if segment[:4] != (struct.pack(">I", len(segment)) if last else b"\xff\xff\xff\xff"):
            raise ValueError("marker")
        aad_of_segment = struct.pack(">QB", position, 1 if last else 0)
        plain += stream.cipher(position).decrypt(segment[4:16], segment[16:], aad_of_segment)
    return plain
