"""Sessions of people: a token that ends by itself, and what it still needs before it is worth much.

Rules kept here:
* a session ends after 12 hours, or 30 minutes without use, here or at a gateway; one from the
  future is not believed;
* a locked user is refused at once, also in a live session;
* who loses one loses it before the call returns.

The attack: an ended, stolen or foreign token. Called by `log_in`, which makes them, by
`credentials`, which looks them up for every call, and by the services that show and end them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, or_, select, update

from appliance.control.auth import grants, tokens
from appliance.control.auth.moments import TOLERANCE, believed
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.tables import session, user
from appliance.core.errors import NotFound, Unauthenticated
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind

LIFETIME = timedelta(hours=12)
IDLE = timedelta(minutes=30)
MAX_SESSIONS = 100
"""Of one user; the one that was used longest ago ends for the next. Log-ins that are not complete
are counted apart."""
NOTED_EVERY = timedelta(minutes=1)
"""Uses of a session within this time are noted as one."""

COMPLETE = "COMPLETE"
VERIFY_TOTP = "VERIFY_TOTP"
ENROLL_TOTP = "ENROLL_TOTP"
CHANGE_PASSWORD = "CHANGE_PASSWORD"  # noqa: S105 - a step, no password

Clock = Callable[[], datetime]


def over(now: datetime) -> ColumnElement[bool]:
    """Which sessions have ended, or were begun by a clock that was ahead."""
    return or_(session.c.expire_time <= now, session.c.create_time > now + TOLERANCE)


def is_live(row: Row[Any], now: datetime) -> bool:
    """Whether a session has begun, has not ended, and was used within half an hour."""
    begun = believed(row.create_time, now) and believed(row.seen_time, now)
    return begun and now < row.expire_time and now < row.seen_time + IDLE


def end(transaction: Transaction, session_id: str) -> None:
    """End a session, and what was made with it."""
    transaction.run(delete(session).where(session.c.id == session_id))
    grants.end_with(transaction, session_id)


class Sessions:
    """Opens, finds, shows and ends sessions. `token_key` is the keyring's token key."""

    def __init__(self, database: Database, token_key: bytes, clock: Clock) -> None:
        self._database = database
        self._token_key = token_key
        self._clock = clock

    def open(  # noqa: PLR0913 - the columns of one row
        self,
        transaction: Transaction,
        owner: str,
        step: str,
        lifetime: timedelta,
        source: str,
        mfa_time: datetime | None = None,
        counter: str = "",
    ) -> str:
        """A new session of a user; its token, to be shown once."""
        now = self._clock()
        minted = tokens.mint(TokenKind.SESSION, self._token_key)
        transaction.run(
            insert(session).values(
                id=minted.id,
                user=owner,
                digest=minted.digest,
                step=step,
                create_time=now,
                expire_time=now + lifetime,
                seen_time=now,
                mfa_time=mfa_time,
                source=source,
                counter=counter,
            )
        )
        self._end_surplus(transaction, owner, step)
        return minted.text

    @staticmethod
    def _end_surplus(transaction: Transaction, owner: str, step: str) -> None:
        """Of one user so many live; who has only a password ends none that is complete."""
        alike = session.c.step == COMPLETE if step == COMPLETE else session.c.step != COMPLETE
        mine = select(session.c.id).where(session.c.user == owner, alike)
        seen = session.c.seen_time.desc(), session.c.create_time.desc(), session.c.id
        rows = transaction.all(mine.order_by(*seen).offset(MAX_SESSIONS))
        for row in rows:
            end(transaction, row.id)

    def find(self, state: Reading, text: str) -> Row[Any]:
        """The live session of a token, complete or not. Raises Unauthenticated."""
        token = tokens.parse(text, TokenKind.SESSION)
        row = self.live(state, token.id)
        if not tokens.matches(token, row.digest, self._token_key):
            raise tokens.refused()
        return row

    def live(self, state: Reading, session_id: str) -> Row[Any]:
        """The session with an id if it has not ended and its user is not locked, else refuse."""
        row = state.first(
            select(session)
            .join(user, user.c.id == session.c.user)
            .where(session.c.id == session_id, ~user.c.locked)
        )
        if row is None or not self.is_live(row):
            raise tokens.refused()
        return row

    def is_live(self, row: Row[Any]) -> bool:
        """Whether a session has begun, has not ended, and was used within half an hour."""
        return is_live(row, self._clock())

    def of(self, owner: str) -> list[Row[Any]]:
        """The live sessions of a user, the newest first."""
        mine = select(session).where(session.c.user == owner)
        with self._database.read() as state:
            rows = state.all(mine.order_by(session.c.create_time.desc(), session.c.id))
        return [row for row in rows if self.is_live(row)]

    def touch(self, session_id: str) -> None:
        """Note that a session is being used."""
        with self._database.write() as transaction:
            transaction.run(
                update(session).where(session.c.id == session_id).values(seen_time=self._clock())
            )

    def use(self, ids: Sequence[str]) -> None:
        """Note that sessions are used elsewhere; what is none, or has ended, stays as it is.

        Written for those whose last use was not noted for a while.
        """
        now = self._clock()
        with self._database.read() as state:
            rows = state.all(select(session).where(session.c.id.in_(ids))) if ids else []
        due = [row.id for row in rows if self.is_live(row) and now - row.seen_time >= NOTED_EVERY]
        if due:
            with self._database.write() as transaction:
                # Once more in here: one that has ended meanwhile does not live again.
                mine = session.c.id.in_(due) & (session.c.seen_time > now - IDLE)
                transaction.run(update(session).where(mine).values(seen_time=now))

    def principal_of(self, text: str) -> Principal:
        """Whose token this is, for the audit record of a call that needs no identity."""
        try:
            with self._database.read() as state:
                return Principal(PrincipalKind.USER, self.find(state, text).user)
        except Unauthenticated:
            return ANONYMOUS

    def end(self, owner: str, session_id: str) -> None:
        """End a session of a user; it stops to work before this returns. NotFound without one."""
        mine = session.c.id == session_id, session.c.user == owner
        with self._database.write() as transaction:
            if transaction.first(select(session.c.id).where(*mine)) is None:
                raise NotFound("you have no such session: see `appliance session list`")
            end(transaction, session_id)


def revoke_all(transaction: Transaction, owner: str) -> int:
    """End every session of a user, such as when it is locked; how many."""
    grants.end_all(transaction, Principal(PrincipalKind.USER, owner).subject)
    return transaction.run(delete(session).where(session.c.user == owner))
