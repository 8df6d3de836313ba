"""Nodes: the servers that run work, as the rest of the appliance sees them; and evicting one.

Rules kept here:
* what a node has in use is counted from the work placed on it, not from what it says;
* an evicted node is refused from the moment `evict` returns: its role is gone with the new policy,
  its certificate by its state; its work is placed elsewhere by the scheduler; join tokens made for
  its name until then are void.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.api.nodes.v1 import node_pb2, node_service_pb2
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.fleet.certificates import EVICTED, evict_in
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name

READY, LOST = "READY", "LOST"
_STATES = {
    READY: node_pb2.Node.STATE_READY,
    LOST: node_pb2.Node.STATE_LOST,
    EVICTED: node_pb2.Node.STATE_EVICTED,
}
_HOLDING = ("STARTING", "RUNNING")


@dataclass
class NodeUse:
    """What work holds on one node."""

    devices: int = 0
    memory_bytes: int = 0


def use_by_node(state: Reading) -> dict[str, NodeUse]:
    """What jobs and replicas hold, by node id."""
    job, replica = tables.job, tables.replica
    placements: list[dict[str, Any]] = []
    for row in state.all(job.select().where(job.c.state.in_(_HOLDING))):
        placements += row.placement
    for row in state.all(replica.select().where(replica.c.node.is_not(None))):
        placements += [row.placement] if row.placement else []
    return _sum(placements)


def _sum(placements: Iterable[dict[str, Any]]) -> dict[str, NodeUse]:
    used: dict[str, NodeUse] = defaultdict(NodeUse)
    for placement in placements:
        use = used[placement["node"]]
        use.devices += len(placement["devices"])
        use.memory_bytes += placement["memory_bytes"]
    return used


class Nodes:
    """Shows and evicts nodes."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, name: str) -> node_pb2.Node:
        """One node."""
        del caller
        identifier = Name.parse(name, "node").id
        with self._database.read() as state:
            row = state.first(tables.node.select().where(tables.node.c.id == identifier))
            if row is None:
                raise missing(name)
            return _resource(row, use_by_node(state).get(row.id, NodeUse()))

    def list(
        self, caller: Caller, request: node_service_pb2.ListNodesRequest
    ) -> node_service_pb2.ListNodesResponse:
        """One page of nodes, by name."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = tables.node.select().order_by(tables.node.c.id).limit(size + 1)
        if after is not None:
            wanted = wanted.where(tables.node.c.id > after[0])
        with self._database.read() as state:
            rows, used = state.all(wanted), use_by_node(state)
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return node_service_pb2.ListNodesResponse(
            nodes=[_resource(row, used.get(row.id, NodeUse())) for row in page],
            next_page_token=token,
        )

    def evict(self, caller: Caller, request: node_service_pb2.EvictNodeRequest) -> node_pb2.Node:
        """Refuse a node from now on."""
        identifier = Name.parse(request.name, "node").id

        def work(transaction: Transaction) -> node_pb2.Node:
            machine = Principal(PrincipalKind.NODE, identifier)
            evict_in(transaction, self._policies, self._events, machine)
            row = transaction.first(tables.node.select().where(tables.node.c.id == identifier))
            return _resource(row, use_by_node(transaction).get(identifier, NodeUse()))

        return self._changes.make(caller, request, node_pb2.Node, work)


def _resource(row: Any, use: NodeUse) -> node_pb2.Node:  # noqa: ANN401  # a row of SQLAlchemy
    facts = row.facts
    return node_pb2.Node(
        name=names.node(row.id),
        state=_STATES[row.state],
        devices=facts.get("devices", 0),
        devices_used=use.devices,
        device_kind=facts.get("device_kind", ""),
        memory_bytes=facts.get("memory_bytes", 0),
        memory_used_bytes=use.memory_bytes,
        address=facts.get("address", ""),
        agent_version=facts.get("agent_version", ""),
        capabilities=[
            node_pb2.Capability(kind=kind, available=not reason, reason=reason)
            for kind, reason in sorted((facts.get("lacks") or {}).items())
        ],
        create_time=timestamp(row.create_time),
        seen_time=timestamp(row.seen_time),
    )
