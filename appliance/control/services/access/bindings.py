"""Bindings: who holds which role where.

Rules kept here:
* a scope is always said: the platform, all projects, or one project;
* nobody gives or takes away what he does not hold there himself (`auth.escalation`);
* a binding is between a role, a scope and a principal that exist. Whether a person exists is told
  only to those who may see people; to others each name that could be one is the same, and a role of
  a person who is not there waits. Whether an application exists is told in its own project;
* roles of the appliance's own processes are bound to nobody, each role only where it is made for,
  and an application holds roles in its own project only (`auth.rules` says so, also to rows that
  came from somewhere else);
* there is always an administrator who can log in, on the platform and in all projects: the last one
  cannot be unbound or locked;
* the change is in force before the call returns; one that is refused leaves no trace.

The attacks: an owner who makes himself administrator; walking through names of people and of other
projects' applications. Called by the RPCs, by `init` for the first administrator, and by the user
service (`guard_last_administrator`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import select

from appliance.api.access.v1 import binding_pb2, binding_service_pb2
from appliance.control.auth import escalation, rules, scopes
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists, FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind, parse_name, parse_subject
from appliance.core.names import Name, is_id

ADMINISTRATOR = "administrator"
SEE_PEOPLE = "users.get"
_HOLDERS = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})


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
        """Bindings of one project, of the platform, or of all projects and each of them."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        column = tables.binding.c
        wanted = tables.binding.select().order_by(column.id).limit(size + 1)
        domain = scopes.parse(request.scope, "scope")
        inside = column.domain != PLATFORM if domain == EVERYWHERE else column.domain == domain
        wanted = wanted.where(inside)
        if after is not None:
            wanted = wanted.where(column.id > after[0])
        with self._database.read() as state:
            if is_id(domain):
                check_project(state, domain)
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
            link = self._link(transaction, caller.principal, request.binding)
            return self.bind(transaction, link, caller.principal.name)

        return self._changes.make(caller, request, binding_pb2.Binding, work)

    def bind(self, transaction: Transaction, link: RoleLink, creator: str) -> binding_pb2.Binding:
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
        self._policies.after_granting(transaction, link)
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
            self._check_gives(caller.principal, row.role, row.domain)
            if row.role == ADMINISTRATOR:
                guard_last_administrator(transaction, parse_subject(row.subject), row.domain)
            transaction.run(tables.binding.delete().where(column.id == name.id))
            self._policies.after_revoking(transaction, RoleLink(row.subject, row.role, row.domain))
            transaction.after_commit(lambda: self._events.publish(ACCESS, ROUTING))
            return binding_service_pb2.DeleteBindingResponse(binding=_resource(row))

        return self._changes.make(caller, request, binding_service_pb2.DeleteBindingResponse, work)

    def _link(self, state: Reading, caller: Principal, binding: binding_pb2.Binding) -> RoleLink:
        """The checked link of a request. Raises InvalidInput, NotFound or Denied."""
        principal = parse_name(binding.principal)
        if principal.kind not in _HOLDERS:
            raise _wrong_principal(
                "roles are given to users/{user} and serviceAccounts/{service_account} only"
            )
        role = Name.parse(binding.role, "role", field="binding.role").id
        domain = scopes.parse(binding.scope, "binding.scope")
        if is_id(domain):
            check_project(state, domain)
        link = RoleLink(principal.subject, role, domain)
        # First what is wrong with any principal: it tells nothing of this one.
        at_home = {principal.subject: domain}
        rules.check_link(link, at_home if is_id(domain) else {}, self._policies.roles)
        self._check_gives(caller, role, domain)
        self._check_principal(state, caller, principal, domain)
        return link

    def _check_gives(self, caller: Principal, role: str, domain: str) -> None:
        policy = self._policies.current()
        escalation.check_gives(policy, self._policies.roles, caller, role, domain)

    def _check_principal(
        self, state: Reading, caller: Principal, principal: Principal, domain: str
    ) -> None:
        """Refuse a principal that is not there, as far as the caller may know."""
        if principal.kind is PrincipalKind.USER:
            if not self._policies.current().allowed(caller, PLATFORM, SEE_PEOPLE):
                return
            found = state.first(tables.user.select().where(tables.user.c.id == principal.id))
            where = ""
        else:
            account = tables.service_account
            found = state.first(
                account.select().where(account.c.id == principal.id, account.c.project == domain)
            )
            where = f" in {names.project(domain)}"
        if found is None:
            raise _wrong_principal(f"there is no {principal.name}{where}: create it first")


def _wrong_principal(wrong: str) -> InvalidInput:
    return InvalidInput(f"binding.principal: {wrong}", fields={"binding.principal": wrong})


def guard_last_administrator(state: Reading, leaving: Principal, *domains: str) -> None:
    """Raise FailedPrecondition when nobody but `leaving` could administer what is in `domains`.

    Without domains: the platform and all projects, each for itself. Somebody who has not proved a
    second factor yet, or is locked, could not.
    """
    user = tables.user
    proved = select(tables.totp.c.user).where(tables.totp.c.confirmed)
    able = {
        Principal(PrincipalKind.USER, row.id).subject
        for row in state.all(user.select().where(user.c.locked.is_(False), user.c.id.in_(proved)))
    }
    for domain in domains or (PLATFORM, EVERYWHERE):
        administrators = _administrators(state, domain)
        if leaving.subject in administrators and not (administrators & able) - {leaving.subject}:
            raise FailedPrecondition(
                f"{leaving.name} is the last administrator {scopes.phrase(domain)} who can log in: "
                f"bind {ADMINISTRATOR} there to somebody else first, and let them enrol an "
                "authenticator",
                principal=leaving.name,
            )


def _administrators(state: Reading, domain: str) -> set[str]:
    binding = tables.binding.c
    wanted = tables.binding.select().where(binding.role == ADMINISTRATOR, binding.domain == domain)
    return {row.subject for row in state.all(wanted)}


def _resource(row: Any) -> binding_pb2.Binding:  # noqa: ANN401  # a row of SQLAlchemy
    return binding_pb2.Binding(
        name=names.binding(row.id),
        principal=parse_subject(row.subject).name,
        role=names.role(row.role),
        scope=scopes.name(row.domain),
        create_time=timestamp(row.create_time),
    )
