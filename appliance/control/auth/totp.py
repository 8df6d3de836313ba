"""The second factor: one-time codes (TOTP, RFC 6238), recovery codes. The only home of pyotp.

Rules kept here:
* a code is six ASCII digits before anything else looks at it: pyotp would also take full-width and
  superscript digits, which makes one code many;
* a code works once: the step it belongs to must be later than the one before and none of the last
  sixteen that were used, which are stored in the transaction that accepts it, so replays fail, also
  in parallel, after a restart and when the clock steps back; one step to either side is accepted;
* a stored step that lies more than five minutes ahead was written under a wrong clock: it is not
  believed to be the one before, or the user would be locked out until that time has come;
* the secret (160 bits) is sealed for its user and its row, so it cannot be moved to another user;
* ten recovery codes of 130 bits, stored as keyed digests, each deleted as it is used.

The attack: replay, guessing, look-alike digits, moving a secret between rows. Called by `log_in`.
"""

from __future__ import annotations

import base64
import re
import secrets
from datetime import datetime

import pyotp
import pyotp.exceptions
from sqlalchemy import delete, insert, select, update

from appliance.control.auth.moments import TOLERANCE
from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import recovery_code, totp
from appliance.core.errors import FailedPrecondition
from appliance.crypto.sealed_values import open_field, seal_field
from appliance.crypto.signing import hmac_sha256

ISSUER = "appliance"
WINDOW = 1
SECRET_BYTES = 20
RECOVERY_CODES = 10
RECOVERY_LETTERS = 26
STEP_SECONDS = 30
STEPS_AHEAD = int(TOLERANCE.total_seconds()) // STEP_SECONDS
REMEMBERED = 16
_CODE = re.compile(r"[0-9]{6}", re.ASCII)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class Totp:
    """Enrols and verifies. `field_key` seals secrets, `hmac_key` digests recovery codes."""

    def __init__(self, field_key: bytes, hmac_key: bytes) -> None:
        self._field_key = field_key
        self._hmac_key = hmac_key

    def is_enrolled(self, state: Reading, user: str) -> bool:
        """Whether a user has proved an authenticator."""
        return (
            state.first(select(totp.c.id).where(totp.c.user == user, totp.c.confirmed)) is not None
        )

    def begin(self, transaction: Transaction, user: str, label: str, now: datetime) -> str:
        """Give a user a new secret, replacing one that was never proved; its otpauth:// address.

        Raises FailedPrecondition when the user has an authenticator already.
        """
        if self.is_enrolled(transaction, user):
            raise FailedPrecondition("an authenticator is enrolled already: enter its code")
        transaction.run(delete(totp).where(totp.c.user == user))
        identifier = secrets.token_hex(16)
        secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
        transaction.run(
            insert(totp).values(
                id=identifier,
                user=user,
                sealed_secret=seal_field(
                    secret.encode(), self._field_key, _place(identifier, user)
                ),
                confirmed=False,
                create_time=now,
            )
        )
        return pyotp.TOTP(secret).provisioning_uri(name=label, issuer_name=ISSUER)

    def verify(self, transaction: Transaction, user: str, code: str, now: datetime) -> bool:
        """Whether `code` is right and was not used before; then it is used up."""
        row = transaction.first(select(totp).where(totp.c.user == user))
        if row is None or _CODE.fullmatch(code) is None:
            return False
        secret = open_field(row.sealed_secret, self._field_key, _place(row.id, user)).decode()
        try:
            device = pyotp.TOTP(secret)
            step = device.verify_and_get_timecode(code, for_time=now, valid_window=WINDOW)
        except pyotp.exceptions.OTPVerificationError:
            return False
        if step is None or not _is_fresh(row.last_timecode, row.used_timecodes, step, now):
            return False
        used = [*row.used_timecodes, step][-REMEMBERED:]
        changed = update(totp).where(totp.c.id == row.id)
        transaction.run(changed.values(last_timecode=step, used_timecodes=used))
        return True

    def confirm(self, transaction: Transaction, user: str) -> list[str]:
        """End an enrolment: the authenticator counts from now on. Ten new recovery codes."""
        transaction.run(update(totp).where(totp.c.user == user).values(confirmed=True))
        transaction.run(delete(recovery_code).where(recovery_code.c.user == user))
        codes = [
            "".join(secrets.choice(_ALPHABET) for _ in range(RECOVERY_LETTERS))
            for _ in range(RECOVERY_CODES)
        ]
        transaction.run(
            insert(recovery_code).values(
                [{"user": user, "digest": self._digest(user, code)} for code in codes]
            )
        )
        return ["-".join(re.findall(".{1,5}", code)) for code in codes]

    def holds_recovery_code(self, state: Reading, user: str, code: str) -> bool:
        """Whether `code` is an unused recovery code of the user, without using it up."""
        row = recovery_code.c
        wanted = select(row.user).where(row.user == user, row.digest == self._digest(user, code))
        return state.first(wanted) is not None

    def use_recovery_code(self, transaction: Transaction, user: str, code: str) -> bool:
        """Whether `code` is an unused recovery code of the user; then it is used up."""
        row = recovery_code.c
        used = delete(recovery_code).where(row.user == user, row.digest == self._digest(user, code))
        return transaction.run(used) == 1

    def reset(self, transaction: Transaction, user: str) -> None:
        """Take the authenticator and the recovery codes away; the next log-in enrols anew."""
        transaction.run(delete(totp).where(totp.c.user == user))
        transaction.run(delete(recovery_code).where(recovery_code.c.user == user))

    def _digest(self, user: str, code: str) -> bytes:
        # Typed with or without hyphens, in either case; what cannot be one matches nothing.
        plain = code.replace("-", "").lower().encode(errors="replace")
        return hmac_sha256(self._hmac_key, f"recovery code\n{user}\n".encode() + plain)


def _is_fresh(last: int | None, used: list[int], step: int, now: datetime) -> bool:
    """Whether a step may still be used, after the last one that was."""
    if last is None:
        return True
    ahead = last - int(now.timestamp()) // STEP_SECONDS > STEPS_AHEAD
    return step not in used and (step > last or ahead)


def _place(identifier: str, user: str) -> dict[str, str | int]:
    return {
        "table": "totp",
        "row": identifier,
        "column": "sealed_secret",
        "user": user,
        "version": 1,
    }
