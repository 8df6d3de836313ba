"""What a gateway knows of access and routes at one moment: an immutable copy of the last view.

Rules kept here:
* a snapshot is never changed: a draft begins as a copy of one, takes the messages of a change, and
  becomes another;
* a change counts when it is complete, belongs to the snapshot it is applied to, and leaves exactly
  what the control plane holds, as the digest says. Anything else asks for the whole view again.

The attack: a lost or doubled change after which a right goes on that was taken away. Pure. Made by
`appliance.gateway.view`; read by `access` and `fleet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2
from appliance.core.errors import Internal
from appliance.wire import routing

_READY = frozenset({endpoint_pb2.Replica.STATE_READY, endpoint_pb2.Replica.STATE_DRAINING})
EVERYWHERE = "projects/-"

Key = tuple[str, ...]
"""What an entry of the view is known by: its kind and its names."""


@dataclass(frozen=True)
class Credential:
    """A live bearer token: digest of its secret, whose it is, and its end (seconds since 1970)."""

    digest: bytes = field(repr=False)
    principal: str
    expires: float


@dataclass(frozen=True, order=True)
class ReplicaAddress:
    """One start of one replica. `id` stays the same over restarts, `epoch` rises with each.

    `server_name` is in the certificate of this start and of no other.
    """

    endpoint: str
    id: str
    epoch: int
    address: str
    server_name: str


@dataclass(frozen=True)
class Route:
    """How to reach an endpoint.

    Attributes:
        project: it belongs to.
        model: version it serves.
        max_sequence_length: longest prompt and answer together, in tokens.
        places: replicas that can be connected to.
        coming: whether a replica is on its way: one that starts, or none is known at all yet.
        failed: whether none has stayed up, each time one was started.
    """

    endpoint: str
    project: str
    model: str
    max_sequence_length: int
    places: tuple[ReplicaAddress, ...]
    coming: bool
    failed: bool = False


@dataclass(frozen=True)
class RoutingSnapshot:
    """One view of the control plane.

    Attributes:
        credentials: by token id.
        rights: permissions by principal and project; a project without a line of its own has that
            of all projects.
        routes: by endpoint.
        entries: number of each entry in the digest.
        total: their sum.
    """

    version: int
    token_key: bytes = field(repr=False)
    credentials: Mapping[str, Credential] = field(repr=False)
    rights: Mapping[tuple[str, str], frozenset[str]]
    routes: Mapping[str, Route]
    entries: Mapping[Key, int] = field(repr=False)
    total: int = field(repr=False)

    @classmethod
    def of(cls, view: routing_service_pb2.RoutingView) -> RoutingSnapshot:
        """The snapshot of a whole view of one message."""
        draft = Draft(None, view)
        draft.add(view)
        return draft.finished(view)

    def may(self, principal: str, project: str, permission: str) -> bool:
        """Whether a principal may do something in a project."""
        found = self.rights.get((principal, project))
        if found is None:
            found = self.rights.get((principal, EVERYWHERE), frozenset())
        return permission in found


class Draft:
    """A snapshot being made.

    Args:
        base: what it changes; None for a whole view.
        first: the first of its messages.
    """

    def __init__(
        self, base: RoutingSnapshot | None, first: routing_service_pb2.RoutingView
    ) -> None:
        self.base = base
        self.version = first.version
        self._token_key = base.token_key if base else first.token_key
        self._credentials = dict(base.credentials) if base else {}
        self._rights = dict(base.rights) if base else {}
        self._routes = dict(base.routes) if base else {}
        self._entries = dict(base.entries) if base else {}
        self._total = base.total if base else 0

    def add(self, message: routing_service_pb2.RoutingView) -> None:
        """Take in one message."""
        for credential in message.credentials:
            self._put(("credential", credential.id), credential)
            self._credentials[credential.id] = Credential(
                credential.digest,
                credential.principal,
                credential.expire_time.seconds + credential.expire_time.nanos / 1e9,
            )
        for right in message.rights:
            self._put(("right", right.principal, right.project), right)
            self._rights[right.principal, right.project] = frozenset(right.permissions)
        for route in message.routes:
            self._put(("route", route.endpoint), route)
            self._routes[route.endpoint] = _route(route)
        self._drop("credential", ((name,) for name in message.gone_credentials))
        self._drop("right", ((right.principal, right.project) for right in message.gone_rights))
        self._drop("route", ((name,) for name in message.gone_routes))

    def finished(self, last: routing_service_pb2.RoutingView) -> RoutingSnapshot:
        """The snapshot after the last message. Raises Internal when it is not what was meant."""
        if routing.digest(self._total) != last.digest:
            raise Internal(
                f"version {self.version} of the view is not what the control plane holds"
            )
        return RoutingSnapshot(
            version=self.version,
            token_key=self._token_key,
            credentials=self._credentials,
            rights=self._rights,
            routes=self._routes,
            entries=self._entries,
            total=self._total,
        )

    def _put(self, key: Key, entry: routing.ViewEntry) -> None:
        number = routing.entry_digest(entry)
        old = self._entries.get(key, 0)
        self._total = routing.total(self._total, (number,), (old,))
        self._entries[key] = number

    def _drop(self, kind: str, names: Iterable[Key]) -> None:
        """Forget entries; one that is not there leaves the digest wrong, which `finished` says."""
        for name in names:
            self._total = routing.total(self._total, (), (self._entries.pop((kind, *name), 0),))
            if kind == "credential":
                self._credentials.pop(name[0], None)
            elif kind == "right":
                self._rights.pop((name[0], name[1]), None)
            else:
                self._routes.pop(name[0], None)


def _route(route: routing_service_pb2.Route) -> Route:
    places = tuple(
        ReplicaAddress(
            route.endpoint, replica.id, replica.epoch, replica.address, replica.server_name
        )
        for replica in route.replicas
        if replica.state in _READY and replica.address
    )
    others = any(replica.state not in _READY for replica in route.replicas)
    return Route(
        endpoint=route.endpoint,
        project=route.project,
        model=route.model,
        max_sequence_length=route.max_sequence_length,
        places=places,
        coming=others or not route.replicas,
        failed=route.state == endpoint_pb2.Endpoint.STATE_FAILED,
    )
