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
from typing import NamedTuple

from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2
from appliance.core.errors import Internal
from appliance.wire import routing

_READY = frozenset({endpoint_pb2.Replica.STATE_READY, endpoint_pb2.Replica.STATE_DRAINING})
_STOPPED = frozenset({endpoint_pb2.Endpoint.STATE_STOPPING, endpoint_pb2.Endpoint.STATE_STOPPED})
EVERYWHERE = "projects/-"

Key = tuple[str, ...]
"""What an entry of the view is known by: its kind and its names."""


@dataclass(frozen=True)
class Credential:
    """A live bearer token: digest of its secret, whose it is, and its end (seconds since 1970)."""

    digest: bytes = field(repr=False)
    principal: str
    expires: float


class ServedVersion(NamedTuple):
    """What replicas have in common that can go on with each other's answers.

    While an endpoint changes, its replicas are of two versions, each with a tokenizer and a limit
    of its own: a prompt is made for one of them.

    Attributes:
        model: name of the version.
        uid: of the version; another one may have had the name before.
        max_sequence_length: longest prompt and answer together, in tokens.
    """

    model: str = ""
    uid: str = ""
    max_sequence_length: int = 0


ANY_VERSION = ServedVersion()
"""Of a fleet that tells none apart."""


class Pool(NamedTuple):
    """The replicas of one version at one endpoint: whoever asks one of them may ask the others."""

    endpoint: str
    version: ServedVersion


@dataclass(frozen=True, order=True)
class ReplicaAddress:
    """One start of one replica. `id` stays the same over restarts, `epoch` rises with each.

    `server_name` is in the certificate of this start and of no other; `version` is what it serves.
    """

    endpoint: str
    id: str
    epoch: int
    address: str
    server_name: str
    version: ServedVersion = ANY_VERSION


@dataclass(frozen=True)
class Route:
    """How to reach an endpoint.

    Attributes:
        project: it belongs to.
        newest: version that it is to serve.
        places: replicas that can be connected to.
        coming: versions of which a replica is on its way: one that starts, or none is known at all
            yet.
        failed: whether none has stayed up, each time one was started.
        stopped: whether somebody stopped it, or stops it now.
    """

    endpoint: str
    project: str
    newest: ServedVersion
    places: tuple[ReplicaAddress, ...]
    coming: frozenset[ServedVersion] = frozenset()
    failed: bool = False
    stopped: bool = False

    @property
    def versions(self) -> frozenset[ServedVersion]:
        """What is served, or will be."""
        return self.coming | {place.version for place in self.places} | {self.newest}


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
    newest = ServedVersion(route.model, route.model_uid, route.max_sequence_length)
    versions = {replica.id: _version(replica, newest) for replica in route.replicas}
    places = tuple(
        ReplicaAddress(
            route.endpoint,
            replica.id,
            replica.epoch,
            replica.address,
            replica.server_name,
            versions[replica.id],
        )
        for replica in route.replicas
        if replica.state in _READY and replica.address
    )
    others = {versions[replica.id] for replica in route.replicas if replica.state not in _READY}
    stopped = route.state in _STOPPED
    return Route(
        endpoint=route.endpoint,
        project=route.project,
        newest=newest,
        places=places,
        coming=frozenset(others if route.replicas or stopped else {newest}),
        failed=route.state == endpoint_pb2.Endpoint.STATE_FAILED,
        stopped=stopped,
    )


def _version(replica: endpoint_pb2.Replica, newest: ServedVersion) -> ServedVersion:
    """What a replica serves; an older control plane has one version, and does not say it again."""
    if not replica.model:
        return newest
    return ServedVersion(replica.model, replica.model_uid, replica.max_sequence_length)
