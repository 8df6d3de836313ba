"""From what a caller presents to who it is: bearer tokens of people and applications.

Rules kept here:
* every call looks the credential up in the database, and an open stream again and again: one that
  has ended, was revoked or is locked is refused at the next look;
* a session without its second factor identifies nobody, one whose password must be replaced only
  where the rule of the call says so;
* a session or token that says it was made in the future is not believed;
* a proof of the second factor is fresh for five minutes; applications never have one;
* the use of a session is noted at most once a minute, that of a token once an hour, so that
  identifying is a read, not a write.

The attack: a stolen, ended, half-finished or foreign token. Called by the gate and, for the view of
the gateways, by the routing service.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.control.auth import grants, service_tokens, tokens
from appliance.control.auth.moments import TOLERANCE, believed
from appliance.control.auth.sessions import (
    CHANGE_PASSWORD,
    COMPLETE,
    NOTED_EVERY,
    Clock,
    Sessions,
)
from appliance.control.auth.tokens import TokenKind
from appliance.control.store.database import Database, Reading
from appliance.control.store.tables import service_account, session, token, user
from appliance.core.errors import MfaRequired, PasswordChangeRequired, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind, parse_subject

SCHEME = "Bearer "
FRESH = timedelta(minutes=5)


@dataclass(frozen=True)
class ProvenIdentity:
    """Who a credential proves. Holds no secret.

    `credential` is the id of the session or token; `mfa_time` is None for applications. `upload` is
    the uid of the one upload that a token of an upload is for; empty for all others.
    """

    principal: Principal
    credential: str
    expire_time: datetime
    mfa_time: datetime | None = None
    upload: str = ""


@dataclass(frozen=True)
class LiveCredential:
    """What a gateway needs to recognise a bearer token: its id and the digest of its secret."""

    id: str
    digest: bytes
    principal: Principal
    expire_time: datetime


def fresh_mfa(mfa_time: datetime | None, now: datetime) -> bool:
    """Whether a second factor was proved within the last five minutes."""
    return mfa_time is not None and believed(mfa_time, now) and now - mfa_time <= FRESH


def check_shape(authorization: str) -> tokens.Parsed:
    """The bearer token in this `authorization` metadata, which may still be nobody's.

    Raises Unauthenticated when it is no token of a person, an application or an upload. Pure.
    """
    if not authorization.startswith(SCHEME):
        raise Unauthenticated("log in first: this call needs a bearer token")
    text = authorization.removeprefix(SCHEME)
    return tokens.parse(text, TokenKind.SESSION, TokenKind.SERVICE, TokenKind.UPLOAD)


class Credentials:
    """Identifies callers by bearer token."""

    def __init__(
        self, *, database: Database, sessions: Sessions, token_key: bytes, clock: Clock
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._token_key = token_key
        self._clock = clock
        self._lock = threading.Lock()
        self._noting: set[str] = set()
        """Tokens whose use is being written now."""

    def identify(
        self, authorization: str, *, unfinished: bool = False, granted: bool = False
    ) -> ProvenIdentity:
        """Who presents this `authorization` metadata, `Bearer sla_…`.

        Args:
            authorization: as it came.
            unfinished: whether a session that must replace its password first is taken.
            granted: whether the token of an upload is taken.

        Raises:
            Unauthenticated: it is no live token.
            MfaRequired: the session still needs its second factor.
            PasswordChangeRequired: it still needs a new password.
        """
        presented = check_shape(authorization)
        if presented.kind is TokenKind.UPLOAD and not granted:
            raise tokens.refused()
        if presented.kind is TokenKind.UPLOAD:
            with self._database.read() as state:
                row = grants.find(state, presented, self._token_key, self._clock())
            # Its session is in use too: it must not end for want of other calls.
            self.use([row.grant_session])
            return _of_upload(row)
        with self._database.read() as state:
            if presented.kind is TokenKind.SERVICE:
                row = self._service_token(state, presented.id)
                if not tokens.matches(presented, row.digest, self._token_key):
                    raise tokens.refused()
            else:
                found = self._sessions.find(state, authorization.removeprefix(SCHEME))
        if presented.kind is TokenKind.SERVICE:
            if service_tokens.is_use_due(row, self._clock()):
                self._note_token(row.id)
            return _of_token(row)
        if self._clock() - found.seen_time >= NOTED_EVERY:
            self._sessions.touch(found.id)
        return _of_session(found, unfinished=unfinished)

    def use(self, ids: Sequence[str]) -> None:
        """Note that sessions and tokens are used at a gateway; what is neither stays out."""
        self._sessions.use(ids)
        service_tokens.note_uses(self._database, ids, self._clock())

    def _note_token(self, token_id: str) -> None:
        """Note a use once, however many calls come at the same time."""
        with self._lock:
            if token_id in self._noting:
                return
            self._noting.add(token_id)
        try:
            service_tokens.note_uses(self._database, [token_id], self._clock())
        finally:
            with self._lock:
                self._noting.discard(token_id)

    def check(self, state: Reading, principal: Principal, credential: str) -> None:
        """Raise Unauthenticated unless a session or token is live and complete, as `state` has it.

        For a change that gives away something new: whoever called was identified before the
        transaction, and the credential may have ended since.
        """
        if principal.kind is PrincipalKind.SERVICE_ACCOUNT:
            _of_token(self._service_token(state, credential))
        else:
            _of_session(self._sessions.live(state, credential))

    def live(self, known: Mapping[str, LiveCredential] | None = None) -> list[LiveCredential]:
        """Every complete session and every token whose owner is not locked, by id.

        Of `known`, by id, what still says the same is returned itself.
        """
        known, now = known or {}, self._clock()
        with self._database.read() as state:
            people = state.all(
                select(session)
                .join(user, user.c.id == session.c.user)
                .where(
                    ~user.c.locked,
                    session.c.step == COMPLETE,
                )
            )
            applications = state.all(
                select(token)
                .join(service_account, service_account.c.id == token.c.service_account)
                .where(
                    ~service_account.c.locked,
                    token.c.expire_time > now,
                    token.c.create_time <= now + TOLERANCE,
                )
            )
        people = [row for row in people if self._sessions.is_live(row)]
        found: list[LiveCredential] = []
        for rows, proves in ((people, _of_session), (applications, _of_token)):
            for row in rows:
                old = known.get(row.id)
                if old is None or (old.digest, old.expire_time) != (row.digest, row.expire_time):
                    proof = proves(row)
                    old = LiveCredential(row.id, row.digest, proof.principal, proof.expire_time)
                found.append(old)
        return sorted(found, key=lambda credential: credential.id)

    def _service_token(self, state: Reading, token_id: str) -> Row[Any]:
        row = state.first(
            select(token)
            .join(service_account, service_account.c.id == token.c.service_account)
            .where(token.c.id == token_id, ~service_account.c.locked)
        )
        now = self._clock()
        if row is None or not believed(row.create_time, now) or now >= row.expire_time:
            raise tokens.refused()
        return row


def _of_session(row: Row[Any], *, unfinished: bool = False) -> ProvenIdentity:
    if row.step == CHANGE_PASSWORD and not unfinished:
        raise PasswordChangeRequired(
            "this session can only choose a new password: do that first, with "
            "`appliance password change`"
        )
    if row.step not in (COMPLETE, CHANGE_PASSWORD):
        raise MfaRequired("the second factor is missing: enter the code of the authenticator")
    principal = Principal(PrincipalKind.USER, row.user)
    return ProvenIdentity(principal, row.id, row.expire_time, row.mfa_time)


def _of_token(row: Row[Any]) -> ProvenIdentity:
    principal = Principal(PrincipalKind.SERVICE_ACCOUNT, row.service_account)
    return ProvenIdentity(principal, row.id, row.expire_time)


def _of_upload(row: Row[Any]) -> ProvenIdentity:
    return ProvenIdentity(
        parse_subject(row.principal), row.grant_id, row.expire_time, upload=row.uid
    )
