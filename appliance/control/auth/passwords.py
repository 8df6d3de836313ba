"""Passwords: Argon2id over a peppered digest.

Rules kept here:
* RFC 9106's low-memory profile (t=3, m=64 MiB, p=4); older hashes are noticed and made anew;
* the password is first keyed with the pepper (HMAC), which lies in the keyring and not in the
  database, so a copy of the database cannot be searched;
* normalised to NFC and nothing else: no trimming, no change of case; 12 characters to 1024 bytes;
  no rules of composition, but the most common ones and the user's own name are refused;
* an unknown user costs the same work as a known one.

The attack: guessing on-line, guessing off-line from a stolen database, finding out who exists.
Called by `hasher`, which says how many at once and who is next, and by `init`.
"""

from __future__ import annotations

import base64
import re
import secrets
import unicodedata

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.crypto.signing import hmac_sha256

MIN_LENGTH = 12
MAX_BYTES = 1024
MIN_DIFFERENT = 5
RFC_9106 = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
_COMMON = re.compile(
    # Runs on a keyboard, counted digits, and words that everybody tries, once or twice over.
    r"[0-9 ]*|(0?1?234567890?)+.*|(abcdefgh|qwertyui|asdfghjk|zxcvbnm|1qaz2wsx|1q2w3e4r|qwerty12).*"
    r"|((p[a@][s$]{2}w[o0]rd|admin|administrator|welcome|changeme|letmein|iloveyou|appliance|secret"
    r"|qwerty|abc123|correct ?horse ?battery ?staple)[0-9!?._ -]*)+"
)


class Passwords:
    """Checks, hashes and verifies. `pepper` is the keyring's; `hasher` Argon2id's parameters."""

    def __init__(self, pepper: bytes, hasher: argon2.PasswordHasher = RFC_9106) -> None:
        self._pepper = pepper
        self._hasher = hasher
        # Verified for users that do not exist; made from random bytes, so that nothing matches it.
        self._nobody = self._hasher.hash(secrets.token_bytes(32))

    def check_new(self, password: str, *words: str) -> None:
        """Raise InvalidInput when a new password is too short, too long or easy to guess.

        Args:
            password: the new password.
            words: of the user, such as the id; a password made of one of them is refused.
        """
        text = unicodedata.normalize("NFC", password)
        lowered = text.casefold()
        why = ""
        if len(text) < MIN_LENGTH:
            why = f"it has fewer than {MIN_LENGTH} characters: take a longer one"
        elif len(text.encode(errors="surrogatepass")) > MAX_BYTES:
            why = f"it has more than {MAX_BYTES} bytes: take a shorter one"
        elif _COMMON.fullmatch(lowered) or len(set(lowered)) < MIN_DIFFERENT:
            why = "it is one of the first that would be guessed: take another one"
        elif any(_made_of(lowered, word.casefold()) for word in words):
            why = "it is made of the user's own name: take another one"
        elif not text.isprintable():
            why = "it has characters that cannot be typed: take another one"
        if why:
            raise InvalidInput(f"this password is refused: {why}", fields={"password": why})

    def hash(self, password: str) -> str:
        """Hash a password, 64 MiB and some 100 ms of work."""
        return self._hasher.hash(self._keyed(password))

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether `password` has the hash `stored`; with None the same work, and False."""
        return self._matches(stored or self._nobody, password) and stored is not None

    def same(self, one: str, other: str) -> bool:
        """Whether two texts are one password, however their letters are written."""
        return self._keyed(one) == self._keyed(other)

    def is_old(self, stored: str) -> bool:
        """Whether a hash was made with weaker parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, self._keyed(password))
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError) as error:
            raise FailedPrecondition(
                "a stored password hash is damaged: restore the state from a backup"
            ) from error

    def _keyed(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password).encode(errors="surrogatepass")
        return base64.b64encode(hmac_sha256(self._pepper, text[: MAX_BYTES + 1]))


def _made_of(text: str, word: str) -> bool:
    """Whether a text is a word repeated, with at most a few digits or signs around."""
    rest = text.replace(word, "") if word else text
    return len(rest) < len(text) and len(rest) < MIN_DIFFERENT
