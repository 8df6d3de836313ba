"""The codes of an authenticator whose secret a program keeps: TOTP (RFC 6238), SHA-1, six digits.

For accounts that nobody sits at. Who holds the file holds the second factor: it belongs where a
secret of a machine belongs, and never beside the password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import parse_qs, urlsplit

PERIOD = 30
DIGITS = 6


def code_of(uri: str, seconds: float) -> str:
    """The code at a moment.

    Args:
        uri: `otpauth://totp/...?secret=...`, as an enrolment returns it.
        seconds: since 1970.
    """
    secret = parse_qs(urlsplit(uri).query)["secret"][0]
    key = base64.b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
    counter = int(seconds // PERIOD).to_bytes(8, "big")
    digest = hmac.new(key, counter, hashlib.sha1).digest()
    at = digest[-1] & 15
    number = int.from_bytes(digest[at : at + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"
