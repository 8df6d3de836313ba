"""What runs on a node, what each piece of it waits for, and whether another node could hold it.

Rules kept here:
* what is there is read from the rows, and from the leases what has not ended yet: a node is empty
  when its processes have ended, not when somebody has decided that they should;
* names are shown to whom may see the job or the endpoint; others learn that there is something.

Called by `services.system.nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, select

from appliance.api.nodes.v1 import node_pb2
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.common.caller import Caller
from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.serving import replica_rows
from appliance.control.services.work import job_rows, pause_rows
from appliance.control.services.work.shares import shares_of
from appliance.control.services.work.silent_nodes import said_of
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.errors import ApplianceError
from appliance.core.jobs import LEASED, JobState
from appliance.core.placement import NodeCapacity, could_hold
from appliance.kinds import kind_of

ENDING = "ENDING"
REPLICA = "replica"
_job, _replica, _endpoint = tables.job.c, tables.replica.c, tables.endpoint.c


class WorkOnNodes:
    """Looks at it."""

    def __init__(self, leases: Leases, policies: PolicyStore) -> None:
        self._leases = leases
        self._policies = policies

    def of(self, state: Reading, caller: Caller, node: Row[Any]) -> list[node_pb2.NodeWork]:
        """What is on a node, by name, as this caller may see it.

        Args:
            state: to read.
            caller: who asks.
            node: its row.
        """
        others = _others(state, node)
        found = [*self._jobs(state, node, others), *self._replicas(state, node, others)]
        known = {work for work, _, _ in found}
        found += [
            _ending(state, work) for work in dict(self._leases.ending(node.id)) if work not in known
        ]
        policy = self._policies.current()
        for _, project, each in found:
            noun = "endpoints" if each.kind == REPLICA else "jobs"
            if not project or not policy.allowed(caller.principal, project, f"{noun}.get"):
                each.name = ""
                each.note = ""
        return sorted((each for _, _, each in found), key=lambda each: (each.name, each.kind))

    @staticmethod
    def _jobs(
        state: Reading, node: Row[Any], others: list[NodeCapacity]
    ) -> Iterator[tuple[str, str, node_pb2.NodeWork]]:
        wanted = select(tables.job).where(_job.state.in_(LEASED)).order_by(_job.uid)
        for row in state.all(wanted):
            for share in shares_of(row):
                if share.node != node.id or share.ended:
                    continue
                fits = not node.draining or _holds_job(state, row, others)
                said = [_leaves(row, node), said_of(row), "" if fits else _nowhere(node)]
                yield (
                    row.uid,
                    row.project,
                    node_pb2.NodeWork(
                        name=job_rows.name_of(row),
                        kind=row.kind,
                        state=row.state,
                        devices=share.devices,
                        memory_bytes=share.memory_bytes,
                        note="; ".join(filter(None, said)),
                    ),
                )

    @staticmethod
    def _replicas(
        state: Reading, node: Row[Any], others: list[NodeCapacity]
    ) -> Iterator[tuple[str, str, node_pb2.NodeWork]]:
        rows = state.all(
            select(tables.replica).where(_replica.node == node.id).order_by(_replica.id)
        )
        for row in rows:
            endpoint = _endpoint_of(state, row.endpoint)
            if endpoint is None:
                continue
            fits = not node.draining or _holds_replica(state, endpoint, others)
            placement = row.placement or {"devices": [], "memory_bytes": 0}
            yield (
                replica_rows.work_of(row.endpoint, row.id),
                endpoint.project,
                node_pb2.NodeWork(
                    name=names.replica(endpoint.project, endpoint.id, row.id),
                    kind=REPLICA,
                    state=row.state,
                    devices=placement["devices"],
                    memory_bytes=placement["memory_bytes"],
                    note="; ".join(filter(None, [str(row.reason), "" if fits else _nowhere(node)])),
                ),
            )


def _leaves(row: Row[Any], node: Row[Any]) -> str:
    """How a job leaves a node."""
    if row.state == JobState.PAUSING:
        return pause_rows.asked(row.pause)
    if not node.draining:
        return ""
    grace = node.drain_grace_seconds
    if kind_of(row.kind).checkpoint_bytes is None:
        return (
            f"a job of kind {row.kind} keeps no checkpoints: it may end within {grace} s, and else"
            " begins anew"
        )
    return f"it is told to save a checkpoint, in {grace} s at most"


def _ending(state: Reading, work: str) -> tuple[str, str, node_pb2.NodeWork]:
    """Work that is over, and whose processes have not ended yet."""
    note = "it is over here, and its processes have not ended yet"
    uid, _, replica = work.partition("/")
    made = node_pb2.NodeWork(state=ENDING, note=note)
    project = ""
    if replica:
        made.kind = REPLICA
        if (endpoint := _endpoint_of(state, uid)) is not None:
            project = endpoint.project
            made.name = names.replica(project, endpoint.id, replica)
    elif (row := job_rows.by_uid(state, uid)) is not None:
        project, made.kind, made.name = row.project, row.kind, job_rows.name_of(row)
    return work, project, made


def _others(state: Reading, node: Row[Any]) -> list[NodeCapacity]:
    """The other nodes that take something new, as if nothing ran there; one that is away, too."""
    other = tables.node.c
    rows = state.all(
        select(tables.node).where(other.id != node.id, other.state != EVICTED, ~other.cordoned)
    )
    return [
        NodeCapacity(
            row.id,
            row.facts["devices"],
            row.facts["memory_bytes"],
            lacks=row.facts.get("lacks"),
        )
        for row in rows
        if row.facts
    ]


def _nowhere(node: Row[Any]) -> str:
    """That no other node could hold what leaves a node, and what to do."""
    return (
        "no other node that takes work could hold it: it will wait until one is added, or until"
        f" `appliance node uncordon {node.id}`"
    )


def _holds_job(state: Reading, row: Row[Any], nodes: list[NodeCapacity]) -> bool:
    """Whether these nodes could hold a job; True when what it needs cannot be told."""
    try:
        inputs = job_rows.inputs_of(state, row)
        need = kind_of(row.kind).demand(job_rows.spec_of(row), inputs)
    except ApplianceError:
        return True
    return could_hold(replace(need, kind=row.kind), nodes)


def _holds_replica(state: Reading, endpoint: Row[Any], nodes: list[NodeCapacity]) -> bool:
    """Whether one of these nodes could hold a replica; True when that cannot be told."""
    version = tables.artifact_version
    model = state.first(select(version).where(version.c.uid == endpoint.model_version))
    if model is None:
        return True
    need = replica_rows.demand(model.facts, endpoint.tensor_parallel, endpoint.cache_bytes)
    return any(could_hold(need, [node]) for node in nodes)


def _endpoint_of(state: Reading, uid: str) -> Row[Any] | None:
    return state.first(select(tables.endpoint).where(_endpoint.uid == uid))
