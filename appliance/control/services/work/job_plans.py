"""What a job would need, and where it would run now. Pure.

Called by `services.work.jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.api.jobs.v1 import job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.core import names
from appliance.core.errors import Exhausted
from appliance.core.placement import Demand, NodeCapacity, place, room, why_none
from appliance.kinds.kind import TORCH_PROCESS, Kind


def plan(
    job: job_pb2.Job, kind: Kind, demand: Demand, nodes: Sequence[NodeCapacity]
) -> rpc.JobPlan:
    """The plan of a job.

    Args:
        job: as it would be accepted.
        kind: of it.
        demand: what it needs.
        nodes: what those that are connected have now.
    """
    waits, placed = "", {}
    try:
        placed = {each.node: each.ranks for each in place(demand, nodes)}
    except Exhausted as error:
        waits = error.message
    on_gpu = max(demand.memory_per_rank - TORCH_PROCESS, 0) if kind.uses_gpu else 0
    return rpc.JobPlan(
        job=job,
        ranks=demand.ranks,
        host_memory_bytes=demand.memory_per_rank,
        device_memory_bytes=on_gpu,
        modules=sorted(kind.modules),
        nodes=[
            rpc.NodePlan(
                node=names.node(node.node),
                ranks=placed.get(node.node, 0),
                reason="" if node.node in placed else _why_not(demand, node, waits=bool(waits)),
            )
            for node in sorted(nodes, key=lambda node: node.node)
        ],
        waits_for=waits,
    )


def _why_not(demand: Demand, node: NodeCapacity, *, waits: bool) -> str:
    """Why a node would run no rank."""
    if reason := why_none(demand, node):
        return reason
    if waits:
        return f"it has room for {room(demand, node)} of the {demand.ranks} ranks"
    return "the others have room for all ranks"
