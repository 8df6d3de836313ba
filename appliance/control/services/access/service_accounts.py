"""Service accounts: applications of a project, and their tokens.

Rules kept here:
* an application belongs to one project for ever and can hold roles there only; its id begins with
  the project's, so that no answer tells what another project has;
* a token is shown once; revoked, it stops to work before the call returns;
* who makes a token could act as the application, so he holds all that it holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Any

from appliance.api.access.v1 import service_account_pb2, service_account_service_pb2
from appliance.control.auth import escalation, service_tokens
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.core.problems import Problems
from appliance.core.values import given

rpc = service_account_service_pb2


class ServiceAccounts:
    """Manages applications. `token_key` is the keyring's token key."""

    def __init__(  # noqa: PLR0913  # what an application touches
        self,
        *,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        token_key: bytes,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._token_key = token_key
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, name: str) -> service_account_pb2.ServiceAccount:
        """One application with its live tokens."""
        del caller
        with self._database.read() as state:
            row = _row(state, name)
            return _resource(row, _tokens(state, [row.id], self._clock())[row.id])

    def list(
        self, caller: Caller, request: rpc.ListServiceAccountsRequest
    ) -> rpc.ListServiceAccountsResponse:
        """One page of the applications of a project, by name."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        column = tables.service_account.c
        wanted = (
            tables.service_account.select()
            .where(column.project == project)
            .order_by(column.id)
            .limit(size + 1)
        )
        if after is not None:
            wanted = wanted.where(column.id > after[0])
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(wanted)
            live = _tokens(state, [row.id for row in rows], self._clock())
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return rpc.ListServiceAccountsResponse(
            service_accounts=[_resource(row, live[row.id]) for row in page],
            next_page_token=token,
        )

    def create(
        self, caller: Caller, request: rpc.CreateServiceAccountRequest
    ) -> service_account_pb2.ServiceAccount:
        """A new application of a project."""
        project = Name.parse(request.parent, "project", field="parent").id
        identifier = names.new_service_account_id(project, request.service_account_id)

        def work(transaction: Transaction) -> service_account_pb2.ServiceAccount:
            check_project(transaction, project)
            column = tables.service_account.c
            if transaction.first(tables.service_account.select().where(column.id == identifier)):
                name = names.service_account(identifier)
                raise AlreadyExists(f"{name} exists already: choose another id", name=name)
            transaction.run(
                tables.service_account.insert().values(
                    id=identifier, project=project, locked=False, create_time=self._clock()
                )
            )
            return _resource(_row(transaction, names.service_account(identifier)), [])

        return self._changes.make(caller, request, service_account_pb2.ServiceAccount, work)

    def create_token(
        self, caller: Caller, request: rpc.CreateTokenRequest
    ) -> rpc.CreateTokenResponse:
        """A new bearer token, shown once. Raises InvalidInput for days that it cannot live."""
        problems = Problems()
        problems.take(request)
        problems.raise_if_any()
        with self._database.write() as transaction:
            row = _row(transaction, request.name)
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
            token=made.text,
            metadata=service_account_pb2.Token(
                id=made.id,
                create_time=timestamp(made.create_time),
                expire_time=timestamp(made.expire_time),
                creator=caller.principal.name,
            ),
        )

    def _check_acts_as(self, caller: Caller, account: str) -> None:
        """With a token of an application one is that application."""
        other = Principal(PrincipalKind.SERVICE_ACCOUNT, account)
        policy = self._policies.current()
        escalation.check_acts_as(policy, self._policies.roles, caller.principal, other)

    def revoke_token(
        self, caller: Caller, request: rpc.RevokeTokenRequest
    ) -> rpc.RevokeTokenResponse:
        """End a token."""
        del caller
        with self._database.write() as transaction:
            row = _row(transaction, request.name)
            service_tokens.revoke(transaction, row.id, request.token_id)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
        return rpc.RevokeTokenResponse()


def _row(state: Reading, name: str) -> Any:  # noqa: ANN401  # a row of SQLAlchemy
    identifier = Name.parse(name, "serviceAccount").id
    account = tables.service_account
    row = state.first(account.select().where(account.c.id == identifier))
    if row is None:
        raise missing(name)
    return row


def _resource(
    row: Any,  # noqa: ANN401  # a row of SQLAlchemy
    live: list[service_account_pb2.Token],
) -> service_account_pb2.ServiceAccount:
    return service_account_pb2.ServiceAccount(
        name=names.service_account(row.id),
        project=names.project(row.project),
        locked=row.locked,
        create_time=timestamp(row.create_time),
        tokens=live,
    )


def _tokens(
    state: Reading, accounts: list[str], now: datetime
) -> defaultdict[str, list[service_account_pb2.Token]]:
    """Live tokens by application."""
    column = tables.token.c
    live: defaultdict[str, list[service_account_pb2.Token]] = defaultdict(list)
    for row in state.all(
        tables.token.select()
        .where(column.service_account.in_(accounts), column.expire_time > now)
        .order_by(column.create_time, column.id)
    ):
        live[row.service_account].append(
            service_account_pb2.Token(
                id=row.id,
                create_time=timestamp(row.create_time),
                expire_time=timestamp(row.expire_time),
                creator=row.creator,
            )
        )
    return live
