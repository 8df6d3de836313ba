"""FLOE, a chunked authenticated encryption: headers, derived keys, segments; no input or output.

FLOE (Fast Lightweight Online Encryption, Snowflake Labs' public specification, Eurocrypt 2026) with
AES-256-GCM and HKDF-Expand-SHA-384. A stream is `parameters (10 bytes) | IV (32) | header tag (32)
| segment...`; a segment is `marker (4) | nonce (12) | ciphertext | GCM tag (16)`.

Rules kept here:
* every stream has its own keys, derived from a random 256-bit IV, so one key may seal any number of
  streams;
* the header tag commits to key, IV, parameters and associated data: another key fails before any
  segment is read;
* a segment authenticates its position and whether it is the last, so cutting, swapping, repeating
  or joining fails;
* the segment key changes every 2**20 segments, far below the limits of random GCM nonces;
* OpenSSL writes the plaintext before it has checked the tag. Whoever opens a segment gets zeros
  when the check fails.

Called by `appliance.crypto.sealed_writer`, `sealed_reader` and `sealed_values`, which say what a
stream belongs to.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from appliance.core.errors import InvalidInput, Tampered

KEY_SIZE = 32
SEGMENT_SIZE = 1 << 20
MIN_SEGMENT = 64
MAX_SEGMENT = 16 << 20
IV_SIZE = 32
TAG_SIZE = 32
MARKER_SIZE = 4
NONCE_SIZE = 12
GCM_TAG_SIZE = 16
OVERHEAD = MARKER_SIZE + NONCE_SIZE + GCM_TAG_SIZE
NOT_LAST = b"\xff" * MARKER_SIZE
ROTATION_BITS = 20
MAX_SEGMENTS = 1 << 40

_PARAMETERS = struct.Struct(">BBII")
_SEGMENT_AAD = struct.Struct(">QB")
HEADER_SIZE = _PARAMETERS.size + IV_SIZE + TAG_SIZE


def check_key(key: bytes) -> None:
    """Raise `InvalidInput` unless `key` has 32 bytes."""
    if len(key) != KEY_SIZE:
        raise InvalidInput(f"A sealing key has {KEY_SIZE} bytes; this one has {len(key)}.")


@dataclass(frozen=True)
class Parameters:
    """What a reader has to know about a stream; in the clear, authenticated by the header tag."""

    segment_size: int = SEGMENT_SIZE

    def __post_init__(self) -> None:
        """Refuse useless segment sizes, and those that let a forged header ask for much memory."""
        if not MIN_SEGMENT <= self.segment_size <= MAX_SEGMENT:
            raise InvalidInput(
                f"A segment has {MIN_SEGMENT} to {MAX_SEGMENT} bytes, not {self.segment_size}."
            )

    @property
    def plain_segment(self) -> int:
        """Bytes of plaintext in every segment but the last."""
        return self.segment_size - OVERHEAD

    def encode(self) -> bytes:
        """The ten bytes: AEAD 0 (AES-256-GCM), hash 0 (SHA-384), segment size, IV size."""
        return _PARAMETERS.pack(0, 0, self.segment_size, IV_SIZE)

    @classmethod
    def decode(cls, data: bytes) -> Parameters:
        """Read the ten bytes; `Tampered` for other algorithms and impossible sizes."""
        aead, digest, segment_size, iv_size = _PARAMETERS.unpack(data)
        if (aead, digest, iv_size) != (0, 0, IV_SIZE):
            raise Tampered("its header names an algorithm that is not FLOE with AES-256-GCM")
        try:
            return cls(segment_size)
        except InvalidInput as error:
            raise Tampered("its header names an impossible segment size") from error


@dataclass(frozen=True)
class Geometry:
    """Where the segments lie, from the length of a stream's body (all that follows the header)."""

    segment_size: int
    body_size: int

    def __post_init__(self) -> None:
        """A body has at least one segment, a segment at least its overhead; all else was cut."""
        if self.body_size < OVERHEAD or self.span(self.count - 1)[1] < OVERHEAD:
            raise Tampered("it was cut short")
        if self.count > MAX_SEGMENTS:
            raise Tampered("it is longer than the format allows")

    @property
    def count(self) -> int:
        """Number of segments."""
        return -(-self.body_size // self.segment_size)

    @property
    def plain_size(self) -> int:
        """Bytes of plaintext, if the last segment proves to be the last."""
        return self.body_size - OVERHEAD * self.count

    def span(self, index: int) -> tuple[int, int]:
        """Offset in the body and length of one sealed segment, in bytes."""
        offset = index * self.segment_size
        return offset, min(self.segment_size, self.body_size - offset)


class FloeStream:
    """The keys of one FLOE stream: seals and opens its segments, into buffers of the caller.

    Args:
        key: 32 bytes.
        aad: associated data; the reader must give the same.
        parameters: the segment size.
        iv: 32 bytes that no other stream of this key has.
    """

    def __init__(self, key: bytes, aad: bytes, parameters: Parameters, iv: bytes) -> None:
        check_key(key)
        self.parameters = parameters
        self._info = (parameters.encode() + iv, aad)
        self.tag = self._derive(key, b"HEADER_TAG:", TAG_SIZE)
        self.header = parameters.encode() + iv + self.tag
        self._message_key = self._derive(key, b"MESSAGE_KEY:", 48)
        self._rotation = -1
        self._cipher = AESGCM(bytes(KEY_SIZE))

    @classmethod
    def create(cls, key: bytes, aad: bytes, parameters: Parameters) -> FloeStream:
        """A new stream with a fresh random IV."""
        return cls(key, aad, parameters, os.urandom(IV_SIZE))

    @classmethod
    def open(cls, key: bytes, aad: bytes, header: bytes) -> FloeStream:
        """The stream that `header` (74 bytes) begins.

        Raises:
            Tampered: its tag does not commit to this key, these parameters and this aad.
        """
        if len(header) != HEADER_SIZE:
            raise Tampered("it was cut short")
        parameters = Parameters.decode(header[: _PARAMETERS.size])
        stream = cls(key, aad, parameters, header[_PARAMETERS.size : _PARAMETERS.size + IV_SIZE])
        if not hmac.compare_digest(stream.tag, header[-TAG_SIZE:]):
            raise Tampered(
                "the key does not open it: it belongs to another key, or its header was changed"
            )
        return stream

    def seal_into(
        self, position: int, plain: bytes | bytearray | memoryview, out: memoryview, *, last: bool
    ) -> None:
        """Seal one segment into `out`: `len(plain) + OVERHEAD` bytes, apart from `plain`."""
        if position >= MAX_SEGMENTS:
            raise InvalidInput("A sealed file cannot be longer than 2**40 segments; split it.")
        nonce = os.urandom(NONCE_SIZE)
        out[:MARKER_SIZE] = len(out).to_bytes(MARKER_SIZE, "big") if last else NOT_LAST
        out[MARKER_SIZE : MARKER_SIZE + NONCE_SIZE] = nonce
        cipher = self._cipher_at(position)
        cipher.encrypt_into(
            nonce, plain, _SEGMENT_AAD.pack(position, last), out[MARKER_SIZE + NONCE_SIZE :]
        )

    def open_into(self, position: int, segment: memoryview, out: memoryview, *, last: bool) -> None:
        """Open one segment into `out`, which has exactly `len(segment) - OVERHEAD` bytes.

        Raises:
            Tampered: the segment is not what was sealed at this position; `out` then holds zeros.
        """
        expected = len(segment).to_bytes(MARKER_SIZE, "big") if last else NOT_LAST
        nonce = segment[MARKER_SIZE : MARKER_SIZE + NONCE_SIZE]
        if segment[:MARKER_SIZE] != expected:
            raise Tampered(f"segment {position} is not where it was written, or others are missing")
        cipher = self._cipher_at(position)
        try:
            cipher.decrypt_into(
                nonce, segment[MARKER_SIZE + NONCE_SIZE :], _SEGMENT_AAD.pack(position, last), out
            )
        except InvalidTag as error:
            out[:] = bytes(len(out))
            raise Tampered(f"segment {position} was changed") from error

    def _cipher_at(self, position: int) -> AESGCM:
        """The cipher for a position; its key is derived again every 2**20 segments."""
        rotation = position >> ROTATION_BITS
        if rotation != self._rotation:
            purpose = b"DEK:" + struct.pack(">Q", rotation << ROTATION_BITS)
            self._cipher = AESGCM(self._derive(self._message_key, purpose, KEY_SIZE))
            self._rotation = rotation
        return self._cipher

    def _derive(self, key: bytes, purpose: bytes, size: int) -> bytes:
        before, after = self._info
        return HKDFExpand(hashes.SHA384(), size, before + purpose + after).derive(key)


def floe_encrypt(
    key: bytes, aad: bytes, plain: bytes, *, segment_size: int = SEGMENT_SIZE
) -> bytes:
    """Encrypt a value in memory; returns header and segments."""
    stream = FloeStream.create(key, aad, Parameters(segment_size))
    step = stream.parameters.plain_segment
    count = max(1, -(-len(plain) // step))
    sealed = bytearray(len(plain) + OVERHEAD * count)
    source, target = memoryview(plain), memoryview(sealed)
    for position in range(count):
        piece = source[position * step : (position + 1) * step]
        start = position * segment_size
        out = target[start : start + len(piece) + OVERHEAD]
        stream.seal_into(position, piece, out, last=position == count - 1)
    return stream.header + bytes(sealed)


def floe_decrypt(key: bytes, aad: bytes, sealed: bytes) -> bytes:
    """Decrypt what `floe_encrypt`, or any FLOE with these algorithms, made; else `Tampered`."""
    stream = FloeStream.open(key, aad, sealed[:HEADER_SIZE])
    body = memoryview(sealed)[HEADER_SIZE:]
    geometry = Geometry(stream.parameters.segment_size, len(body))
    plain = bytearray(geometry.plain_size)
    target = memoryview(plain)
    for position in range(geometry.count):
        offset, length = geometry.span(position)
        start = position * stream.parameters.plain_segment
        out = target[start : start + length - OVERHEAD]
        segment = body[offset : offset + length]
        stream.open_into(position, segment, out, last=position == geometry.count - 1)
    return bytes(plain)
