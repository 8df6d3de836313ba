"""Whether there is any node that work could run on, told before the work is accepted.

Rule kept here: nodes that are away count, because they come back; evicted ones do not.

Called by the services of jobs and endpoints.
"""

from __future__ import annotations

from sqlalchemy import select

from appliance.control.services.memory import readable
from appliance.control.services.nodes import EVICTED
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import FailedPrecondition
from appliance.core.placement import Demand, NodeCapacity, check_feasible


def known(state: Reading) -> list[NodeCapacity]:
    """Every node that has been connected once, as if nothing ran on it."""
    node = tables.node.c
    rows = state.all(select(tables.node).where(node.state != EVICTED).order_by(node.id))
    return [
        NodeCapacity(row.id, row.facts["devices"], row.facts["memory_bytes"])
        for row in rows
        if row.facts
    ]


def check(state: Reading, demand: Demand, unit: str, advice: str) -> None:
    """Raise FailedPrecondition when no node, however idle, could do its part.

    Args:
        state: knows the nodes.
        demand: of the work.
        unit: what `memory_per_rank` is counted for, `rank` or `device`.
        advice: how to need less memory.
    """
    nodes = known(state)
    offered = max((node.memory_total for node in nodes), default=0)
    if nodes and demand.memory_per_rank > offered:
        raise FailedPrecondition(
            f"it needs about {readable(demand.memory_per_rank)} per {unit}; the largest node "
            f"offers {readable(offered)}: {advice}",
            needed=demand.memory_per_rank,
            offered=offered,
        )
    check_feasible(demand, nodes)
