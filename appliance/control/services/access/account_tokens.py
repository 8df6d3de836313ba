"""Bearer tokens of applications: made, replaced, listed, ended.

Rules kept here:
* a token is shown once; revoked, it stops to work before the call returns;
* who makes one, or puts one in the place of another, could act as the application, so he holds all
  that it holds, and has just proved the second factor: an application makes none, not for itself
  either, or a stolen token would live for ever;
* a new one lives as long as it is asked to, 90 days at most, whatever it replaces.

The attack: a stolen token that renews itself; a right that is gained by making a token. Called by
`rpc.service_accounts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from appliance.api.access.v1 import service_account_pb2
from appliance.api.access.v1 import service_account_service_pb2 as rpc
from appliance.control.auth import escalation, scopes, service_tokens
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.auth.service_tokens import NewToken
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.access.account_rows import account_row, token_resource
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import check_still_there
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name, is_id
from appliance.core.problems import Problems
from appliance.core.values import given

Token = service_account_pb2.Token
MAX_UNUSED_DAYS = 3650
_token = tables.token.c
_account = tables.service_account.c


class AccountTokens:
    """Makes, replaces, lists and ends tokens. `token_key` is the keyring's token key."""

    def __init__(
        self,
        database: Database,
        policies: PolicyStore,
        token_key: bytes,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._policies = policies
        self._token_key = token_key
        self._events = events
        self._clock = clock

    def list(self, caller: Caller, request: rpc.ListTokensRequest) -> rpc.ListTokensResponse:
        """One page of live tokens, by application. Raises InvalidInput, NotFound."""
        del caller
        now, size = self._clock(), paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str, str)
        wanted = select(tables.token).join_from(
            tables.token, tables.service_account, _token.service_account == _account.id
        )
        wanted = wanted.where(_token.expire_time > now, *_chosen(request, now))
        if after is not None:
            account, identifier = after
            later = (_token.service_account == account) & (_token.id > identifier)
            wanted = wanted.where((_token.service_account > account) | later)
        domain = scopes.parse(request.scope, "scope")
        if domain != EVERYWHERE:
            wanted = wanted.where(_account.project == domain)
        with self._database.read() as state:
            if is_id(domain):
                check_project(state, domain)
            ordered = wanted.order_by(_token.service_account, _token.id)
            rows = state.all(ordered.limit(size + 1))
            replaced = _replaced_by(state, {row.service_account for row in rows})
        page, token = paging.cut(rows, size, lambda row: (row.service_account, row.id))
        return rpc.ListTokensResponse(
            tokens=[token_resource(row, replaced.get(row.id, "")) for row in page],
            next_page_token=token,
        )

    def create(self, caller: Caller, request: rpc.CreateTokenRequest) -> rpc.CreateTokenResponse:
        """A new bearer token, shown once. Raises InvalidInput for days that it cannot live."""
        _check(request)
        with self._database.write() as transaction:
            row = account_row(transaction, request.name)
            check_still_there(transaction, caller)
            self._check_acts_as(caller, row.id)
            made = service_tokens.create(
                transaction,
                self._token_key,
                row.id,
                given(request, "lifetime_days"),
                self._clock(),
                creator=caller.principal.name,
            )
            transaction.after_commit(lambda: self._events.publish(ROUTING))
        return rpc.CreateTokenResponse(
            token=made.text, metadata=_new_resource(made, row.id, caller.principal.name)
        )

    def rotate(self, caller: Caller, request: rpc.RotateTokenRequest) -> rpc.RotateTokenResponse:
        """A new token in the place of another one, which goes on for an overlap.

        Raises InvalidInput for an overlap or a lifetime that cannot be; NotFound when the
        application has no such token; FailedPrecondition when that was replaced already, or two
        others live.
        """
        _check(request)
        overlap, now = timedelta(hours=given(request, "overlap_hours")), self._clock()
        with self._database.write() as transaction:
            row = account_row(transaction, request.name)
            check_still_there(transaction, caller)
            self._check_acts_as(caller, row.id)
            old = service_tokens.replaceable(transaction, row.id, request.token_id, now)
            if overlap:
                _check_room(transaction, row.id, old.id, now)
            ends = service_tokens.end_after(transaction, old, overlap, now)
            made = service_tokens.create(
                transaction,
                self._token_key,
                row.id,
                given(request, "lifetime_days"),
                now,
                creator=caller.principal.name,
                replaces=old.id,
            )
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
        replaced = token_resource(old, made.id)
        replaced.expire_time.FromDatetime(ends)
        metadata = _new_resource(made, row.id, caller.principal.name)
        metadata.replaces = old.id
        return rpc.RotateTokenResponse(token=made.text, metadata=metadata, replaced=replaced)

    def revoke(self, caller: Caller, request: rpc.RevokeTokenRequest) -> rpc.RevokeTokenResponse:
        """End a token."""
        del caller
        with self._database.write() as transaction:
            row = account_row(transaction, request.name)
            service_tokens.revoke(transaction, row.id, request.token_id)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
        return rpc.RevokeTokenResponse()

    def _check_acts_as(self, caller: Caller, account: str) -> None:
        """With a token of an application one is that application."""
        other = Principal(PrincipalKind.SERVICE_ACCOUNT, account)
        policy = self._policies.current()
        escalation.check_acts_as(policy, self._policies.roles, caller.principal, other)


def _new_resource(made: NewToken, account: str, creator: str) -> Token:
    return Token(
        id=made.id,
        service_account=names.service_account(account),
        create_time=timestamp(made.create_time),
        expire_time=timestamp(made.expire_time),
        creator=creator,
    )


def _check(request: Any) -> None:  # noqa: ANN401  # a request with days
    problems = Problems()
    problems.take(request)
    problems.raise_if_any()


def _chosen(request: rpc.ListTokensRequest, now: datetime) -> list[Any]:
    """The conditions of a list. Raises InvalidInput."""
    found = []
    if request.service_account:
        name = Name.parse(request.service_account, "serviceAccount", field="service_account")
        found.append(_token.service_account == name.id)
    if request.creator:
        found.append(_token.creator == str(Name.parse(request.creator, "user", field="creator")))
    if not 0 <= request.unused_days <= MAX_UNUSED_DAYS:
        wrong = f"must be 0 to {MAX_UNUSED_DAYS}"
        raise InvalidInput(f"unused_days {wrong}", fields={"unused_days": wrong})
    if request.unused_days:
        # What nobody has used was made at some time.
        last = func.coalesce(_token.use_time, _token.create_time, type_=_token.create_time.type)
        found.append(last <= now - timedelta(days=request.unused_days))
    return found


def _replaced_by(state: Reading, accounts: Iterable[str]) -> dict[str, str]:
    """Id of a token -> id of the one that was made in its place."""
    of_these = _token.service_account.in_(accounts), _token.replaces != ""
    rows = state.all(select(_token.id, _token.replaces).where(*of_these))
    return {row.replaces: row.id for row in rows}


def _check_room(state: Reading, account: str, old: str, now: datetime) -> None:
    """Raise FailedPrecondition when another token lives: with the new one they would be three."""
    mine = _token.service_account == account, _token.id != old, _token.expire_time > now
    other = state.value(select(_token.id).where(*mine))
    if other is not None:
        raise FailedPrecondition(
            f"with {other} this application has {service_tokens.MAX_LIVE} live tokens, and no room "
            "for a third: revoke that one, or rotate with an overlap of 0"
        )
