"""Bindings: who holds which role where.

Rules kept here:
* a binding is between things that exist: principal, role and project;
* roles of the appliance's own processes are bound to nobody, platform roles in no project, and an
  application holds roles in its own project only (`auth.rules` says so, also to rows that came from
  somewhere else);
* there is always an administrator who can log in: the last one cannot be unbound or locked;
* the new policy is in force before the call returns; one that cannot be made undoes the change.

Called by the RPCs, by `init` for the first administrator, and by the user service (`guard`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from appliance.api.access.v1 import binding_pb2, binding_service_pb2
from appliance.control.auth import rules
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.rules import EVERYWHERE, Link
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services import paging
from appliance.control.services.caller import Caller
from appliance.control.services.change import Changes
from appliance.control.services.resources import missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists, FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind, parse_name, parse_subject
from appliance.core.names import Name

ADMINISTRATOR = "administrator"


class Bindings:
    """Gives and takes away roles."""

    def __init__(
        self,
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

    def list(
        self, caller: Caller, request: binding_service_pb2.ListBindingsRequest
    ) -> binding_service_pb2.ListBindingsResponse:
        """Bindings of one project, or with an empty scope of everything."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        column = tables.binding.c
        wanted = tables.binding.select().order_by(column.id).limit(size + 1)
        if request.scope:
            wanted = wanted.where(column.domain == Name.parse(request.scope, "project").id)
        if after is not None:
            wanted = wanted.where(column.id > after[0])
        with self._database.read() as state:
            rows = state.all(wanted)
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return binding_service_pb2.ListBindingsResponse(
            bindings=[_resource(row) for row in page], next_page_token=token
        )

    def create(
        self, caller: Caller, request: binding_service_pb2.CreateBindingRequest
    ) -> binding_pb2.Binding:
        """Give a role."""

        def work(transaction: Transaction) -> binding_pb2.Binding:
            link = self._link(transaction, request.binding)
            return self.bind(transaction, link, caller.principal.name)

        return self._changes.make(caller, request, binding_pb2.Binding, work)

    def bind(self, transaction: Transaction, link: Link, creator: str) -> binding_pb2.Binding:
        """Store a checked binding and put the new policy in force with the transaction."""
        column = tables.binding.c
        same = tables.binding.select().where(
            column.subject == link.subject, column.role == link.role, column.domain == link.domain
        )
        found = transaction.first(same)
        if found is not None:
            raise AlreadyExists(
                f"{link.subject} holds {link.role} there already, by bindings/{found.id}",
                name=names.binding(found.id),
            )
        identifier = secrets.token_hex(8)
        transaction.run(
            tables.binding.insert().values(
                id=identifier,
                subject=link.subject,
                role=link.role,
                domain=link.domain,
                creator=creator,
                create_time=self._clock(),
            )
        )
        self._policies.changed(transaction)
        transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
        return _resource(transaction.first(tables.binding.select().where(column.id == identifier)))

    def delete(
        self, caller: Caller, request: binding_service_pb2.DeleteBindingRequest
    ) -> binding_service_pb2.DeleteBindingResponse:
        """Take a role away."""
        name = Name.parse(request.name, "binding")

        def work(transaction: Transaction) -> binding_service_pb2.DeleteBindingResponse:
            column = tables.binding.c
            row = transaction.first(tables.binding.select().where(column.id == name.id))
            if row is None:
                raise missing(request.name)
            if row.role == ADMINISTRATOR:
                guard_last_administrator(transaction, parse_subject(row.subject))
            transaction.run(tables.binding.delete().where(column.id == name.id))
            self._policies.changed(transaction)
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return binding_service_pb2.DeleteBindingResponse()

        return self._changes.make(caller, request, binding_service_pb2.DeleteBindingResponse, work)

    def _link(self, state: Reading, binding: binding_pb2.Binding) -> Link:
        """The checked link of a request. Raises InvalidInput or NotFound."""
        principal = _existing_principal(state, binding.principal)
        role = Name.parse(binding.role, "role", field="binding.role").id
        domain = EVERYWHERE
        if binding.scope:
            domain = Name.parse(binding.scope, "project", field="binding.scope").id
            known = tables.project.select().where(tables.project.c.id == domain)
            if state.first(known) is None:
                raise missing(binding.scope)
        link = Link(principal.subject, role, domain)
        homes: dict[str, str] = {}
        if principal.kind is PrincipalKind.SERVICE_ACCOUNT:
            account = tables.service_account
            homes[principal.subject] = state.value(
                account.select()
                .with_only_columns(account.c.project)
                .where(account.c.id == principal.id)
            )
        rules.check_link(link, homes, self._policies.roles)
        return link


def _existing_principal(state: Reading, name: str) -> Principal:
    """The person or application of a name. Raises InvalidInput when there is none."""
    principal = parse_name(name)
    holders = {
        PrincipalKind.USER: tables.user,
        PrincipalKind.SERVICE_ACCOUNT: tables.service_account,
    }
    table = holders.get(principal.kind)
    if table is None:
        wrong = "roles are given to users/{user} and serviceAccounts/{service_account} only"
        raise InvalidInput(f"binding.principal: {wrong}", fields={"binding.principal": wrong})
    if state.first(table.select().where(table.c.id == principal.id)) is None:
        wrong = f"there is no {name}: create it first"
        raise InvalidInput(f"binding.principal: {wrong}", fields={"binding.principal": wrong})
    return principal


def guard_last_administrator(state: Reading, leaving: Principal) -> None:
    """Raise FailedPrecondition when nobody but `leaving` could administer the appliance."""
    binding, user = tables.binding.c, tables.user
    administrators = {
        row.subject
        for row in state.all(
            tables.binding.select().where(
                binding.role == ADMINISTRATOR, binding.domain == EVERYWHERE
            )
        )
    }
    able = {
        Principal(PrincipalKind.USER, row.id).subject
        for row in state.all(user.select().where(user.c.locked.is_(False)))
    }
    if leaving.subject in administrators and not (administrators & able) - {leaving.subject}:
        raise FailedPrecondition(
            f"{leaving.name} is the last administrator: bind {ADMINISTRATOR} to somebody else "
            "first",
            principal=leaving.name,
        )


def _resource(row: Any) -> binding_pb2.Binding:  # noqa: ANN401  # a row of SQLAlchemy
    return binding_pb2.Binding(
        name=names.binding(row.id),
        principal=parse_subject(row.subject).name,
        role=names.role(row.role),
        scope="" if row.domain == EVERYWHERE else names.project(row.domain),
        create_time=timestamp(row.create_time),
    )
