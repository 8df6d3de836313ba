"""Every service and servicer of the control plane, built from an open data directory.

Rules kept here: each part gets what it needs as arguments and nothing else; who needs another part
comes after it. The two lists say what is served where, and are what the access table is checked
against.

Called by `appliance.control.main`, the composition root.
"""

from __future__ import annotations

from importlib import metadata

from appliance.control.bootstrap import work_parts
from appliance.control.bootstrap.foundation import Foundation, People
from appliance.control.bootstrap.work_parts import WorkParts
from appliance.control.rpc.audit import AuditRpc
from appliance.control.rpc.auth import AuthRpc
from appliance.control.rpc.bindings import BindingRpc
from appliance.control.rpc.enrolment import EnrolmentRpc
from appliance.control.rpc.gateways import GatewayRpc
from appliance.control.rpc.nodes import NodeRpc
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.projects import ProjectRpc
from appliance.control.rpc.roles import RoleRpc
from appliance.control.rpc.service_accounts import ServiceAccountRpc
from appliance.control.rpc.servicer import Servicer, descriptor_of
from appliance.control.rpc.system import SystemRpc
from appliance.control.rpc.users import UserRpc
from appliance.control.services.access.account_tokens import AccountTokens
from appliance.control.services.access.authentication import Authentication
from appliance.control.services.access.bindings import Bindings
from appliance.control.services.access.projects import Projects
from appliance.control.services.access.roles import RoleService
from appliance.control.services.access.service_accounts import ServiceAccounts
from appliance.control.services.access.users import Users
from appliance.control.services.fleet.enrolment import Enrolment
from appliance.control.services.serving.gateways import Gateways
from appliance.control.services.system.audit import Audit
from appliance.control.services.system.system import Facts, System
from appliance.core.addresses import split_address
from appliance.wire.rules import AccessRule, rules_of

API: tuple[type[Servicer], ...] = (
    AuditRpc,
    AuthRpc,
    BindingRpc,
    EnrolmentRpc,
    GatewayRpc,
    NodeRpc,
    ProjectRpc,
    RoleRpc,
    ServiceAccountRpc,
    SystemRpc,
    UserRpc,
    *work_parts.API,
)
"""What people and applications call, and servers that join."""
MACHINES: tuple[type[Servicer], ...] = work_parts.MACHINES
"""What nodes and gateways call."""


def rules() -> dict[str, AccessRule]:
    """The access rule of every RPC of the control plane. Raises RuleMissing."""
    return rules_of([descriptor_of(kind) for kind in (*API, *MACHINES)])


def api(base: Foundation, people: People, does: WorkParts, pool: CallPool) -> list[Servicer]:
    """The servicers of the API listener, one for each of `API`."""
    events = base.events
    joins = enrolment(base)
    return [
        AuditRpc(Audit(base.opened.log, base.clock), pool, events),
        AuthRpc(_authentication(base, people), people.hasher, pool, events),
        BindingRpc(
            Bindings(base.database, base.changes, base.policies, events, base.clock), pool, events
        ),
        EnrolmentRpc(joins, pool, events),
        GatewayRpc(gateways(base, does), joins, pool, events),
        NodeRpc(does.nodes(), joins, pool, events),
        ProjectRpc(projects(base, does), pool, events),
        RoleRpc(RoleService(base.policies.roles), pool, events),
        ServiceAccountRpc(_service_accounts(base), _account_tokens(base), pool, events),
        SystemRpc(System(_facts(base), rules(), base.policies, base.expirations), pool, events),
        UserRpc(_users(base, people), people.hasher, pool, events),
        *does.api(pool),
    ]


def machines(base: Foundation, does: WorkParts, pool: CallPool) -> list[Servicer]:
    """The servicers of the machine listener, one for each of `MACHINES`."""
    return does.machines(enrolment(base), gateways(base, does), pool)


def projects(base: Foundation, does: WorkParts) -> Projects:
    """The service behind projects."""
    return Projects(
        base.database,
        base.changes,
        base.keys,
        base.policies,
        does.artifacts.erase_project,
        base.events,
        base.clock,
    )


def enrolment(base: Foundation) -> Enrolment:
    """The service behind joining and recovery."""
    return Enrolment(
        database=base.database,
        keyring=base.keyring,
        policies=base.policies,
        certificates=base.certificates,
        challenges=base.challenges,
        recovery=base.recovery,
        clock=base.clock,
    )


def gateways(base: Foundation, does: WorkParts) -> Gateways:
    """The service behind gateways and their certificates."""
    host, _ = split_address(base.settings.gateway.grpc, "gateway.grpc")
    return Gateways(
        database=base.database,
        keyring=base.keyring,
        certificates=base.certificates,
        changes=base.changes,
        policies=base.policies,
        connected=does.connected_gateways,
        events=base.events,
        clock=base.clock,
        announced=host,
    )


def _service_accounts(base: Foundation) -> ServiceAccounts:
    return ServiceAccounts(
        database=base.database,
        changes=base.changes,
        policies=base.policies,
        events=base.events,
        clock=base.clock,
    )


def _account_tokens(base: Foundation) -> AccountTokens:
    return AccountTokens(
        base.database, base.policies, base.keyring.token_hmac, base.events, base.clock
    )


def _authentication(base: Foundation, people: People) -> Authentication:
    return Authentication(
        database=base.database,
        log_in=people.log_in,
        sessions=people.sessions,
        passwords=people.passwords,
        policies=base.policies,
        events=base.events,
    )


def _users(base: Foundation, people: People) -> Users:
    return Users(
        database=base.database,
        changes=base.changes,
        policies=base.policies,
        passwords=people.passwords,
        totp=people.totp,
        payload_key=base.keyring.token_hmac,
        events=base.events,
        clock=base.clock,
    )


def _facts(base: Foundation) -> Facts:
    return Facts(
        version=metadata.version("appliance"),
        cluster_id=base.keyring.cluster_id,
        gateway_address=base.settings.gateway.grpc,
        openai_base_url=base.settings.gateway.openai,
    )
