"""Devices that are known: where a user has logged in, failed tries of others do not count.

Rules kept here (OWASP, "device cookies"):
* a completed log-in leaves a token for this user and this device, 256 random bits of which only a
  keyed digest is stored; it proves nothing but that somebody has logged in there: password and
  second factor are still asked for;
* it ends after ninety days without a log-in; of a user at most ten are known, the one that was not
  used for longest is forgotten first;
* a new password, a reset and a lock forget every device of the user;
* one that says it was made in the future is not believed.

The attack: shutting an account for its owner by guessing wrongly. Called by `log_in` and the user
service, inside their transactions.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from appliance.control.auth import attempts, tokens
from appliance.control.auth.moments import believed
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import attempt, device
from appliance.core.errors import Unauthenticated

LIFETIME = timedelta(days=90)
MOST = 10


def find(state: Reading, text: str, owner: str, key: bytes, now: datetime) -> str:
    """The id of the device that a token stands for; empty when it is none of `owner`'s."""
    try:
        token = tokens.parse(text, TokenKind.DEVICE)
    except Unauthenticated:
        return ""
    row = state.first(select(device).where(device.c.id == token.id, device.c.user == owner))
    if row is None or not tokens.matches(token, row.digest, key):
        return ""
    live = believed(row.create_time, now) and believed(row.seen_time, now) and now < row.expire_time
    return str(row.id) if live else ""


def remember(transaction: Transaction, owner: str, key: bytes, now: datetime) -> str:
    """Know a device from now on; its token, to be shown once."""
    mine = device.c.user == owner
    known = transaction.all(select(device).where(mine).order_by(device.c.seen_time.desc()))
    # Those of the future come first in that order, and are the first to go.
    known.sort(key=lambda row: believed(row.seen_time, now), reverse=True)
    _forget(transaction, [row.id for row in known[MOST - 1 :]])
    minted = tokens.mint(TokenKind.DEVICE, key)
    transaction.run(
        insert(device).values(
            id=minted.id,
            user=owner,
            digest=minted.digest,
            create_time=now,
            expire_time=now + LIFETIME,
            seen_time=now,
        )
    )
    return minted.text


def device_id(text: str) -> str:
    """The id in a device token that was just made, for the audit record."""
    return tokens.parse(text, TokenKind.DEVICE).id


def renew(transaction: Transaction, device_id: str, now: datetime) -> bool:
    """Note a log-in from a known device; False when it was forgotten meanwhile."""
    mine = device.c.id == device_id
    changed = update(device).where(mine).values(seen_time=now, expire_time=now + LIFETIME)
    return transaction.run(changed) == 1


def forget_all(transaction: Transaction, owner: str) -> None:
    """Know none of a user's devices any more."""
    rows = transaction.all(select(device.c.id).where(device.c.user == owner))
    _forget(transaction, [row.id for row in rows])


def _forget(transaction: Transaction, ids: list[str]) -> None:
    counters = [attempts.device_counter(each) for each in ids]
    transaction.run(delete(attempt).where(attempt.c.account.in_(counters)))
    transaction.run(delete(device).where(device.c.id.in_(ids)))
