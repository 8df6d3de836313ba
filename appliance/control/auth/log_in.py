"""Log-in: password, then second factor, then a session; and the change of one's own password.

Rules kept here:
* the first token can do nothing but finish the log-in, within ten minutes; completing or renewing a
  session gives a new token, and the one before stops to work;
* an unknown user, a wrong password and a locked user get the same answer after the same work;
* every try of a password is counted before it is verified (`attempts`): in the counter of the
  device when that is known, of whoever holds a recovery code, or of all unknown devices together;
* five wrong codes or passwords in a row end the session in which they were tried; in a log-in each
  wrong code counts as a failed log-in too. A live session can prove its second factor whatever was
  counted for its user;
* a password that somebody else chose must be replaced before the session can do anything else.

The attack: guessing, replay, fixation (a token known before log-in must not be worth more after
it), finding out who exists, keeping somebody out by guessing wrongly. Called by the auth rpc, which
has the password verified in its turn between `begin` and `finish`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.control.auth import attempts, devices, grants, sessions, tokens
from appliance.control.auth.attempts import Reserved
from appliance.control.auth.sessions import (
    CHANGE_PASSWORD,
    COMPLETE,
    ENROLL_TOTP,
    LIFETIME,
    VERIFY_TOTP,
    Clock,
    Sessions,
    revoke_all,
)
from appliance.control.auth.tokens import TokenKind
from appliance.control.auth.totp import Totp
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.tables import session, user
from appliance.core.errors import FailedPrecondition, InvalidInput, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import is_id

PARTIAL_LIFETIME = timedelta(minutes=10)
TRIES = 5


@dataclass(frozen=True)
class PendingLogIn:
    """A log-in or a change of password whose password is still to be verified.

    Attributes:
        owner: the user; empty when there is none of that name.
        stored: the hash to verify against; None when there is no such user.
        lane: in which line it waits for its turn.
        reserved: the try that was counted; None in a live session, which counts for itself.
        session: id of the live session; empty in a log-in.
    """

    owner: str
    stored: str | None = field(repr=False)
    lane: str
    reserved: Reserved | None = None
    session: str = ""

    @property
    def known(self) -> bool:
        """Whether a device, a recovery code or a live session speaks for whoever tries."""
        return self.lane.startswith(("device:", "recovery:", "session:"))

    @property
    def counted_for(self) -> str:
        """What kind of counter a try counts in, for the audit record; never a name."""
        kind = self.lane.partition(":")[0]
        return {"device": "known device", "recovery": "recovery code"}.get(kind, "unknown device")


@dataclass(frozen=True)
class Started:
    """After the password: a token for the next step, and which step that is."""

    token: str = field(repr=False)
    step: str
    principal: Principal


@dataclass(frozen=True)
class Completed:
    """After a proof: the token to use, what it still needs, when it ends.

    `device_token` is empty when the device was known, `recovery_codes` unless an authenticator was
    enrolled.
    """

    token: str = field(repr=False)
    principal: Principal
    step: str
    expire_time: datetime
    device_token: str = field(default="", repr=False)
    recovery_codes: list[str] = field(default_factory=list, repr=False)


class LogIn:
    """Starts and completes log-ins, changes passwords. `token_key` is the keyring's token key."""

    def __init__(
        self,
        *,
        database: Database,
        sessions: Sessions,
        totp: Totp,
        token_key: bytes,
        clock: Clock,
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._totp = totp
        self._token_key = token_key
        self._clock = clock

    def begin(self, name: str, *, device_token: str = "", recovery_code: str = "") -> PendingLogIn:
        """Count a log-in before its password is verified.

        Raises Exhausted when there were too many tries; then it is not counted.
        """
        now = self._clock()
        with self._database.write() as transaction:
            row = _user(transaction, name)
            owner = row.id if row else ""
            counter = self._counter(transaction, name, owner, device_token, recovery_code, now)
            reserved = attempts.reserve(transaction, counter, now)
            return PendingLogIn(owner, row.password_hash if row else None, counter, reserved)

    def _counter(  # noqa: PLR0913 - what a log-in shows
        self,
        state: Reading,
        name: str,
        owner: str,
        device_token: str,
        recovery_code: str,
        now: datetime,
    ) -> str:
        """Where a log-in counts. Both look-ups happen for a name that nobody has, too."""
        device = devices.find(state, device_token, owner, self._token_key, now)
        if device:
            return attempts.device_counter(device)
        if self._totp.holds_recovery_code(state, owner, recovery_code):
            return attempts.recovery_counter(owner)
        return attempts.shared_counter(state, name, self._token_key)

    def release(self, begun: PendingLogIn) -> None:
        """Give a try back whose password was never verified."""
        with self._database.write() as transaction:
            if begun.reserved is not None:
                attempts.release(transaction, begun.reserved)
            elif begun.session:
                mine = session.c.id == begun.session
                fewer = update(session).where(mine, session.c.failures > 0)
                transaction.run(fewer.values(failures=session.c.failures - 1))

    def finish(
        self, begun: PendingLogIn, source: str, *, right: bool, renewed: str = ""
    ) -> Started:
        """Go on after the password was verified; `renewed` is its hash by newer parameters.

        Raises Unauthenticated with one sentence for an unknown user, a wrong password and a locked
        user.
        """
        with self._database.write() as transaction:
            row = _user(transaction, begun.owner)
            # Whoever changed or locked meanwhile is not let in by what was verified before.
            same = row is not None and row.password_hash == begun.stored and not row.locked
            if row is None or begun.reserved is None or not (right and same):
                raise _wrong_login()
            if renewed:
                changed = update(user).where(user.c.id == row.id)
                transaction.run(changed.values(password_hash=renewed))
            enrolled = self._totp.is_enrolled(transaction, row.id)
            counter = begun.reserved.counter
            if not enrolled:
                # With an authenticator the count goes on until the code was right too.
                attempts.clear(transaction, counter)
            step = VERIFY_TOTP if enrolled else ENROLL_TOTP
            token = self._sessions.open(
                transaction, row.id, step, PARTIAL_LIFETIME, source, counter=counter
            )
        return Started(token, step, Principal(PrincipalKind.USER, row.id))

    def enroll_totp(self, token: str) -> str:
        """Start to enrol an authenticator; the otpauth:// address, shown once.

        Raises FailedPrecondition when one is enrolled already.
        """
        with self._database.write() as transaction:
            row = self._sessions.find(transaction, token)
            if row.step != ENROLL_TOTP:
                raise FailedPrecondition("an authenticator is enrolled already: enter its code")
            return self._totp.begin(transaction, row.user, row.user, self._clock())

    def verify_totp(
        self, token: str, *, code: str = "", recovery_code: str = "", source: str = ""
    ) -> Completed:
        """Prove the second factor: end an enrolment or a log-in, or renew a live session.

        Raises Unauthenticated: the token has ended, or the code is wrong or was used before.
        """
        with self._database.read() as state:
            self._sessions.find(state, token)  # A stranger's text does not reach the one writer.
        with self._database.write() as transaction:
            row = self._sessions.find(transaction, token)
            if self._prove(transaction, row, code, recovery_code):
                return self._complete(transaction, row, source)
            left = self._count_wrong(transaction, row)
        if left:
            raise Unauthenticated(
                "this code is wrong or was used before: wait for the next one, then try again"
            )
        raise _ended()

    def _prove(
        self, transaction: Transaction, row: Row[Any], code: str, recovery_code: str
    ) -> bool:
        if code or row.step == ENROLL_TOTP:
            return self._totp.verify(transaction, row.user, code, self._clock())
        return self._totp.use_recovery_code(transaction, row.user, recovery_code)

    def _count_wrong(self, transaction: Transaction, row: Row[Any]) -> bool:
        """Count a wrong code; whether the session may try again, or has ended."""
        if row.counter and row.step in (VERIFY_TOTP, ENROLL_TOTP):
            attempts.count(transaction, row.counter, self._clock())
        mine = session.c.id == row.id
        if row.failures + 1 >= TRIES:
            sessions.end(transaction, row.id)
            return False
        transaction.run(update(session).where(mine).values(failures=row.failures + 1))
        return True

    def _complete(self, transaction: Transaction, row: Row[Any], source: str) -> Completed:
        """The session after a proof, in place of the one before."""
        now, begins = self._clock(), row.step in (VERIFY_TOTP, ENROLL_TOTP)
        codes = self._totp.confirm(transaction, row.user) if row.step == ENROLL_TOTP else []
        transaction.run(delete(session).where(session.c.id == row.id))
        step, ends, device_token = row.step, row.expire_time, ""
        if begins:
            attempts.clear(transaction, row.counter)
            device_token = self._remember_device(transaction, row, now)
            must_change = transaction.value(select(user.c.must_change).where(user.c.id == row.user))
            step = CHANGE_PASSWORD if must_change else COMPLETE
            ends = now + (PARTIAL_LIFETIME if must_change else LIFETIME)
        text = self._sessions.open(
            transaction, row.user, step, ends - now, source, mfa_time=now, counter=row.counter
        )
        grants.move(transaction, row.id, tokens.parse(text, TokenKind.SESSION).id)
        owner = Principal(PrincipalKind.USER, row.user)
        return Completed(text, owner, step, ends, device_token, codes)

    def _remember_device(self, transaction: Transaction, row: Row[Any], now: datetime) -> str:
        """Know the device of a log-in from now on; its token, if it was not known before."""
        kind, _, device = row.counter.partition(":")
        if kind == "device" and devices.renew(transaction, device, now):
            return ""
        return devices.remember(transaction, row.user, self._token_key, now)

    def begin_change(self, session_id: str) -> PendingLogIn:
        """Count a try of the present password in a live session, before it is verified."""
        with self._database.write() as transaction:
            row = self._sessions.live(transaction, session_id)
            found = _user(transaction, row.user)
            if found is None:
                raise tokens.refused()
            left = row.failures < TRIES
            mine = session.c.id == row.id
            if left:
                transaction.run(update(session).where(mine).values(failures=row.failures + 1))
            else:
                sessions.end(transaction, row.id)
        if not left:
            raise _ended()
        return PendingLogIn(row.user, found.password_hash, f"session:{row.id}", session=row.id)

    def refuse_change(self, begun: PendingLogIn) -> Exception:
        """What to raise when the present password was wrong; the fifth time the session ends."""
        with self._database.write() as transaction:
            worn_out = session.c.id == begun.session, session.c.failures >= TRIES
            ended = transaction.first(select(session.c.id).where(*worn_out)) is not None
            if ended:
                sessions.end(transaction, begun.session)
        if ended:
            return _ended()
        wrong = "it is not your present password: enter that, then the new one"
        return InvalidInput(f"password: {wrong}", fields={"password": wrong})

    def finish_change(self, begun: PendingLogIn, hashed: str, source: str) -> Completed:
        """Replace the password that was verified by the one with the hash `hashed`.

        Every session of the user ends and every device is forgotten; this one goes on under a new
        token.
        """
        with self._database.write() as transaction:
            row = self._sessions.live(transaction, begun.session)
            changed = update(user).where(
                user.c.id == row.user, user.c.password_hash == begun.stored
            )
            if transaction.run(changed.values(password_hash=hashed, must_change=False)) == 0:
                raise FailedPrecondition(
                    "the password was changed by somebody else meanwhile: log in again"
                )
            revoke_all(transaction, row.user)
            devices.forget_all(transaction, row.user)
            now = self._clock()
            token = devices.remember(transaction, row.user, self._token_key, now)
            ends = now + LIFETIME if row.step == CHANGE_PASSWORD else row.expire_time
            text = self._sessions.open(
                transaction, row.user, COMPLETE, ends - now, source, mfa_time=row.mfa_time
            )
        return Completed(text, Principal(PrincipalKind.USER, row.user), COMPLETE, ends, token)


def _user(state: Reading, name: str) -> Row[Any] | None:
    return state.first(select(user).where(user.c.id == name)) if is_id(name) else None


def _wrong_login() -> Unauthenticated:
    return Unauthenticated("the user or the password is wrong: check both, then try again")


def _ended() -> Unauthenticated:
    return Unauthenticated("too many wrong tries: this session has ended; log in again")
