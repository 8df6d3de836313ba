"""Nobody gives, or takes over, a right that he does not hold himself. Pure.

Rules kept here (Kubernetes' `escalate`, `bind` and `impersonate`):
* to give a role somewhere, or to take it away, one holds each of its permissions there;
* what no built-in role holds (to take data out of the appliance) nobody could give first: it is
  given by administrators of everything, who may give roles and let servers in, on the platform and
  in all projects, and so can have every key as it is;
* whatever lets one act as another (a new password or second factor of a person, a token of an
  application) needs each permission that the other holds, wherever the other holds it;
* a server gets keys of the work of every project, so letting one in needs `nodes.createJoinToken`
  on the platform and in all projects.

The attack: an owner who binds himself as administrator, or resets the password of one, and then is
one. Called by the services that give roles, reset proofs of people and make tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from appliance.control.auth.roles import Roles
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM, phrase
from appliance.core.errors import Denied
from appliance.core.identity import Principal

SHOWN_PERMISSIONS = 5
JOIN = "nodes.createJoinToken"
GIVE = "bindings.create"
JOIN_GATEWAY = "gateways.createJoinToken"


class Decides(Protocol):
    """What is asked of a policy."""

    def allowed(self, principal: Principal, domain: str, permission: str) -> bool:
        """Whether a principal may use a permission in a domain."""

    def roles_of(self, principal: Principal) -> list[tuple[str, str]]:
        """The (role, domain) pairs a principal holds."""


def lacks(
    policy: Decides, roles: Roles, caller: Principal, held: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The (permission, domain) pairs that roles give, and that `caller` lacks; sorted.

    Args:
        policy: in force.
        roles: all there are.
        caller: who wants to give or to act.
        held: (role, domain) pairs.
    """
    return sorted(
        {
            (permission, domain)
            for role, domain in held
            for permission in roles.given(role, domain)
            if not policy.allowed(caller, domain, permission)
            and not (permission in roles.set_aside and _gives_everywhere(policy, caller))
        }
    )


def _gives_everywhere(policy: Decides, caller: Principal) -> bool:
    """Whether a caller may give roles and let servers in, on the platform and in all projects.

    To give roles is not enough: a site can have a role for that alone, and its holder no data.
    """
    return all(
        policy.allowed(caller, domain, permission)
        for domain in (PLATFORM, EVERYWHERE)
        for permission in (GIVE, JOIN)
    )


def check_gives(policy: Decides, roles: Roles, caller: Principal, role: str, domain: str) -> None:
    """Raise Denied unless `caller` holds each permission of a role in a domain.

    For giving the role there, and for taking it away.
    """
    missing = lacks(policy, roles, caller, [(role, domain)])
    if missing:
        raise Denied(
            f"{caller.name} may neither give nor take away role {role} {phrase(domain)}: nobody "
            f"gives what he does not hold, and you lack {_listed(missing)}. Ask {givers(domain)}",
            role=role,
            principal=caller.name,
        )


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
            f"{caller.name} may not act for {other.name}, who may do more: you lack "
            f"{_listed(missing)}. Ask an administrator who holds these, too",
            principal=caller.name,
        )


def check_lets_in(policy: Decides, caller: Principal, permission: str = JOIN) -> None:
    """Raise Denied unless `caller` may let a machine in.

    A node then gets keys of every project, a gateway the prompts of every project.
    """
    missing = [
        (permission, domain)
        for domain in (PLATFORM, EVERYWHERE)
        if not policy.allowed(caller, domain, permission)
    ]
    if missing:
        gets = "keys of the work" if permission == JOIN else "the prompts"
        raise Denied(
            f"{caller.name} may not let a server in: it gets {gets} of every project, "
            f"and you lack {_listed(missing)}. An administrator of both can do it",
            permission=permission,
            principal=caller.name,
        )


def givers(domain: str) -> str:
    """Who can give what a caller lacks in a domain."""
    if domain in {PLATFORM, EVERYWHERE}:
        return f"an administrator {phrase(domain)}"
    return f"an owner of projects/{domain} or an administrator in all projects"


def _listed(missing: list[tuple[str, str]]) -> str:
    """A few of the missing permissions, and where."""
    parts = [f"{what} {phrase(where)}" for what, where in missing[:SHOWN_PERMISSIONS]]
    more = len(missing) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")
