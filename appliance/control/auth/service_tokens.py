"""Bearer tokens of applications: shown once, at most 90 days, ended at once.

Rules kept here:
* the secret is stored as a keyed digest alone;
* at most two tokens live at a time, so that one can be replaced without a gap but none piles up;
* who made it is kept, because a token lives on when its maker has gone;
* one that is replaced goes on for an overlap, never longer than it would have, and is replaced
  once: what was made in its place is replaced next;
* when it was last used is kept to the hour, so that using it is a read, not a write;
* a token that has ended is deleted only when two have ended later: a clock that is ahead for a
  while must not take away those that live by the right time.

Called by the service of tokens, inside its transaction; uses are noted by `credentials`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from appliance.control.auth import grants, tokens
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Database, Transaction
from appliance.control.store.tables import token
from appliance.core.errors import Exhausted, FailedPrecondition, NotFound, Unavailable

logger = logging.getLogger(__name__)

MAX_LIVE = 2
NOTED_EVERY = timedelta(hours=1)
"""Uses of a token within this time are noted as one."""


@dataclass(frozen=True)
class NewToken:
    """A token of an application; `text` is shown once."""

    id: str
    text: str = field(repr=False)
    create_time: datetime
    expire_time: datetime


def create(  # noqa: PLR0913 - the columns of one row
    transaction: Transaction,
    key: bytes,
    account: str,
    lifetime_days: int,
    now: datetime,
    *,
    creator: str = "",
    replaces: str = "",
) -> NewToken:
    """Make a token that lives so many days.

    Raises FailedPrecondition when two tokens live already.
    """
    mine = token.c.service_account == account
    rows = transaction.all(select(token).where(mine).order_by(token.c.expire_time.desc()))
    ended = [row.id for row in rows if row.expire_time <= now]
    transaction.run(delete(token).where(token.c.id.in_(ended[MAX_LIVE:])))
    if len(rows) - len(ended) >= MAX_LIVE:
        raise FailedPrecondition(
            f"this application has {MAX_LIVE} live tokens: revoke one, then make the new one"
        )
    minted = tokens.mint(TokenKind.SERVICE, key)
    ends = now + timedelta(days=lifetime_days)
    transaction.run(
        insert(token).values(
            id=minted.id,
            service_account=account,
            digest=minted.digest,
            create_time=now,
            expire_time=ends,
            creator=creator,
            replaces=replaces,
        )
    )
    return NewToken(minted.id, minted.text, now, ends)


def replaceable(transaction: Transaction, account: str, token_id: str, now: datetime) -> Row[Any]:
    """The live token of an application that another one may take the place of.

    Raises NotFound when it has no such token; FailedPrecondition when that was replaced already.
    """
    mine = select(token).where(token.c.service_account == account, token.c.expire_time > now)
    rows = {row.id: row for row in transaction.all(mine)}
    if token_id not in rows:
        raise _unknown()
    for row in rows.values():
        if row.replaces == token_id:
            raise FailedPrecondition(f"{token_id} was replaced by {row.id}: rotate that one")
    return rows[token_id]


def end_after(
    transaction: Transaction, old: Row[Any], overlap: timedelta, now: datetime
) -> datetime:
    """Let a token go on for `overlap` at most, or end it with none; when it ends."""
    if not overlap:
        revoke(transaction, old.service_account, old.id)
        return now
    ends: datetime = min(old.expire_time, now + overlap)
    transaction.run(update(token).where(token.c.id == old.id).values(expire_time=ends))
    return ends


def is_use_due(row: Row[Any], now: datetime) -> bool:
    """Whether a use of a token is to be noted; one that a clock ahead has noted is no reason."""
    return row.use_time is None or abs(now - row.use_time) >= NOTED_EVERY


def note_uses(database: Database, ids: Sequence[str], now: datetime) -> None:
    """Note that tokens are used; what is no token stays out.

    Written for those of which no use was noted for an hour. A disk that is full keeps nobody out:
    then the next use is noted.
    """
    if not ids:
        return
    with database.read() as state:
        rows = state.all(select(token).where(token.c.id.in_(ids)))
    due = [row.id for row in rows if is_use_due(row, now)]
    if not due:
        return
    try:
        with database.write() as transaction:
            transaction.run(update(token).where(token.c.id.in_(due)).values(use_time=now))
    except (Exhausted, Unavailable) as error:
        logger.warning("the use of %s tokens is not noted: %s", len(due), error.message)


def revoke(transaction: Transaction, account: str, token_id: str) -> None:
    """End a token of an application. Raises NotFound when it has no such token."""
    mine = token.c.service_account == account
    if transaction.run(delete(token).where(mine, token.c.id == token_id)) == 0:
        raise _unknown()
    grants.end_with(transaction, token_id)


def _unknown() -> NotFound:
    return NotFound("this application has no such token: see `appliance service-account get`")
