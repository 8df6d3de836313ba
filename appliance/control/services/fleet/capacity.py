"""Whether there is any node that work could run on, told before the work is accepted.

Rule kept here: nodes that are away count, because they come back; evicted ones do not.

Called by the services of jobs and endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import FailedPrecondition
from appliance.core.numbers import readable
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
    _check_memory(known(state), demand, unit, advice)
    check_feasible(demand, known(state))


def check_one_node(state: Reading, demand: Demand, unit: str, advice: str) -> None:
    """As `check`, for work whose ranks must all be on one node."""
    nodes = known(state)
    _check_memory(nodes, demand, unit, advice)
    largest = max((node.devices_total for node in nodes), default=0)
    if nodes and demand.ranks > largest:
        raise FailedPrecondition(
            f"it needs {demand.ranks} devices on one node; the largest node has {largest}",
            needed=demand.ranks,
            offered=largest,
        )
    for node in nodes:
        if fits(demand, node):
            return
    if not nodes:
        check_feasible(demand, nodes)
    raise FailedPrecondition(
        f"no node has {demand.ranks} devices with {readable(demand.memory_per_rank)} each: {advice}"
    )


def fits(demand: Demand, node: NodeCapacity) -> bool:
    """Whether all ranks fit on one idle node."""
    enough = demand.ranks * demand.memory_per_rank <= node.memory_total
    return enough and demand.ranks <= node.devices_total


def _check_memory(nodes: Sequence[NodeCapacity], demand: Demand, unit: str, advice: str) -> None:
    offered = max((node.memory_total for node in nodes), default=0)
    if nodes and demand.memory_per_rank > offered:
        raise FailedPrecondition(
            f"it needs about {readable(demand.memory_per_rank)} per {unit}; the largest node "
            f"offers {readable(offered)}: {advice}",
            needed=demand.memory_per_rank,
            offered=offered,
        )
