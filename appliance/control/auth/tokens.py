"""New bearer tokens; their shape and how they are recognised is `appliance.crypto.tokens`.

Rule kept here: the secret is 256 random bits, shown once; only its keyed digest is stored.

Called by `sessions`, `credentials`, `service_tokens` and `join_tokens`.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field

from appliance.crypto.tokens import (
    MAX_LENGTH,
    Parsed,
    TokenKind,
    digest_of,
    matches,
    parse,
    refused,
    text_of,
)

__all__ = [
    "MAX_LENGTH",
    "Minted",
    "Parsed",
    "TokenKind",
    "digest_of",
    "matches",
    "mint",
    "parse",
    "refused",
]

SECRET_BYTES = 32
ID_BYTES = 8


@dataclass(frozen=True)
class Minted:
    """A new token: its id, its text to be shown once, and the digest to store."""

    id: str
    text: str = field(repr=False)
    digest: bytes


def mint(kind: TokenKind, key: bytes) -> Minted:
    """A new random token of a kind; `key` is the keyring's token key."""
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode().rstrip("=").lower()
    parsed = Parsed(kind, secrets.token_hex(ID_BYTES), secret)
    return Minted(parsed.id, text_of(parsed), digest_of(parsed, key))
