"""People: created with a first password, locked, deleted; new passwords and second factors.

Rules kept here:
* a password is hashed before the transaction, never stored, never part of what is compared when a
  request is repeated;
* a password that somebody else chose must be replaced at the next log-in;
* locking and resetting end every session and forget every device in the same transaction; the last
  administrator is neither locked nor loses the second factor;
* who resets what proves another person could become that person: it is refused for somebody who may
  do more (`auth.escalation`);
* who deletes somebody takes their roles away, and lets the name be used again: it is refused for
  oneself, for somebody who may do more, and for the last administrator. Nothing is left that the
  name opened; what the person made goes on, and the answer names it, as it does when one is locked;
* nobody resets their own password: who finds a session open would replace a password that they do
  not know. `AuthService.ChangePassword` asks for the present one;
* unlocking, and a new password, clear the count of failed tries.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from appliance.api.access.v1 import user_pb2, user_service_pb2
from appliance.control.auth import attempts, devices, sessions
from appliance.control.auth.escalation import check_acts_as
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.totp import Totp
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.access.bindings import guard_last_administrator
from appliance.control.services.access.leaving import leave
from appliance.control.services.access.principal_details import details_of
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.common.updates import (
    changed_fields,
    check_description,
    check_etag,
    etag_of,
)
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists, FailedPrecondition
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.crypto.signing import hmac_sha256

_CHANGEABLE = ("description",)
_M = TypeVar("_M", user_service_pb2.CreateUserRequest, user_service_pb2.ResetPasswordRequest)


class Users:
    """Manages people. `payload_key` keys the digest of a first password in a repeated request."""

    def __init__(  # noqa: PLR0913  # what a person touches
        self,
        *,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        passwords: Passwords,
        totp: Totp,
        payload_key: bytes,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._passwords = passwords
        self._totp = totp
        self._payload_key = payload_key
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, request: user_service_pb2.GetUserRequest) -> user_pb2.User:
        """One person."""
        with self._database.read() as state:
            found = _read(state, Name.parse(request.name, "user").id)
            if request.view == user_service_pb2.USER_VIEW_FULL:
                self._add_details(state, caller, found)
            return found

    def list(
        self, caller: Caller, request: user_service_pb2.ListUsersRequest
    ) -> user_service_pb2.ListUsersResponse:
        """One page of people, by name."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = tables.user.select().order_by(tables.user.c.id).limit(size + 1)
        if after is not None:
            wanted = wanted.where(tables.user.c.id > after[0])
        with self._database.read() as state:
            rows = state.all(wanted)
            enrolled = _enrolled(state, [row.id for row in rows])
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return user_service_pb2.ListUsersResponse(
            users=[_resource(row, row.id in enrolled) for row in page], next_page_token=token
        )

    def check_create(self, request: user_service_pb2.CreateUserRequest) -> None:
        """Check a request before its password is hashed."""
        identifier = names.check_id(request.user_id, "user_id")
        self._passwords.check_new(request.password, identifier)
        check_description(request.description, "description")

    def create(
        self, caller: Caller, request: user_service_pb2.CreateUserRequest, hashed: str
    ) -> user_pb2.User:
        """A new person with a first password, of which `hashed` is the hash."""

        def work(transaction: Transaction) -> user_pb2.User:
            # Roles may wait for this name; whoever chooses the password could use them.
            other = Principal(PrincipalKind.USER, request.user_id)
            policy = self._policies.current()
            check_acts_as(policy, self._policies.roles, caller.principal, other)
            return self.add(transaction, request.user_id, hashed, description=request.description)

        payload = self._without_password(request)
        return self._changes.make(caller, request, user_pb2.User, work, payload=payload)

    def add(
        self,
        transaction: Transaction,
        identifier: str,
        hashed: str,
        *,
        must_change: bool = True,
        description: str = "",
    ) -> user_pb2.User:
        """Store a person whose password is hashed already; also for `init`."""
        if transaction.first(tables.user.select().where(tables.user.c.id == identifier)):
            name = names.user(identifier)
            raise AlreadyExists(f"{name} exists already: choose another id", name=name)
        transaction.run(
            tables.user.insert().values(
                id=identifier,
                password_hash=hashed,
                locked=False,
                create_time=self._clock(),
                must_change=must_change,
                description=description,
            )
        )
        return _read(transaction, identifier)

    def update(self, caller: Caller, request: user_service_pb2.UpdateUserRequest) -> user_pb2.User:
        """Describe a person. Raises NotFound, InvalidInput, Conflict."""
        asked = request.user
        identifier = Name.parse(asked.name, "user", field="user.name").id
        changed = changed_fields(request, _CHANGEABLE)
        values = {field: getattr(asked, field) for field in changed}
        check_description(asked.description, "user.description")

        def work(transaction: Transaction) -> user_pb2.User:
            check_etag(asked.etag, _read(transaction, identifier).etag, asked.name)
            this = tables.user.c.id == identifier
            transaction.run(tables.user.update().where(this).values(**values))
            return _read(transaction, identifier)

        return self._changes.make(caller, request, user_pb2.User, work)

    def delete(
        self, caller: Caller, request: user_service_pb2.DeleteUserRequest
    ) -> user_service_pb2.DeleteUserResponse:
        """Delete a person: sessions end before this returns, and the name comes free.

        Raises NotFound, Conflict; FailedPrecondition for oneself and for the last administrator;
        Denied for somebody who may do more than the caller.
        """
        person = Principal(PrincipalKind.USER, Name.parse(request.name, "user").id)

        def work(transaction: Transaction) -> user_service_pb2.DeleteUserResponse:
            found = _read(transaction, person.id)
            if caller.principal == person:
                raise FailedPrecondition("this is you: have another administrator delete you")
            check_etag(request.etag, found.etag, request.name)
            self._check_may_reset(transaction, caller, person.id)
            guard_last_administrator(transaction, person)
            attempts.clear_account(transaction, person.id)
            end_log_ins_in(transaction, person.id)
            # After that: what ends with the person is not what goes on.
            self._add_details(transaction, caller, found)
            transaction.run(tables.user.delete().where(tables.user.c.id == person.id))
            leave(transaction, self._policies, person)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return user_service_pb2.DeleteUserResponse(user=found)

        answer = user_service_pb2.DeleteUserResponse
        return self._changes.make(caller, request, answer, work)

    def lock(self, caller: Caller, request: user_service_pb2.LockUserRequest) -> user_pb2.User:
        """Lock a person out: sessions end before this returns."""
        identifier = Name.parse(request.name, "user").id

        def work(transaction: Transaction) -> user_pb2.User:
            _read(transaction, identifier)
            guard_last_administrator(transaction, Principal(PrincipalKind.USER, identifier))
            self._set_locked(transaction, identifier, locked=True)
            end_log_ins_in(transaction, identifier)
            found = _read(transaction, identifier)
            self._add_details(transaction, caller, found)
            return found

        return self._changes.make(caller, request, user_pb2.User, work)

    def unlock(self, caller: Caller, request: user_service_pb2.UnlockUserRequest) -> user_pb2.User:
        """Let a person in again and forget the failed tries."""
        identifier = Name.parse(request.name, "user").id

        def work(transaction: Transaction) -> user_pb2.User:
            _read(transaction, identifier)
            self._set_locked(transaction, identifier, locked=False)
            attempts.clear_account(transaction, identifier)
            return _read(transaction, identifier)

        return self._changes.make(caller, request, user_pb2.User, work)

    def check_reset(self, caller: Caller, request: user_service_pb2.ResetPasswordRequest) -> None:
        """Check a request before its password is hashed."""
        identifier = Name.parse(request.name, "user").id
        _check_another(caller, identifier)
        self._passwords.check_new(request.password, identifier)
        with self._database.read() as state:
            self._check_may_reset(state, caller, identifier)

    def reset_password(
        self, caller: Caller, request: user_service_pb2.ResetPasswordRequest, hashed: str
    ) -> user_pb2.User:
        """Give a person a password, of which `hashed` is the hash, for the next log-in alone."""
        identifier = Name.parse(request.name, "user").id

        def work(transaction: Transaction) -> user_pb2.User:
            _check_another(caller, identifier)
            self._check_may_reset(transaction, caller, identifier)
            changed = tables.user.update().where(tables.user.c.id == identifier)
            transaction.run(changed.values(password_hash=hashed, must_change=True))
            attempts.clear_account(transaction, identifier)
            self._end_everything(transaction, identifier)
            return _read(transaction, identifier)

        payload = self._without_password(request)
        return self._changes.make(caller, request, user_pb2.User, work, payload=payload)

    def reset_factor(
        self, caller: Caller, request: user_service_pb2.ResetFactorRequest
    ) -> user_pb2.User:
        """Take a person's authenticator and recovery codes away."""
        identifier = Name.parse(request.name, "user").id

        def work(transaction: Transaction) -> user_pb2.User:
            self._check_may_reset(transaction, caller, identifier)
            guard_last_administrator(transaction, Principal(PrincipalKind.USER, identifier))
            self._totp.reset(transaction, identifier)
            self._end_everything(transaction, identifier)
            return _read(transaction, identifier)

        return self._changes.make(caller, request, user_pb2.User, work)

    def end_sessions(
        self, caller: Caller, request: user_service_pb2.EndUserSessionsRequest
    ) -> user_service_pb2.EndUserSessionsResponse:
        """End every session of a person; devices stay known."""
        identifier = Name.parse(request.name, "user").id

        def work(transaction: Transaction) -> user_service_pb2.EndUserSessionsResponse:
            _read(transaction, identifier)
            ended = sessions.revoke_all(transaction, identifier)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return user_service_pb2.EndUserSessionsResponse(sessions=ended)

        answer = user_service_pb2.EndUserSessionsResponse
        return self._changes.make(caller, request, answer, work)

    def _add_details(self, state: Reading, caller: Caller, found: user_pb2.User) -> None:
        person = Principal(PrincipalKind.USER, Name.parse(found.name, "user").id)
        policy, now = self._policies.current(), self._clock()
        details = details_of(state, policy, caller.principal, person, now)
        found.details.CopyFrom(details)

    def _check_may_reset(self, state: Reading, caller: Caller, identifier: str) -> None:
        _read(state, identifier)
        policy, other = self._policies.current(), Principal(PrincipalKind.USER, identifier)
        check_acts_as(policy, self._policies.roles, caller.principal, other)

    def _end_everything(self, transaction: Transaction, identifier: str) -> None:
        end_log_ins_in(transaction, identifier)
        transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))

    def _without_password(self, request: _M) -> _M:
        """What is compared when a request is repeated: a keyed digest instead of the password."""
        payload = type(request)()
        payload.CopyFrom(request)
        digest = hmac_sha256(self._payload_key, request.password.encode())
        payload.password = digest.hex()
        return payload

    def _set_locked(self, transaction: Transaction, identifier: str, *, locked: bool) -> None:
        transaction.run(
            tables.user.update().where(tables.user.c.id == identifier).values(locked=locked)
        )
        transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))


def _check_another(caller: Caller, identifier: str) -> None:
    if caller.principal == Principal(PrincipalKind.USER, identifier):
        raise FailedPrecondition("this is you: use `appliance password change`")


def end_log_ins_in(transaction: Transaction, identifier: str) -> None:
    """End every session of a person and forget every device: what was proved there is void."""
    sessions.revoke_all(transaction, identifier)
    devices.forget_all(transaction, identifier)


def _read(state: Reading, identifier: str) -> user_pb2.User:
    row = state.first(tables.user.select().where(tables.user.c.id == identifier))
    if row is None:
        raise missing(names.user(identifier))
    return _resource(row, bool(_enrolled(state, [identifier])))


def _enrolled(state: Reading, users: list[str]) -> set[str]:
    totp = tables.totp
    return {
        row.user for row in state.all(totp.select().where(totp.c.user.in_(users), totp.c.confirmed))
    }


def _resource(row: Any, enrolled: bool) -> user_pb2.User:  # noqa: ANN401, FBT001  # a row of SQLAlchemy
    return user_pb2.User(
        name=names.user(row.id),
        locked=row.locked,
        totp_enrolled=enrolled,
        create_time=timestamp(row.create_time),
        must_change_password=row.must_change,
        description=row.description,
        etag=etag_of(row.locked, row.must_change, row.description, str(row.create_time)),
    )
