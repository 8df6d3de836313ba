"""Rows of nodes: their states, what work holds on them, and which of them take nothing new.

Rules kept here:
* what a node has in use is counted from the work placed on it, not from what it says;
* a cordoned node takes nothing new: placement asks `closed`, and the transaction of each start asks
  again (`check_open`), so that nothing is placed there once `CordonNode` has returned.

Called by the life of jobs and replicas, and by `services.system.nodes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import LeaseLost
from appliance.core.jobs import LEASED

READY, LOST = "READY", "LOST"
_node = tables.node.c


@dataclass
class NodeUse:
    """What work holds on one node."""

    devices: int = 0
    memory_bytes: int = 0


def use_by_node(state: Reading) -> dict[str, NodeUse]:
    """What jobs and replicas hold, by node id."""
    job, replica = tables.job, tables.replica
    placements: list[dict[str, Any]] = []
    for row in state.all(job.select().where(job.c.state.in_(LEASED))):
        placements += [share for share in row.placement if not share["ended"]]
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


def closed(state: Reading) -> dict[str, str]:
    """The nodes that take nothing new, by id, and why, for a person."""
    rows = state.all(select(tables.node).where(_node.cordoned))
    return {row.id: why_closed(row) for row in rows}


def why_closed(row: Row[Any]) -> str:
    """Why a node that is cordoned takes nothing new."""
    why = f" ({row.cordon_reason})" if row.cordon_reason else ""
    return f"it is {'drained' if row.draining else 'cordoned'}{why}"


def draining(state: Reading) -> Mapping[str, Row[Any]]:
    """The nodes that are drained, by id."""
    rows = state.all(select(tables.node).where(_node.draining).order_by(_node.id))
    return {row.id: row for row in rows}


def check_open(state: Reading, nodes: Iterable[str]) -> None:
    """Raise LeaseLost when one of these nodes takes nothing new, or is gone.

    Args:
        state: the transaction of a start.
        nodes: that the start was to be on.
    """
    wanted = set(nodes)
    found = state.all(select(_node.id).where(_node.id.in_(sorted(wanted)), ~_node.cordoned))
    if refused := sorted(wanted - {row.id for row in found}):
        raise LeaseLost(f"node {refused[0]} was cordoned or deleted at the same moment")
