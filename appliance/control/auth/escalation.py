"""Nobody gives, or takes over, a right that he does not hold himself. Pure.

Rules kept here (Kubernetes' `escalate`, `bind` and `impersonate`):
* to give a role somewhere, or to take it away, one holds each of its permissions there;
* whatever lets one act as another (a new password or second factor of a person, a token of an
  application) needs each permission that the other holds, wherever the other holds it.

The attack: an owner who binds himself as administrator, or resets the password of one, and then is
one. Called by the services that give roles, reset proofs of people and make tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import EVERYWHERE
from appliance.core.errors import Denied
from appliance.core.identity import Principal

SHOWN_PERMISSIONS = 5


class Decides(Protocol):
    """What is asked of a policy."""

    def allowed(self, principal: Principal, project: str | None, permission: str) -> bool:
        """Whether a principal may use a permission in a project, or on the appliance."""

    def roles_of(self, principal: Principal) -> list[tuple[str, str]]:
        """The (role, domain) pairs a principal holds."""


def lacks(
    policy: Decides, roles: Roles, caller: Principal, held: Iterable[tuple[str, str]]
) -> dict[str, list[str]]:
    """The permissions in `held`, (role, domain) pairs, that `caller` lacks there, by domain."""
    missing: dict[str, set[str]] = {}
    for role, domain in held:
        project = None if domain == EVERYWHERE else domain
        for permission in roles.roles[role].permissions:
            if not policy.allowed(caller, project, permission):
                missing.setdefault(domain, set()).add(permission)
    return {domain: sorted(found) for domain, found in sorted(missing.items())}


def check_acts_as(policy: Decides, roles: Roles, caller: Principal, other: Principal) -> None:
    """Raise Denied unless `caller` holds everything that `other` holds: he could act as `other`.

    For the reset of a password or a second factor, and for tokens of applications. Whoever resets
    what is his own is not asked.
    """
    if caller == other:
        return
    missing = lacks(policy, roles, caller, policy.roles_of(other))
    if missing:
        raise Denied(
            f"{caller} may not act for {other}, who may do more: you lack {_listed(missing)}. "
            "Ask an administrator who holds these, too",
            principal=caller.name,
        )


def _listed(missing: dict[str, list[str]]) -> str:
    """A few of the missing permissions, and where."""
    found = [(permission, domain) for domain, all_ in missing.items() for permission in all_]
    parts = [f"{permission} {_where(domain)}" for permission, domain in found[:SHOWN_PERMISSIONS]]
    more = len(found) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _where(domain: str) -> str:
    return "on the whole appliance" if domain == EVERYWHERE else f"in projects/{domain}"
