"""The parts of a job's start, one for each of its nodes: made of places, and read from its row.

Called by the life of jobs and by `services.system.node_work`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import Leases, Share
from appliance.core.addresses import MEETING_PORT
from appliance.core.errors import Exhausted
from appliance.core.placement import Demand, Placement


def shares_of(row: Row[Any]) -> list[Share]:
    """The shares in a job's row."""
    return [Share.from_json(share) for share in row.placement]


def shares_on(
    placements: Sequence[Placement], demand: Demand, leases: Leases, fleet: ConnectedAgents
) -> list[Share]:
    """The shares of a start on these places; those of several nodes meet at a port of the first.

    Raises Exhausted when that node has no port left.
    """
    port = 0
    if len(placements) > 1:
        node = placements[0].node
        used = leases.ports(node)
        # An agent of 0.1.0 does not say which ports are free.
        free = fleet.ports(node) or range(MEETING_PORT, 1 << 16)
        port = next((port for port in free if port not in used), 0)
        if not port:
            raise Exhausted(f"node {node} has no free port on which the nodes could meet")
    shares: list[Share] = []
    base = 0
    for placed in placements:
        memory = placed.ranks * demand.memory_per_rank
        first = port if base == 0 else 0
        shares.append(Share(placed.node, base, placed.device_indices, memory, first))
        base += placed.ranks
    return shares
