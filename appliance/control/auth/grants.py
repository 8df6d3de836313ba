"""Tokens of uploads: one upload goes on with its own, whatever becomes of its creator's session.

Rules kept here:
* the token stands in the upload's row as a keyed digest; there is one at a time, and the newest
  ends the one before: of two commands that go on with one upload the older one stops;
* it names its upload's creator for calls that say so (`granted` in the proto) and for that upload
  alone; locked people and applications are refused, and rights are asked for at each call as ever;
* one is made only while the session or token that asks for it is live, as the transaction that
  makes it sees it;
* a new proof of the second factor, and a session that ends by its time, change nothing. A session
  that somebody ends takes along the tokens that were made with it.

The attack: a stolen session outlives its end in a token that was made with it. Called by
`credentials`, by `sessions` and `log_in` where sessions end, and by the service of uploads.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, select, update

from appliance.control.auth import tokens
from appliance.control.auth.tokens import Parsed, TokenKind
from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import service_account, upload, user
from appliance.core.identity import PrincipalKind, parse_subject

NOBODY = "user:0"
"""The subject of a person who cannot be: the ids of new ones begin with a letter."""
_NONE = {"grant_id": None, "grant_digest": None, "grant_session": None}


def create(transaction: Transaction, uid: str, credential: str, key: bytes) -> str:
    """A new token for an upload; its text, to be shown once.

    Args:
        transaction: of the change.
        uid: of the upload.
        credential: id of the session or token that asks for it.
        key: the keyring's token key.
    """
    minted = tokens.mint(TokenKind.UPLOAD, key)
    transaction.run(
        update(upload)
        .where(upload.c.uid == uid)
        .values(grant_id=minted.id, grant_digest=minted.digest, grant_session=credential)
    )
    return minted.text


def holder(state: Reading, presented: Parsed, key: bytes) -> Row[Any] | None:
    """The upload whose token this is, also of a locked creator; None when it is nobody's."""
    row = state.first(select(upload).where(upload.c.grant_id == presented.id))
    if row is None or not tokens.matches(presented, row.grant_digest, key):
        return None
    return row


def find(state: Reading, presented: Parsed, key: bytes, now: datetime) -> Row[Any]:
    """The upload whose live token this is. Raises Unauthenticated."""
    row = holder(state, presented, key)
    if row is None or now >= row.expire_time or is_locked(state, row.principal):
        raise tokens.refused()
    return row


def move(transaction: Transaction, old: str, new: str) -> None:
    """A session was replaced by another of the same log-in: its tokens belong to that."""
    made = upload.c.grant_session == old
    transaction.run(update(upload).where(made).values(grant_session=new))


def end_with(transaction: Transaction, credential: str) -> None:
    """Somebody ends a session or token: what was made with it ends too."""
    transaction.run(update(upload).where(upload.c.grant_session == credential).values(**_NONE))


def end_all(transaction: Transaction, principal: str) -> None:
    """All tokens of a principal end, such as when it is locked; `principal` is its subject."""
    transaction.run(update(upload).where(upload.c.principal == principal).values(**_NONE))


def disown_all(transaction: Transaction, principal: str) -> None:
    """A principal is deleted: what it was sending is nobody's, and goes as if it were locked.

    Whoever is called so next must not find it.
    """
    mine = update(upload).where(upload.c.principal == principal)
    transaction.run(mine.values(principal=NOBODY, **_NONE))


def is_locked(state: Reading, subject: str) -> bool:
    """Whether a principal is locked, or gone; `subject` is its."""
    owner = parse_subject(subject)
    table = user if owner.kind is PrincipalKind.USER else service_account
    locked = state.value(select(table.c.locked).where(table.c.id == owner.id))
    return locked is None or bool(locked)
