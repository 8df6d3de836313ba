"""Join tokens: one server may join once, under one name, within ten minutes.

Rules kept here:
* stored as a keyed digest; used up in the transaction that makes the node, so of two at the same
  time one wins;
* one that has ended is deleted a day later, by the sweeper;
* those that can still be used are listed and revoked; an eviction voids those of the node's name;
* unknown, used, ended, revoked and void tokens get the same answer, and so does one that says that
  it was made in the future.

The attacks: a token used twice, or kept by a server that was evicted to come back with it.
Called by the node and enrolment services, inside their transactions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, or_, select, update

from appliance.control.auth import tokens
from appliance.control.auth.moments import TOLERANCE, believed
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import join_token
from appliance.core.errors import NotFound, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind

LIFETIME = timedelta(minutes=10)
KEPT = timedelta(days=1)
"""Time for which a token that has ended is kept: the audit log says who used it, for ever."""


@dataclass(frozen=True)
class NewJoinToken:
    """A join token; `text` is shown once."""

    id: str
    text: str = field(repr=False)
    expire_time: datetime


def over(now: datetime) -> ColumnElement[bool]:
    """Which tokens ended more than a day ago; until then it can be said why one is refused.

    Also what a clock that was ahead has made.
    """
    return or_(join_token.c.expire_time <= now - KEPT, join_token.c.create_time > now + KEPT)


def create(  # noqa: PLR0913 - the columns of one row
    transaction: Transaction,
    key: bytes,
    machine: Principal,
    creator: str,
    now: datetime,
    *,
    lifetime: timedelta = LIFETIME,
    hosts: Collection[str] = (),
) -> NewJoinToken:
    """Make a token with which one server may join as `machine`, a node or a gateway.

    For ten minutes unless said otherwise; `hosts` are names and addresses of a gateway.
    """
    minted = tokens.mint(TokenKind.JOIN, key)
    transaction.run(
        insert(join_token).values(
            id=minted.id,
            kind=machine.kind.path,
            machine=machine.id,
            hosts=list(hosts),
            digest=minted.digest,
            creator=creator,
            create_time=now,
            expire_time=now + lifetime,
        )
    )
    return NewJoinToken(minted.id, minted.text, now + lifetime)


def consume(
    transaction: Transaction,
    key: bytes,
    text: str,
    now: datetime,
    kind: PrincipalKind = PrincipalKind.NODE,
) -> Row[Any]:
    """Use a token up; its row, which says who may join with it.

    Raises Unauthenticated, also for a token that is for another kind of machine.
    """
    row = look_up(transaction, key, text)
    if row is None or not can_be_used(row, now) or row.kind != kind.path:
        raise tokens.refused()
    transaction.run(update(join_token).where(join_token.c.id == row.id).values(used_time=now))
    return row


def look_up(state: Reading, key: bytes, text: str) -> Row[Any] | None:
    """The row of a token, whether it can still be used or not; None when nobody made it."""
    try:
        token = tokens.parse(text, TokenKind.JOIN)
    except Unauthenticated:
        return None
    row = state.first(select(join_token).where(join_token.c.id == token.id))
    return row if row is not None and tokens.matches(token, row.digest, key) else None


def can_be_used(row: Row[Any], now: datetime) -> bool:
    """Whether a server may still join with the token of this row."""
    unused = row.used_time is None
    return bool(unused and believed(row.create_time, now) and now < row.expire_time)


def usable(state: Reading, now: datetime, *, after: str = "", limit: int) -> list[Row[Any]]:
    """Tokens with which a server may still join, by id, at most `limit` after the id `after`."""
    column = join_token.c
    return state.all(
        select(join_token)
        .where(
            column.used_time.is_(None),
            column.expire_time > now,
            column.create_time <= now + TOLERANCE,
            column.id > after,
        )
        .order_by(column.id)
        .limit(limit)
    )


def revoke(transaction: Transaction, token_id: str) -> Principal:
    """End a token; whom it was for. Raises NotFound when none can be used under this id."""
    mine = join_token.c.id == token_id, join_token.c.used_time.is_(None)
    row = transaction.first(select(join_token).where(*mine))
    if row is None:
        raise NotFound("there is no such join token: see `appliance node list-join-tokens`")
    transaction.run(delete(join_token).where(*mine))
    return owner(row)


def owner(row: Row[Any]) -> Principal:
    """Who may join with the token of this row."""
    kind = PrincipalKind.GATEWAY if row.kind == PrincipalKind.GATEWAY.path else PrincipalKind.NODE
    return Principal(kind, row.machine)


def unused(transaction: Transaction, machine: Principal) -> list[str]:
    """Ids of the tokens with which a machine of this name may still join, sorted."""
    mine = (join_token.c.kind == machine.kind.path, join_token.c.machine == machine.id)
    rows = transaction.all(
        select(join_token.c.id).where(*mine, join_token.c.used_time.is_(None)).order_by("id")
    )
    return [row.id for row in rows]


def revoke_all_of(transaction: Transaction, machine: Principal) -> int:
    """End every token of a machine's name, when it is evicted; how many."""
    mine = (
        join_token.c.kind == machine.kind.path,
        join_token.c.machine == machine.id,
        join_token.c.used_time.is_(None),
    )
    return transaction.run(delete(join_token).where(*mine))
