"""Rules and links: from roles and rows of the database to what the policy engine is given. Pure.

Rules kept here, each because the engine would fail open or do something else than it seems to:
* an effect is exactly `allow` or `deny` (any other text silently takes a deny away);
* no field is empty, and every rule has all its fields;
* permissions are the known ones, compared exactly; no pattern reaches the engine;
* a rule belongs to `role:…` of a known role or to a real principal; only a role's rule may hold
  on the platform or in all projects, and no rule where its permission is not decided;
* a link gives a known role to a principal, never a role to a role, and only in scopes the role is
  made for; a role of the appliance's own processes is given to them alone;
* an application holds roles in its own project only.

Called by `appliance.control.auth.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row, select

from appliance.control.auth.pacing import Pace, at_once
from appliance.control.auth.roles import Role, Roles
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM, is_domain, phrase
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind, parse_subject
from appliance.core.names import is_id, shown

ROLE_PREFIX = "role:"
EFFECTS = frozenset({"allow", "deny"})
NODE_ROLE = "node"
GATEWAY_ROLE = "gateway"
_PEOPLE = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})
_MACHINE_ROLES = {PrincipalKind.NODE: NODE_ROLE, PrincipalKind.GATEWAY: GATEWAY_ROLE}


@dataclass(frozen=True)
class PolicyRule:
    """`effect` for `subject` in `domain`, for permission `noun.verb`."""

    subject: str
    domain: str
    noun: str
    verb: str
    effect: str


@dataclass(frozen=True)
class RoleLink:
    """`subject` holds `role` in `domain`."""

    subject: str
    role: str
    domain: str


@dataclass(frozen=True)
class PolicyRows:
    """Everything a policy is made from. `homes` is the project of each application."""

    version: int
    rules: tuple[PolicyRule, ...]
    links: tuple[RoleLink, ...]
    homes: Mapping[str, str]


def rules_of(roles: Roles) -> tuple[PolicyRule, ...]:
    """The rules of the built-in roles: each gives its permissions where they are decided."""
    return tuple(
        PolicyRule(ROLE_PREFIX + role.id, domain, noun, verb, "allow")
        for role in roles.roles.values()
        for domain in (PLATFORM, EVERYWHERE)
        if (domain == PLATFORM and role.fits(PLATFORM))
        or (domain == EVERYWHERE and role.scopes - {"platform"})
        for noun, verb in (name.split(".") for name in roles.given(role.id, domain))
    )


def machine_link(kind: PrincipalKind, identifier: str) -> RoleLink:
    """What a node or a gateway holds by its certificate, while it is not evicted."""
    return RoleLink(Principal(kind, identifier).subject, _MACHINE_ROLES[kind], PLATFORM)


def version_of(state: Reading) -> int:
    """The version of the policy in the database."""
    version = state.value(select(tables.meta.c.policy_version))
    if version is None:
        raise FailedPrecondition("the state has no policy; run `appliance init` first")
    return int(version)


def read(state: Reading, roles: Roles, pace: Pace = at_once) -> PolicyRows:
    """Read everything a policy is made from, as of one moment."""
    binding, account = tables.binding, tables.service_account
    node, gateway = tables.node, tables.gateway
    links = [
        RoleLink(row.subject, row.role, row.domain)
        for row in pace(state.each(select(binding.c.subject, binding.c.role, binding.c.domain)))
    ]
    for kind, table, statement in (
        (PrincipalKind.NODE, node, node.c.state != "EVICTED"),
        (PrincipalKind.GATEWAY, gateway, gateway.c.state != "EVICTED"),
    ):
        links += [
            machine_link(kind, row.id) for row in state.all(select(table.c.id).where(statement))
        ]
    homes = _homes(pace(state.each(select(account.c.id, account.c.project))))
    return PolicyRows(version_of(state), rules_of(roles), tuple(links), homes)


def homes_of(state: Reading, links: Iterable[RoleLink]) -> dict[str, str]:
    """The projects of the applications in some links."""
    account = tables.service_account.c
    principals = (parse_subject(link.subject) for link in links)
    wanted = {p.id for p in principals if p.kind is PrincipalKind.SERVICE_ACCOUNT}
    if not wanted:
        return {}
    return _homes(state.all(select(account.id, account.project).where(account.id.in_(wanted))))


def _homes(rows: Iterable[Row[Any]]) -> dict[str, str]:
    return {Principal(PrincipalKind.SERVICE_ACCOUNT, row.id).subject: row.project for row in rows}


def check(rows: PolicyRows, roles: Roles, pace: Pace = at_once) -> None:
    """Raise FailedPrecondition naming the first rule or link that must not reach the engine."""
    for rule in rows.rules:
        why = _wrong_rule(rule, roles)
        if why:
            raise _refused(rule, why)
    check_links(pace(rows.links), rows.homes, roles)


def check_links(links: Iterable[RoleLink], homes: Mapping[str, str], roles: Roles) -> None:
    """Raise FailedPrecondition naming the first link that must not reach the engine."""
    for link in links:
        why = _wrong_link(link, homes, roles)
        if why:
            raise _refused(link, why)


def check_link(link: RoleLink, homes: Mapping[str, str], roles: Roles) -> None:
    """Raise InvalidInput when a new binding could not be part of a policy."""
    why = _wrong_link(link, homes, roles)
    if why:
        raise InvalidInput(f"this binding is refused: {why}", fields={"binding": why})


def _refused(item: PolicyRule | RoleLink, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the policy is refused, nobody gains anything: {item}: {why}")


def _wrong_rule(rule: PolicyRule, roles: Roles) -> str:
    if _has_gap(rule):
        return "a field is empty or not text"
    if rule.effect not in EFFECTS:
        return f"{shown(rule.effect)} is neither allow nor deny"
    if f"{rule.noun}.{rule.verb}" not in roles.permissions:
        return "there is no such permission"
    if not is_domain(rule.domain):
        return "the domain is no scope"
    if not roles.is_decided(f"{rule.noun}.{rule.verb}", rule.domain):
        return "the permission is not decided there"
    return _wrong_holder(rule, roles)


def _wrong_holder(rule: PolicyRule, roles: Roles) -> str:
    if rule.subject.startswith(ROLE_PREFIX):
        role = rule.subject.removeprefix(ROLE_PREFIX)
        return "" if role in roles.roles else "there is no such role"
    if not is_id(rule.domain):
        return "only a role may hold on the platform or in all projects"
    return _wrong_subject(rule.subject)


def _wrong_link(link: RoleLink, homes: Mapping[str, str], roles: Roles) -> str:
    if _has_gap(link):
        return "a field is empty or not text"
    why = _wrong_subject(link.subject)
    role = roles.roles.get(link.role)
    if why or role is None:
        return (
            why
            or f"there is no role {shown(link.role)}; roles: {', '.join(sorted(roles.roles))}. A "
            "role of this site's own stays in its file as long as it is bound"
        )
    holder = parse_subject(link.subject)
    kind = holder.kind
    if _MACHINE_ROLES.get(kind, link.role) != link.role or role.assignable != (kind in _PEOPLE):
        return f"role {link.role} is not for {holder.name}"
    if not is_domain(link.domain):
        return f"{shown(link.domain)} is not a project"
    if kind is PrincipalKind.SERVICE_ACCOUNT and homes.get(link.subject) != link.domain:
        return "an application holds roles in its own project only"
    return "" if role.fits(link.domain) else _unfit(role, link.domain)


def _unfit(role: Role, domain: str) -> str:
    """Where a role can be bound that cannot be bound in a domain."""
    ways = {
        "platform": "on the platform",
        "everywhere": "in all projects",
        "project": "in one project",
    }
    fitting = " or ".join(text for scope, text in ways.items() if scope in role.scopes)
    return f"role {role.id} is not bound {phrase(domain)}, but {fitting}"


def _has_gap(item: PolicyRule | RoleLink) -> bool:
    values: Iterable[object] = (getattr(item, field.name) for field in fields(item))
    return any(not isinstance(value, str) or not value for value in values)


def _wrong_subject(subject: str) -> str:
    """Why a subject cannot hold anything: it must be the exact subject of a real kind of caller."""
    try:
        principal = parse_subject(subject)
    except InvalidInput as error:
        return str(error)
    holders = _PEOPLE | set(_MACHINE_ROLES)
    return "" if principal.kind in holders else f"{subject} can hold no role"
