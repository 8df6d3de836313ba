"""Who calls.

A principal, its subject in the policy, its resource name, and its SPIFFE id in a certificate.

Rules kept here:
* a principal's id cannot hold `:` or `/` and a subject's prefix comes from the kind alone, so
  nobody can be called `role:owner` and be matched by the policy as a role;
* the three spellings (subject, name, SPIFFE id) come from one table and turn back into the same
  principal;
* a SPIFFE id is accepted for one cluster only and compared as exact text, never by prefix;
* a server is known by name: callers expect `control.appliance`, never just "one of ours", so that
  what was taken from a worker cannot pose as the control plane.

Called by the gate, the certificate code, the policy and every server's door.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from appliance.core.errors import InvalidInput
from appliance.core.names import is_id, shown

SERVER_ZONE = "appliance"
"""Under it are the DNS names by which servers of the appliance know each other; nowhere else."""


class PrincipalKind(Enum):
    """What kind of caller.

    (subject prefix, collection of its resource name, SPIFFE path segment).
    """

    USER = ("user", "users", "user")
    SERVICE_ACCOUNT = ("svc", "serviceAccounts", "service-account")
    NODE = ("node", "nodes", "node")
    GATEWAY = ("gateway", "gateways", "gateway")
    REPLICA = ("replica", "replicas", "replica")
    CONTROL = ("control", "controls", "control")
    ANONYMOUS = ("anonymous", "", "")

    @property
    def prefix(self) -> str:
        """What a subject of this kind begins with."""
        return self.value[0]

    @property
    def collection(self) -> str:
        """Collection of the resource name; empty for anonymous."""
        return self.value[1]

    @property
    def path(self) -> str:
        """Segment of the SPIFFE id; empty for anonymous, who has no certificate."""
        return self.value[2]

    @property
    def server_name(self) -> str:
        """DNS name that every server of this kind shows: `control.appliance`."""
        return f"{self.path}.{SERVER_ZONE}"


@dataclass(frozen=True)
class Principal:
    """A caller. Raises InvalidInput when the id could be read as something else."""

    kind: PrincipalKind
    id: str

    def __post_init__(self) -> None:
        """Refuse an id that does not fit the kind."""
        if (self.kind is PrincipalKind.ANONYMOUS) != (self.id == ""):
            raise InvalidInput("only the anonymous caller has no id")
        if self.id and not is_id(self.id):
            raise InvalidInput(f"{shown(self.id)} cannot be the id of a caller")

    @property
    def subject(self) -> str:
        """What the policy calls it: `user:alice`, `svc:app`, `node:gpu-1`.

        `anonymous` for nobody.
        """
        return f"{self.kind.prefix}:{self.id}" if self.id else self.kind.prefix

    @property
    def name(self) -> str:
        """Its resource name: `users/alice`; empty for nobody."""
        return f"{self.kind.collection}/{self.id}" if self.id else ""

    @property
    def server_name(self) -> str:
        """DNS name that this server alone shows: `gateway-1.gateway.appliance`."""
        return f"{self.id}.{self.kind.server_name}"

    def __str__(self) -> str:
        """The subject."""
        return self.subject


ANONYMOUS = Principal(PrincipalKind.ANONYMOUS, "")


def parse_subject(subject: str) -> Principal:
    """The principal of a policy subject such as `user:alice`.

    Raises InvalidInput, also for `role:…`.
    """
    if subject == ANONYMOUS.subject:
        return ANONYMOUS
    prefix, colon, identifier = subject.partition(":")
    for kind in PrincipalKind:
        if colon and kind.prefix == prefix and kind is not PrincipalKind.ANONYMOUS:
            return Principal(kind, identifier)
    raise InvalidInput(f"{shown(subject)} is not the subject of a caller")


def parse_name(name: str) -> Principal:
    """The principal of a resource name such as `users/alice`. Raises InvalidInput."""
    collection, slash, identifier = name.partition("/")
    for kind in PrincipalKind:
        if slash and kind.collection == collection and kind is not PrincipalKind.ANONYMOUS:
            return Principal(kind, identifier)
    raise InvalidInput(
        f"{shown(name)} names no caller: use users/{{user}}, "
        "serviceAccounts/{service_account} or nodes/{node}"
    )


def spiffe_id(cluster: str, principal: Principal) -> str:
    """The URI in a certificate: `spiffe://<cluster>/node/<id>` (SPIFFE-ID standard, section 2)."""
    if not is_id(cluster):
        raise InvalidInput(f"{shown(cluster)} cannot be a cluster id")
    if principal.kind is PrincipalKind.ANONYMOUS:
        raise InvalidInput("the anonymous caller has no certificate")
    return f"spiffe://{cluster}/{principal.kind.path}/{principal.id}"


def parse_spiffe(uri: str, cluster: str) -> Principal:
    """The principal of a certificate's URI.

    Raises InvalidInput for another cluster or anything not exact.
    """
    for kind in PrincipalKind:
        head = f"spiffe://{cluster}/{kind.path}/"
        if kind.path and is_id(cluster) and uri.startswith(head) and is_id(uri[len(head) :]):
            return Principal(kind, uri[len(head) :])
    raise InvalidInput(f"{shown(uri)} is not an identity of this appliance")
