"""Sessions of people: password, then second factor, then a new token that ends by itself.

Rules kept here:
* the first token can do nothing but finish the log-in, within ten minutes; completing or renewing a
  session gives a new token, and the one before stops to work;
* a session ends after 12 hours, or 30 minutes without use;
* an unknown user, a wrong password and a locked user get the same answer after the same work;
* every try is counted before it is verified (`attempts`);
* a locked user is refused at once, also in a live session.

The attack: guessing, replay, fixation (a token known before log-in must not be worth more after
it), finding out who exists. Called by the auth rpc; `credentials` looks sessions up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from appliance.control.auth import attempts, tokens
from appliance.control.auth.attempts import Attempts
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.tokens import TokenKind
from appliance.control.auth.totp import Totp
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.tables import session, user
from appliance.core.errors import FailedPrecondition, Unauthenticated
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind
from appliance.core.names import is_id

LIFETIME = timedelta(hours=12)
IDLE = timedelta(minutes=30)
PARTIAL_LIFETIME = timedelta(minutes=10)

COMPLETE = "COMPLETE"
VERIFY_TOTP = "VERIFY_TOTP"
ENROLL_TOTP = "ENROLL_TOTP"

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Started:
    """After the password: a token for the next step, and which step that is."""

    token: str = field(repr=False)
    step: str
    principal: Principal


@dataclass(frozen=True)
class Completed:
    """After the second factor: the token to use, when it ends, and new recovery codes if any."""

    token: str = field(repr=False)
    principal: Principal
    expire_time: datetime
    recovery_codes: list[str] = field(repr=False)


class Sessions:
    """Starts, completes, renews and ends sessions. `token_key` is the keyring's token key."""

    def __init__(  # noqa: PLR0913 - what a log-in is made of
        self,
        *,
        database: Database,
        passwords: Passwords,
        totp: Totp,
        attempts: Attempts,
        token_key: bytes,
        clock: Clock,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._totp = totp
        self._attempts = attempts
        self._token_key = token_key
        self._clock = clock

    def login(self, name: str, password: str, source: str) -> Started:
        """Check a password.

        Raises:
            Unauthenticated: one sentence for an unknown user, a wrong password and a locked user.
            Exhausted: too many tries for this name, or too many log-ins at this moment.
        """
        self._attempts.begin(name, self._clock())
        with self._database.read() as state:
            row = _user(state, name)
        right = self._passwords.verify(row.password_hash if row else None, password)
        if row is None or not right or row.locked:
            raise _wrong_login()
        renewed = (
            self._passwords.hash(password) if self._passwords.is_old(row.password_hash) else ""
        )
        with self._database.write() as transaction:
            if _is_locked(transaction, row.id):
                raise _wrong_login()
            if renewed:
                transaction.run(
                    update(user).where(user.c.id == row.id).values(password_hash=renewed)
                )
            enrolled = self._totp.is_enrolled(transaction, row.id)
            if not enrolled:
                # With an authenticator the count goes on until the code was right too.
                attempts.clear(transaction, row.id)
            step = VERIFY_TOTP if enrolled else ENROLL_TOTP
            token = self._open(transaction, row.id, step, PARTIAL_LIFETIME, source)
        return Started(token, step, Principal(PrincipalKind.USER, row.id))

    def enroll_totp(self, token: str) -> str:
        """Start to enrol an authenticator; the otpauth:// address, shown once.

        Raises FailedPrecondition when one is enrolled already.
        """
        with self._database.write() as transaction:
            row = self.find(transaction, token)
            if row.step != ENROLL_TOTP:
                raise FailedPrecondition("an authenticator is enrolled already: enter its code")
            return self._totp.begin(transaction, row.user, row.user, self._clock())

    def verify_totp(
        self, token: str, *, code: str = "", recovery_code: str = "", source: str = ""
    ) -> Completed:
        """Prove the second factor: end an enrolment or a log-in, or renew a live session.

        Raises:
            Unauthenticated: the token has ended, or the code is wrong or was used before.
            Exhausted: too many failed tries.
        """
        with self._database.read() as state:
            owner = self.find(state, token).user
        self._attempts.begin(owner, self._clock())
        with self._database.write() as transaction:
            row = self.find(transaction, token)
            if not self._prove(transaction, row, code, recovery_code):
                raise Unauthenticated(
                    "this code is wrong or was used before: wait for the next one, then try again"
                )
            attempts.clear(transaction, row.user)
            codes = self._totp.confirm(transaction, row.user) if row.step == ENROLL_TOTP else []
            transaction.run(delete(session).where(session.c.id == row.id))
            now = self._clock()
            ends = row.expire_time if row.step == COMPLETE else now + LIFETIME
            text = self._open(transaction, row.user, COMPLETE, ends - now, source, mfa_time=now)
        return Completed(text, Principal(PrincipalKind.USER, row.user), ends, codes)

    def _prove(
        self, transaction: Transaction, row: Row[Any], code: str, recovery_code: str
    ) -> bool:
        if code or row.step == ENROLL_TOTP:
            return self._totp.verify(transaction, row.user, code, self._clock())
        return self._totp.use_recovery_code(transaction, row.user, recovery_code)

    def _open(  # noqa: PLR0913 - the columns of one row
        self,
        transaction: Transaction,
        owner: str,
        step: str,
        lifetime: timedelta,
        source: str,
        mfa_time: datetime | None = None,
    ) -> str:
        now = self._clock()
        minted = tokens.mint(TokenKind.SESSION, self._token_key)
        transaction.run(delete(session).where(session.c.expire_time <= now))
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
            )
        )
        return minted.text

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
        now = self._clock()
        if row is None or now >= row.expire_time or now >= row.seen_time + IDLE:
            raise tokens.refused()
        return row

    def touch(self, session_id: str) -> None:
        """Note that a session is being used."""
        with self._database.write() as transaction:
            transaction.run(
                update(session).where(session.c.id == session_id).values(seen_time=self._clock())
            )

    def principal_of(self, text: str) -> Principal:
        """Whose token this is, for the audit record of a call that needs no identity."""
        try:
            with self._database.read() as state:
                return Principal(PrincipalKind.USER, self.find(state, text).user)
        except Unauthenticated:
            return ANONYMOUS

    def logout(self, session_id: str) -> None:
        """End a session; it stops to work before this returns."""
        with self._database.write() as transaction:
            transaction.run(delete(session).where(session.c.id == session_id))


def revoke_all(transaction: Transaction, owner: str) -> int:
    """End every session of a user, such as when it is locked; how many."""
    return transaction.run(delete(session).where(session.c.user == owner))


def _user(state: Reading, name: str) -> Row[Any] | None:
    return state.first(select(user).where(user.c.id == name)) if is_id(name) else None


def _is_locked(state: Reading, owner: str) -> bool:
    return bool(state.value(select(user.c.locked).where(user.c.id == owner)))


def _wrong_login() -> Unauthenticated:
    return Unauthenticated("the user or the password is wrong: check both, then try again")
