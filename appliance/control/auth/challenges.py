"""Challenges that a caller signs to prove its key, without anything being stored.

Rules kept here: a challenge is of this process, by a MAC under a key that nobody else has, and
holds for two minutes; what is signed with it is the very request, so that one that is seen twice
makes nothing that the first had not made.

The attacks: a signature prepared ahead of time or kept for later; a table that strangers fill.
Called by the enrolment service, and by `recovery` before anything is recorded.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from appliance.core.errors import Unauthenticated
from appliance.crypto.signing import equal, hmac_sha256

LIFETIME = timedelta(minutes=2)
_KEY, _MOMENT, _NONCE, _MAC = 32, 8, 16, 32
SIZE = _MOMENT + _NONCE + _MAC


class Challenges:
    """Makes and checks challenges.

    Args:
        clock: the time, aware.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(_KEY)

    def make(self) -> bytes:
        """A new challenge of `SIZE` bytes: moment, nonce, MAC."""
        moment = int(self._clock().timestamp()).to_bytes(_MOMENT, "big")
        body = moment + secrets.token_bytes(_NONCE)
        return body + hmac_sha256(self._key, body)

    def check(self, challenge: bytes) -> None:
        """Raise Unauthenticated for a challenge that is not ours, or too old."""
        body, mac = challenge[:-_MAC], challenge[-_MAC:]
        if len(challenge) != SIZE or not equal(hmac_sha256(self._key, body), mac):
            raise Unauthenticated("the challenge is not one of this control plane: ask for one")
        age = self._clock().timestamp() - int.from_bytes(body[:_MOMENT], "big")
        if not -1 <= age <= LIFETIME.total_seconds():
            raise Unauthenticated("the challenge has ended: ask for another one")
