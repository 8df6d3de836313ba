"""Bearer tokens of applications: shown once, at most 90 days, ended at once.

Rules kept here:
* the secret is stored as a keyed digest alone;
* at most two tokens live at a time, so that one can be replaced without a gap but none piles up;
* who made it is kept, because a token lives on when its maker has gone;
* a token that has ended is deleted only when two have ended later: a clock that is ahead for a
  while must not take away those that live by the right time.

Called by the service-account service, inside its transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select

from appliance.control.auth import grants, tokens
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Transaction
from appliance.control.store.tables import token
from appliance.core.errors import FailedPrecondition, NotFound

MAX_LIVE = 2


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
        )
    )
    return NewToken(minted.id, minted.text, now, ends)


def revoke(transaction: Transaction, account: str, token_id: str) -> None:
    """End a token of an application. Raises NotFound when it has no such token."""
    mine = token.c.service_account == account
    if transaction.run(delete(token).where(mine, token.c.id == token_id)) == 0:
        raise NotFound("this application has no such token")
    grants.end_with(transaction, token_id)
