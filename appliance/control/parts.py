"""Every service and servicer of the control plane, built from an open data directory.

Rules kept here: each part gets what it needs as arguments and nothing else; who needs another part
comes after it. The two lists say what is served where, and are what the access table is checked
against.

Called by `appliance.control.main`, the composition root.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime
from importlib import metadata

from appliance.control.auth.attempts import Attempts
from appliance.control.auth.credentials import Credentials
from appliance.control.auth.passwords import Passwords
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.roles import Roles
from appliance.control.auth.sessions import Sessions
from appliance.control.auth.totp import Totp
from appliance.control.config import ControlConfig
from appliance.control.events import Events
from appliance.control.opening import Opened
from appliance.control.rpc.audit import AuditRpc
from appliance.control.rpc.auth import AuthRpc
from appliance.control.rpc.bindings import BindingRpc
from appliance.control.rpc.enrolment import EnrolmentRpc
from appliance.control.rpc.nodes import NodeRpc
from appliance.control.rpc.projects import ProjectRpc
from appliance.control.rpc.roles import RoleRpc
from appliance.control.rpc.service_accounts import ServiceAccountRpc
from appliance.control.rpc.servicer import Servicer, descriptor_of
from appliance.control.rpc.system import SystemRpc
from appliance.control.rpc.users import UserRpc
from appliance.control.services.audit import Audit
from appliance.control.services.authentication import Authentication
from appliance.control.services.bindings import Bindings
from appliance.control.services.change import Changes
from appliance.control.services.enrolment import Enrolment, NodeCertificates
from appliance.control.services.keys import Keys
from appliance.control.services.nodes import Nodes
from appliance.control.services.projects import Projects
from appliance.control.services.roles import RoleService
from appliance.control.services.service_accounts import ServiceAccounts
from appliance.control.services.system import Facts, System
from appliance.control.services.users import Users
from appliance.wire.rules import Rule, rules_of

API: tuple[type[Servicer], ...] = (
    AuditRpc,
    AuthRpc,
    BindingRpc,
    EnrolmentRpc,
    NodeRpc,
    ProjectRpc,
    RoleRpc,
    ServiceAccountRpc,
    SystemRpc,
    UserRpc,
)
"""What people and applications call, and servers that join."""
MACHINES: tuple[type[Servicer], ...] = ()
"""What nodes and gateways call."""

Clock = Callable[[], datetime]


def rules() -> dict[str, Rule]:
    """The access rule of every RPC of the control plane. Raises RuleMissing."""
    return rules_of([descriptor_of(kind) for kind in (*API, *MACHINES)])


class Foundation:
    """What most services need.

    Args:
        opened: the open data directory.
        settings: the configuration.
        clock: the time, aware.
    """

    def __init__(self, opened: Opened, settings: ControlConfig, clock: Clock) -> None:
        self.opened = opened
        self.settings = settings
        self.clock = clock
        self.database = opened.database
        self.keyring = opened.keyring
        self.events = Events()
        self.changes = Changes(self.database, clock)
        self.policies = PolicyStore(self.database, Roles.load())
        self.keys = Keys(self.keyring)
        self.certificates = NodeCertificates(self.database)


class People:
    """Passwords, codes, sessions and tokens."""

    def __init__(self, base: Foundation) -> None:
        ring = base.keyring
        self.passwords = Passwords(ring.pepper)
        self.sessions = Sessions(
            database=base.database,
            passwords=self.passwords,
            totp=Totp(ring.field_key, ring.token_hmac),
            attempts=Attempts(base.database, ring.token_hmac),
            token_key=ring.token_hmac,
            clock=base.clock,
        )
        self.credentials = Credentials(
            database=base.database,
            sessions=self.sessions,
            token_key=ring.token_hmac,
            clock=base.clock,
        )


def api(base: Foundation, people: People, pool: Executor) -> list[Servicer]:
    """The servicers of the API listener, one for each of `API`."""
    events = base.events
    nodes = Nodes(base.database, base.changes, base.policies, events, base.clock)
    return [
        AuditRpc(Audit(base.opened.log), pool, events),
        AuthRpc(
            Authentication(base.database, people.sessions, base.policies, events), pool, events
        ),
        BindingRpc(
            Bindings(base.database, base.changes, base.policies, events, base.clock), pool, events
        ),
        EnrolmentRpc(enrolment(base, nodes), pool, events),
        NodeRpc(nodes, enrolment(base, nodes), pool, events),
        ProjectRpc(Projects(base.database, base.changes, base.keys, base.clock), pool, events),
        RoleRpc(RoleService(base.policies.roles), pool, events),
        ServiceAccountRpc(_service_accounts(base), pool, events),
        SystemRpc(System(_facts(base), rules(), base.policies), pool, events),
        UserRpc(_users(base, people), pool, events),
    ]


def machines(base: Foundation, pool: Executor) -> list[Servicer]:
    """The servicers of the machine listener, one for each of `MACHINES`."""
    del base, pool
    return []


def enrolment(base: Foundation, nodes: Nodes) -> Enrolment:
    """The service behind joining and renewal."""
    return Enrolment(
        database=base.database,
        keyring=base.keyring,
        policies=base.policies,
        nodes=nodes,
        certificates=base.certificates,
        events=base.events,
        clock=base.clock,
    )


def _service_accounts(base: Foundation) -> ServiceAccounts:
    return ServiceAccounts(
        database=base.database,
        changes=base.changes,
        policies=base.policies,
        token_key=base.keyring.token_hmac,
        events=base.events,
        clock=base.clock,
    )


def _users(base: Foundation, people: People) -> Users:
    return Users(
        database=base.database,
        changes=base.changes,
        passwords=people.passwords,
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
