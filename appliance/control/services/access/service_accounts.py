"""Service accounts: applications of a project.

Rules kept here:
* an application belongs to one project for ever and can hold roles there only; its id begins with
  the project's, so that no answer tells what another project has;
* one that is locked or deleted is refused from the moment the call returns, at gateways with their
  next view; of a deleted one nothing is left that its name opened;
* who deletes one takes its roles away, so he holds all that it holds.

Their tokens are in `account_tokens`. Called by `rpc.service_accounts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from appliance.api.access.v1 import service_account_pb2
from appliance.api.access.v1 import service_account_service_pb2 as rpc
from appliance.control.auth import escalation, grants
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.access.account_rows import account_row, live_tokens
from appliance.control.services.access.leaving import leave
from appliance.control.services.access.principal_details import details_of
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.services.common.updates import (
    changed_fields,
    check_description,
    check_etag,
    etag_of,
)
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name

ServiceAccount = service_account_pb2.ServiceAccount
_CHANGEABLE = ("description", "locked")
_account = tables.service_account.c


class ServiceAccounts:
    """Manages applications."""

    def __init__(
        self,
        *,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, request: rpc.GetServiceAccountRequest) -> ServiceAccount:
        """One application with its live tokens."""
        with self._database.read() as state:
            found = self._read(state, request.name)
            if request.view == rpc.SERVICE_ACCOUNT_VIEW_FULL:
                self._add_details(state, caller, found)
            return found

    def list(
        self, caller: Caller, request: rpc.ListServiceAccountsRequest
    ) -> rpc.ListServiceAccountsResponse:
        """One page of the applications of a project, by name."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = tables.service_account.select().where(_account.project == project)
        wanted = wanted.order_by(_account.id).limit(size + 1)
        if after is not None:
            wanted = wanted.where(_account.id > after[0])
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(wanted)
            live = live_tokens(state, [row.id for row in rows], self._clock())
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return rpc.ListServiceAccountsResponse(
            service_accounts=[_resource(row, live) for row in page], next_page_token=token
        )

    def create(self, caller: Caller, request: rpc.CreateServiceAccountRequest) -> ServiceAccount:
        """A new application of a project."""
        project = Name.parse(request.parent, "project", field="parent").id
        identifier = names.new_service_account_id(project, request.service_account_id)
        check_description(request.description, "description")

        def work(transaction: Transaction) -> ServiceAccount:
            check_project(transaction, project)
            name = names.service_account(identifier)
            if transaction.first(tables.service_account.select().where(_account.id == identifier)):
                raise AlreadyExists(f"{name} exists already: choose another id", name=name)
            transaction.run(
                tables.service_account.insert().values(
                    id=identifier,
                    project=project,
                    locked=False,
                    create_time=self._clock(),
                    description=request.description,
                )
            )
            return self._read(transaction, name)

        return self._changes.make(caller, request, ServiceAccount, work)

    def update(self, caller: Caller, request: rpc.UpdateServiceAccountRequest) -> ServiceAccount:
        """Describe, lock or unlock an application. Raises NotFound, InvalidInput, Conflict."""
        asked = request.service_account
        principal = _principal(asked.name, field="service_account.name")
        changed = changed_fields(request, _CHANGEABLE)
        values = {field: getattr(asked, field) for field in changed}
        check_description(str(values.get("description", "")), "service_account.description")

        def work(transaction: Transaction) -> ServiceAccount:
            check_etag(asked.etag, self._read(transaction, asked.name).etag, asked.name)
            this = _account.id == principal.id
            transaction.run(tables.service_account.update().where(this).values(**values))
            if values.get("locked"):
                grants.end_all(transaction, principal.subject)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return self._read(transaction, asked.name)

        return self._changes.make(caller, request, ServiceAccount, work)

    def delete(
        self, caller: Caller, request: rpc.DeleteServiceAccountRequest
    ) -> rpc.DeleteServiceAccountResponse:
        """Delete an application with its tokens and roles.

        Raises NotFound, Conflict; Denied for one that may do more than the caller.
        """
        principal = _principal(request.name)

        def work(transaction: Transaction) -> rpc.DeleteServiceAccountResponse:
            found = self._read(transaction, request.name)
            check_etag(request.etag, found.etag, request.name)
            policy = self._policies.current()
            escalation.check_acts_as(policy, self._policies.roles, caller.principal, principal)
            self._add_details(transaction, caller, found)
            table = tables.service_account
            transaction.run(table.delete().where(_account.id == principal.id))
            leave(transaction, self._policies, principal)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return rpc.DeleteServiceAccountResponse(service_account=found)

        answer = rpc.DeleteServiceAccountResponse
        return self._changes.make(caller, request, answer, work)

    def _read(self, state: Reading, name: str) -> ServiceAccount:
        row = account_row(state, name)
        return _resource(row, live_tokens(state, [row.id], self._clock()))

    def _add_details(self, state: Reading, caller: Caller, found: ServiceAccount) -> None:
        policy, principal = self._policies.current(), _principal(found.name)
        details = details_of(state, policy, caller.principal, principal, self._clock())
        found.details.CopyFrom(details)


def _principal(name: str, *, field: str = "name") -> Principal:
    parsed = Name.parse(name, "serviceAccount", field=field)
    return Principal(PrincipalKind.SERVICE_ACCOUNT, parsed.id)


def _resource(
    row: Row[Any], live: Mapping[str, Sequence[service_account_pb2.Token]]
) -> ServiceAccount:
    return ServiceAccount(
        name=names.service_account(row.id),
        project=names.project(row.project),
        locked=row.locked,
        create_time=timestamp(row.create_time),
        tokens=live.get(row.id, ()),
        description=row.description,
        etag=etag_of(row.locked, row.description, str(row.create_time)),
    )
