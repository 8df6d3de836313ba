"""The shape of bearer tokens: `sla_<kind>_<id>_<secret>_<crc>`, opaque, 256 random bits.

Rules kept here:
* what is compared is an HMAC of the secret, so a copy of what a server knows opens nothing;
* digests are compared in constant time, and what is wrong with a token is never said;
* the shape is fixed and ends in a checksum, so that a scanner finds a leaked one and a mistyped one
  costs no look-up; the checksum guards nothing.

The attack: a guessed, shortened, re-spelt or foreign-kind token. Pure. Called by the control plane,
which makes them, and by the gateway, which recognises them from its view.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.core.errors import Unauthenticated
from appliance.crypto.signing import equal, hmac_sha256

MAX_LENGTH = 128
_SHAPE = re.compile(r"(sla_([a-z]{3,4})_([0-9a-f]{16})_([a-z2-7]{52}))_([0-9a-f]{8})")


class TokenKind(StrEnum):
    """What a token is for."""

    SESSION = "ses"
    SERVICE = "svc"
    JOIN = "join"
    DEVICE = "dev"
    UPLOAD = "upl"


@dataclass(frozen=True)
class Parsed:
    """The parts of a token that somebody presented."""

    kind: TokenKind
    id: str
    secret: str = field(repr=False)


def text_of(token: Parsed) -> str:
    """The token as it is shown to its owner, once."""
    body = f"sla_{token.kind}_{token.id}_{token.secret}"
    return f"{body}_{_checksum(body)}"


def parse(text: str, *kinds: TokenKind) -> Parsed:
    """Take a token of one of `kinds` apart; Unauthenticated for anything else."""
    match = _SHAPE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None or match[5] != _checksum(match[1]) or match[2] not in list(kinds):
        raise refused()
    return Parsed(TokenKind(match[2]), match[3], match[4])


def digest_of(token: Parsed, key: bytes) -> bytes:
    """What is known of a token: HMAC-SHA-256 of its secret, 32 bytes."""
    return hmac_sha256(key, token.secret.encode())


def matches(token: Parsed, digest: bytes, key: bytes) -> bool:
    """Whether a token is the one whose digest is known, in constant time."""
    return equal(digest_of(token, key), digest)


def refused() -> Unauthenticated:
    """The one answer to every token that does not work."""
    return Unauthenticated("this token is not valid or has ended: log in again or get a new one")


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
