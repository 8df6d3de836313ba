"""Rules and links: from roles and rows of the database to what the policy engine is given. Pure.

Rules kept here, each because the engine would fail open or do something else than it seems to:
* an effect is exactly `allow` or `deny` (any other text silently takes a deny away);
* no field is empty, and every rule has all its fields;
* permissions are the known ones, compared exactly; no pattern reaches the engine;
* a rule belongs to `role:…` of a known role or to a real principal; only a role's rule may hold
  everywhere (`*`);
* a link gives a known role to a principal, never a role to a role; a role of the whole appliance
  is not given in one project; a role of the appliance's own processes is given to them alone;
* an application holds roles in its own project only.

Called by `appliance.control.auth.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from sqlalchemy import select

from appliance.control.auth.roles import Roles
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.identity import Principal, PrincipalKind, parse_subject
from appliance.core.names import is_id, shown

EVERYWHERE = "*"
ROLE_PREFIX = "role:"
EFFECTS = frozenset({"allow", "deny"})
NODE_ROLE = "node"
GATEWAY_ROLE = "gateway"
_PEOPLE = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})
_MACHINE_ROLES = {PrincipalKind.NODE: NODE_ROLE, PrincipalKind.GATEWAY: GATEWAY_ROLE}


@dataclass(frozen=True)
class Rule:
    """`effect` for `subject` in `domain`, for permission `noun.verb`."""

    subject: str
    domain: str
    noun: str
    verb: str
    effect: str


@dataclass(frozen=True)
class Link:
    """`subject` holds `role` in `domain`."""

    subject: str
    role: str
    domain: str


@dataclass(frozen=True)
class Rows:
    """Everything a policy is made from. `homes` is the project of each application."""

    version: int
    rules: tuple[Rule, ...]
    links: tuple[Link, ...]
    homes: Mapping[str, str]


def rules_of(roles: Roles) -> tuple[Rule, ...]:
    """The rules of the built-in roles."""
    return tuple(
        Rule(ROLE_PREFIX + role.id, EVERYWHERE, noun, verb, "allow")
        for role in roles.roles.values()
        for noun, verb in (permission.split(".") for permission in role.permissions)
    )


def version_of(state: Reading) -> int:
    """The version of the policy in the database."""
    version = state.value(select(tables.meta.c.policy_version))
    if version is None:
        raise FailedPrecondition("the state has no policy; run `appliance init` first")
    return int(version)


def read(state: Reading, roles: Roles) -> Rows:
    """Read everything a policy is made from, as of one moment."""
    binding, account = tables.binding, tables.service_account
    node, gateway = tables.node, tables.gateway
    links = [
        Link(row.subject, row.role, row.domain)
        for row in state.all(select(binding.c.subject, binding.c.role, binding.c.domain))
    ]
    for kind, table, statement in (
        (PrincipalKind.NODE, node, node.c.state != "EVICTED"),
        (PrincipalKind.GATEWAY, gateway, gateway.c.state != "EVICTED"),
    ):
        links += [
            Link(Principal(kind, row.id).subject, _MACHINE_ROLES[kind], EVERYWHERE)
            for row in state.all(select(table.c.id).where(statement))
        ]
    homes = {
        Principal(PrincipalKind.SERVICE_ACCOUNT, row.id).subject: row.project
        for row in state.all(select(account.c.id, account.c.project))
    }
    return Rows(version_of(state), rules_of(roles), tuple(links), homes)


def check(rows: Rows, roles: Roles) -> None:
    """Raise FailedPrecondition naming the first rule or link that must not reach the engine."""
    for rule in rows.rules:
        why = _wrong_rule(rule, roles)
        if why:
            raise _refused(rule, why)
    for link in rows.links:
        why = _wrong_link(link, rows.homes, roles)
        if why:
            raise _refused(link, why)


def check_link(link: Link, homes: Mapping[str, str], roles: Roles) -> None:
    """Raise InvalidInput when a new binding could not be part of a policy."""
    why = _wrong_link(link, homes, roles)
    if why:
        raise InvalidInput(f"this binding is refused: {why}", fields={"binding": why})


def _refused(item: Rule | Link, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the policy is refused, nobody gains anything: {item}: {why}")


def _wrong_rule(rule: Rule, roles: Roles) -> str:
    if _has_gap(rule):
        return "a field is empty or not text"
    if rule.effect not in EFFECTS:
        return f"{shown(rule.effect)} is neither allow nor deny"
    if f"{rule.noun}.{rule.verb}" not in roles.permissions:
        return "there is no such permission"
    if rule.domain != EVERYWHERE and not is_id(rule.domain):
        return "the domain is no project"
    return _wrong_holder(rule, roles)


def _wrong_holder(rule: Rule, roles: Roles) -> str:
    if rule.subject.startswith(ROLE_PREFIX):
        role = rule.subject.removeprefix(ROLE_PREFIX)
        return "" if role in roles.roles else "there is no such role"
    if rule.domain == EVERYWHERE:
        return "only a role may hold everywhere"
    return _wrong_subject(rule.subject)


def _wrong_link(link: Link, homes: Mapping[str, str], roles: Roles) -> str:
    if _has_gap(link):
        return "a field is empty or not text"
    why = _wrong_subject(link.subject)
    role = roles.roles.get(link.role)
    if why or role is None:
        return (
            why or f"there is no role {shown(link.role)}; roles: {', '.join(sorted(roles.roles))}"
        )
    kind = parse_subject(link.subject).kind
    if _MACHINE_ROLES.get(kind, link.role) != link.role or role.assignable != (kind in _PEOPLE):
        return f"role {link.role} is not for {link.subject}"
    if kind is PrincipalKind.SERVICE_ACCOUNT and homes.get(link.subject) != link.domain:
        return "an application holds roles in its own project only"
    return _wrong_scope(link, platform_only=role.platform_only)


def _wrong_scope(link: Link, *, platform_only: bool) -> str:
    if link.domain == EVERYWHERE:
        return ""
    if not is_id(link.domain):
        return f"{shown(link.domain)} is not a project"
    if platform_only:
        return f"role {link.role} holds on the whole appliance, not in a project: leave scope empty"
    return ""


def _has_gap(item: Rule | Link) -> bool:
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
