"""Join tokens: one server may join once, under one name, within ten minutes.

Rules kept here: stored as a keyed digest; used up in the transaction that makes the node, so of two
at the same time one wins; unknown, used and ended tokens get the same answer.

Called by the node and enrolment services, inside their transactions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import insert, select, update

from appliance.control.auth import tokens
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Transaction
from appliance.control.store.tables import join_token

LIFETIME = timedelta(minutes=10)


@dataclass(frozen=True)
class NewJoinToken:
    """A join token; `text` is shown once."""

    text: str = field(repr=False)
    expire_time: datetime


def create(  # noqa: PLR0913 - the columns of one row
    transaction: Transaction,
    key: bytes,
    node: str,
    creator: str,
    now: datetime,
    *,
    lifetime: timedelta = LIFETIME,
) -> NewJoinToken:
    """Make a token with which one server may join as `node`, ten minutes unless said otherwise."""
    minted = tokens.mint(TokenKind.JOIN, key)
    transaction.run(
        insert(join_token).values(
            id=minted.id,
            node=node,
            digest=minted.digest,
            creator=creator,
            create_time=now,
            expire_time=now + lifetime,
        )
    )
    return NewJoinToken(minted.text, now + lifetime)


def consume(transaction: Transaction, key: bytes, text: str, now: datetime) -> str:
    """Use a token up; the name of the node that may join with it. Raises Unauthenticated."""
    token = tokens.parse(text, TokenKind.JOIN)
    row = transaction.first(select(join_token).where(join_token.c.id == token.id))
    if (
        row is None
        or not tokens.matches(token, row.digest, key)
        or row.used_time is not None
        or now >= row.expire_time
    ):
        raise tokens.refused()
    transaction.run(update(join_token).where(join_token.c.id == row.id).values(used_time=now))
    return str(row.node)
