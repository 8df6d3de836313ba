"""What a gateway knows of access and routes at one moment: an immutable copy of the last view.

Pure. Made by `appliance.gateway.view`; read by `access` and `fleet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2

_READY = frozenset({endpoint_pb2.Replica.STATE_READY, endpoint_pb2.Replica.STATE_DRAINING})


@dataclass(frozen=True)
class Credential:
    """A live bearer token: digest of its secret, whose it is, and its end (seconds since 1970)."""

    digest: bytes = field(repr=False)
    principal: str
    expires: float


@dataclass(frozen=True, order=True)
class Place:
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
        model: version it serves.
        max_sequence_length: longest prompt and answer together, in tokens.
        places: replicas that can be connected to.
        coming: whether a replica is on its way: one that starts, or none is known at all yet.
    """

    endpoint: str
    model: str
    max_sequence_length: int
    places: tuple[Place, ...]
    coming: bool


@dataclass(frozen=True)
class Snapshot:
    """One view of the control plane.

    Attributes:
        credentials: by token id.
        grants: endpoints by principal.
        routes: by endpoint.
    """

    version: int
    token_key: bytes = field(repr=False)
    credentials: Mapping[str, Credential] = field(repr=False)
    grants: Mapping[str, frozenset[str]]
    routes: Mapping[str, Route]

    @classmethod
    def of(cls, view: routing_service_pb2.RoutingView) -> Snapshot:
        """The snapshot of a whole view."""
        return cls(
            version=view.version,
            token_key=view.token_key,
            credentials={
                found.id: Credential(
                    found.digest,
                    found.principal,
                    found.expire_time.seconds + found.expire_time.nanos / 1e9,
                )
                for found in view.credentials
            },
            grants={found.principal: frozenset(found.endpoints) for found in view.grants},
            routes={route.endpoint: _route(route) for route in view.routes},
        )


def _route(route: routing_service_pb2.Route) -> Route:
    places = tuple(
        Place(route.endpoint, replica.id, replica.epoch, replica.address, replica.server_name)
        for replica in route.replicas
        if replica.state in _READY and replica.address
    )
    others = any(replica.state not in _READY for replica in route.replicas)
    return Route(
        endpoint=route.endpoint,
        model=route.model,
        max_sequence_length=route.max_sequence_length,
        places=places,
        coming=others or not route.replicas,
    )
