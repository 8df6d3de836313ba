"""May this caller make this call? The part of the door that decides; it changes nothing.

Rules kept here:
* only what the policy allows is allowed; a resource whose place is not known is not allowed either;
* a caller without any role in a project is told exactly what somebody is told who asks for
  something that does not exist, so that names of other projects cannot be found out;
* a caller with some role there is told which permission is missing and who can give it;
* a call that needs a fresh second factor is refused to everybody who has not shown one in the last
  five minutes, also to applications, which never can.

The attacks: walking through ids of another project, using an old session left open at a desk.
Called by the gate, at the start of a call and again while a stream runs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from appliance.control.auth import scopes
from appliance.control.auth.credentials import fresh_mfa
from appliance.control.auth.escalation import givers
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.scopes import phrase
from appliance.control.door.resource_scopes import ResourceScopes
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing
from appliance.core.errors import Denied, FreshMfaRequired
from appliance.core.identity import PrincipalKind
from appliance.wire.rules import AccessRule


class Access:
    """Decides calls.

    Args:
        policies: the policy in force.
        places: where a resource is.
        clock: the time, aware.
    """

    def __init__(
        self, policies: PolicyStore, places: ResourceScopes, clock: Callable[[], datetime]
    ) -> None:
        self._policies = policies
        self._places = places
        self._clock = clock

    def decide(self, caller: Caller, rule: AccessRule, resource: str) -> int:
        """Return when `caller` may make a call of `rule` about `resource`; the policy's version.

        Raises:
            InvalidInput: the resource is empty or no name.
            NotFound: it is in a project the caller holds no role in, or does not exist.
            Denied: the caller lacks the permission there.
        """
        policy = self._policies.current()
        if rule.anonymous or rule.own:
            return policy.version
        if not rule.permission:
            raise Denied("no access rule allows this call", method=rule.method)
        place = self._places.of(resource, rule.resource)
        if policy.allowed(caller.principal, place.domain, rule.permission):
            return policy.version
        if place.hidden and not policy.holds_any_role(caller.principal, place.domain):
            raise missing(resource)
        raise self._denied(caller, rule, place.domain)

    def check_fresh_mfa(self, caller: Caller, rule: AccessRule) -> None:
        """Raise FreshMfaRequired when the rule wants a second factor that is too long ago.

        At the start of a call only: a stream that began fresh may go on.
        """
        if not rule.fresh_mfa:
            return
        if caller.principal.kind is not PrincipalKind.USER:
            raise FreshMfaRequired(
                f"{caller.principal.name} may not do this: it needs a person with a second factor"
            )
        if not fresh_mfa(caller.mfa_time, self._clock()):
            raise FreshMfaRequired(
                "this needs a code from your authenticator in the last five minutes: enter a new "
                "one, then repeat"
            )

    def _denied(self, caller: Caller, rule: AccessRule, domain: str) -> Denied:
        roles = [
            role.id
            for role in self._policies.roles.roles.values()
            if rule.permission in role.permissions and role.assignable and role.fits(domain)
        ]
        who = caller.principal.name or "nobody"
        giving = givers(domain)
        if rule.permission in self._policies.roles.set_aside:
            giving = "an administrator of the platform and of all projects"
            roles = roles or ["none that is built in: this site can make one"]
        return Denied(
            f"{who} may not do this: it needs {rule.permission} {phrase(domain)} "
            f"(in role {', '.join(sorted(roles)) or 'of the appliance itself'}), which "
            f"{giving} can give",
            permission=rule.permission,
            scope=scopes.name(domain),
            principal=caller.principal.name,
        )
