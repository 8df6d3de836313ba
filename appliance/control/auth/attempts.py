"""Failed proofs: counted before they are checked, slowed down after five, stopped at a hundred.

Rules kept here (NIST SP 800-63B 5.2.2):
* a try is counted in the database before its password or code is looked at, so parallel tries and
  a crash gain nothing, and a restart forgets nothing;
* from the sixth on there is a delay of 1, 2, 4 … 900 seconds before the next; at 100 in a row the
  account is stopped until an administrator unlocks it; a success clears the count;
* names that nobody has are counted too, in a fixed number of shared rows, so that they answer alike
  and cannot fill the disk.

The attack: guessing passwords and codes, also in parallel and over restarts. Called by `sessions`;
the user service clears a count when it unlocks.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from appliance.control.store.database import Database, Transaction
from appliance.control.store.tables import attempt, user
from appliance.core.errors import Exhausted
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import is_id
from appliance.crypto.signing import hmac_sha256

FREE = 5
STOP = 100
LONGEST_DELAY = timedelta(seconds=900)
BUCKETS = 4096


def delay_after(failures: int) -> timedelta:
    """How long to wait before the next try after so many failures in a row."""
    if failures < FREE:
        return timedelta()
    # The exponent is bounded before it is used: 2 ** 95 seconds is no date.
    return min(timedelta(seconds=2 ** min(failures - FREE, 10)), LONGEST_DELAY)


def clear(transaction: Transaction, user_id: str) -> None:
    """Forget the failures of a user: after a success, or when an administrator unlocks."""
    account = Principal(PrincipalKind.USER, user_id).subject
    transaction.run(delete(attempt).where(attempt.c.account == account))


class Attempts:
    """Counts tries per account. `key` spreads the names that nobody has."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._key = key

    def begin(self, name: str, now: datetime) -> None:
        """Count a try for a name, known or not, before anything is verified.

        Raises Exhausted when it comes too early or the account is stopped; it is not counted then.
        """
        with self._database.write() as transaction:
            account = self._account(transaction, name)
            row = transaction.first(select(attempt).where(attempt.c.account == account))
            failures = row.failures if row is not None else 0
            if failures >= STOP:
                raise Exhausted("too many failed attempts: an administrator must unlock this user")
            if row is not None and now < row.next_time:
                wait = (row.next_time - now).total_seconds()
                raise Exhausted(
                    f"too many failed attempts: wait {wait:.0f} seconds, then try again",
                    retry_after=wait,
                )
            values = {"failures": failures + 1, "next_time": now + delay_after(failures + 1)}
            if row is None:
                transaction.run(insert(attempt).values(account=account, **values))
            else:
                transaction.run(
                    update(attempt).where(attempt.c.account == account).values(**values)
                )

    def _account(self, transaction: Transaction, name: str) -> str:
        # One counter for every spelling: width, case and blanks do not make another account.
        folded = unicodedata.normalize("NFKC", name).strip().casefold()
        known = is_id(folded) and transaction.first(select(user.c.id).where(user.c.id == folded))
        if known:
            return Principal(PrincipalKind.USER, folded).subject
        number = int.from_bytes(hmac_sha256(self._key, folded.encode(errors="replace"))[:4])
        return f"unknown:{number % BUCKETS}"
