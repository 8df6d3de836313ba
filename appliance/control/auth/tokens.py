"""Bearer tokens: `sla_<kind>_<id>_<secret>_<crc>`, opaque, 256 random bits.

Rules kept here:
* only an HMAC of the secret is stored, so a copy of the database opens nothing;
* digests are compared in constant time, and what is wrong with a token is never said;
* the shape is fixed and ends in a checksum, so that a scanner finds a leaked one and a mistyped one
  costs no look at the database; the checksum guards nothing.

The attack: a guessed, shortened, re-spelt or foreign-kind token. Pure. Called by `sessions`,
`credentials`, `service_tokens` and `join_tokens`.
"""

from __future__ import annotations

import base64
import re
import secrets
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.core.errors import Unauthenticated
from appliance.crypto.signing import equal, hmac_sha256

SECRET_BYTES = 32
ID_BYTES = 8
LONGEST = 128
_SHAPE = re.compile(r"(sla_([a-z]{3,4})_([0-9a-f]{16})_([a-z2-7]{52}))_([0-9a-f]{8})")


class TokenKind(StrEnum):
    """What a token is for."""

    SESSION = "ses"
    SERVICE = "svc"
    JOIN = "join"


@dataclass(frozen=True)
class Minted:
    """A new token: its id, its text to be shown once, and the digest to store."""

    id: str
    text: str = field(repr=False)
    digest: bytes


@dataclass(frozen=True)
class Parsed:
    """The parts of a token that somebody presented."""

    kind: TokenKind
    id: str
    secret: str = field(repr=False)


def mint(kind: TokenKind, key: bytes) -> Minted:
    """A new random token of a kind; `key` is the keyring's token key."""
    identifier = secrets.token_hex(ID_BYTES)
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode().rstrip("=").lower()
    body = f"sla_{kind}_{identifier}_{secret}"
    parsed = Parsed(kind, identifier, secret)
    return Minted(identifier, f"{body}_{_checksum(body)}", digest_of(parsed, key))


def parse(text: str, *kinds: TokenKind) -> Parsed:
    """Take a token of one of `kinds` apart; Unauthenticated for anything else."""
    match = _SHAPE.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or match[5] != _checksum(match[1]) or match[2] not in list(kinds):
        raise refused()
    return Parsed(TokenKind(match[2]), match[3], match[4])


def digest_of(token: Parsed, key: bytes) -> bytes:
    """What is stored of a token: HMAC-SHA-256 of its secret, 32 bytes."""
    return hmac_sha256(key, token.secret.encode())


def matches(token: Parsed, digest: bytes, key: bytes) -> bool:
    """Whether a token is the one whose digest was stored, in constant time."""
    return equal(digest_of(token, key), digest)


def refused() -> Unauthenticated:
    """The one answer to every token that does not work."""
    return Unauthenticated("this token is not valid or has ended: log in again or get a new one")


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
