"""Failed proofs: counted before they are checked, slowed down after five, stopped at a hundred.

Rules kept here (NIST SP 800-63B 5.2.2, OWASP "device cookies"):
* each device on which the user has logged in has a counter of its own, who holds an unused recovery
  code has one, and all unknown devices share one per account: whoever guesses shuts the way for
  unknown devices alone;
* a try is counted in the database before its password is looked at, so parallel tries and a crash
  gain nothing, and a restart forgets nothing; it is given back only when it was never looked at;
* from the sixth on there is a delay of 1, 2, 4 … 900 seconds before the next; at 100 in a row the
  counter is shut until an administrator unlocks the account; a success clears the counter that it
  came in by, and no other;
* a wait that is longer than its number of failures asks for was written under a wrong clock, and is
  not believed;
* names that nobody has are counted too, in a fixed number of shared rows, so that they answer alike
  and cannot fill the disk.

The attacks: guessing passwords, also in parallel and over restarts; guessing wrongly on purpose to
lock somebody else out. Called by `log_in`; the user service and the offline `unlock` clear counts.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import attempt, device, user
from appliance.core.errors import Exhausted
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import is_id
from appliance.core.waiting import in_seconds, pause_after
from appliance.crypto.signing import hmac_sha256

FREE = 5
STOP = 100
MAX_DELAY = timedelta(seconds=900)
BUCKETS = 65_536


@dataclass(frozen=True)
class Reserved:
    """A try that has been counted: in which counter, how many it has now, and its wait before."""

    counter: str
    failures: int
    waited_for: datetime


def delay_after(failures: int) -> timedelta:
    """How long to wait before the next try after so many failures in a row."""
    if failures < FREE:
        return timedelta()
    return pause_after(failures - FREE + 1, timedelta(seconds=1), MAX_DELAY)


def shared_counter(state: Reading, name: str, key: bytes) -> str:
    """The counter of all unknown devices for a name; `key` spreads the names that nobody has."""
    # One counter for every spelling: width, case and blanks do not make another account.
    folded = unicodedata.normalize("NFKC", name).strip().casefold()
    if is_id(folded) and state.first(select(user.c.id).where(user.c.id == folded)):
        return Principal(PrincipalKind.USER, folded).subject
    number = int.from_bytes(hmac_sha256(key, folded.encode(errors="replace"))[:4])
    return f"unknown:{number % BUCKETS}"


def device_counter(device_id: str) -> str:
    """The counter of one known device."""
    return f"device:{device_id}"


def recovery_counter(user_id: str) -> str:
    """The counter of whoever holds an unused recovery code of a user."""
    return f"recovery:{user_id}"


def reserve(transaction: Transaction, counter: str, now: datetime) -> Reserved:
    """Count a try before anything is verified.

    Raises Exhausted when it comes too early or the counter is shut; it is not counted then.
    """
    row = transaction.first(select(attempt).where(attempt.c.account == counter))
    failures = row.failures if row is not None else 0
    if failures >= STOP:
        raise Exhausted(
            "too many failed attempts: log in from a device on which you have logged in before, "
            "give a recovery code, or have an administrator unlock this user"
        )
    wait = row.next_time - now if row is not None else timedelta()
    if timedelta() < wait <= delay_after(failures):
        seconds = wait.total_seconds()
        raise Exhausted(
            f"too many failed attempts: wait {in_seconds(seconds)}, then try again",
            retry_after=seconds,
        )
    count(transaction, counter, now)
    return Reserved(counter, failures + 1, row.next_time if row is not None else now)


def count(transaction: Transaction, counter: str, now: datetime) -> None:
    """Count a failure: one that is about to be possible, or a wrong code of a log-in."""
    mine = attempt.c.account == counter
    row = transaction.first(select(attempt).where(mine))
    failures = row.failures + 1 if row is not None else 1
    values = {"failures": failures, "next_time": now + delay_after(failures)}
    if row is None:
        transaction.run(insert(attempt).values(account=counter, **values))
    else:
        transaction.run(update(attempt).where(mine).values(**values))


def release(transaction: Transaction, reserved: Reserved) -> None:
    """Give a try back that was never verified, because its turn did not come."""
    mine = attempt.c.account == reserved.counter
    row = transaction.first(select(attempt).where(mine))
    if row is None or row.failures == 0:
        return  # Cleared meanwhile: there is nothing of it left to give back.
    # Of an earlier one the wait after the last stays, as long as it is for one failure less: a
    # longer one would be taken for that of a clock that was ahead.
    shorter = row.next_time - delay_after(row.failures) + delay_after(row.failures - 1)
    last = row.failures == reserved.failures
    transaction.run(
        update(attempt)
        .where(mine)
        .values(
            failures=row.failures - 1,
            next_time=reserved.waited_for if last else shorter,
        )
    )


def clear(transaction: Transaction, counter: str) -> None:
    """Forget the failures of one counter, after a success that came in by it."""
    transaction.run(delete(attempt).where(attempt.c.account == counter))


def clear_account(transaction: Transaction, user_id: str) -> None:
    """Forget every failure of a user, on whatever device: when somebody unlocks or resets it."""
    rows = transaction.all(select(device.c.id).where(device.c.user == user_id))
    mine = [
        Principal(PrincipalKind.USER, user_id).subject,
        recovery_counter(user_id),
        *(device_counter(row.id) for row in rows),
    ]
    transaction.run(delete(attempt).where(attempt.c.account.in_(mine)))
