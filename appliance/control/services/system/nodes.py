"""Nodes: the servers that run work. Shown, cordoned, drained, evicted, deleted.

Rules kept here:
* a cordoned node takes nothing new from the moment `cordon` returns, until `uncordon`, whatever is
  started again or connects meanwhile: it is in the node's row;
* a drain is a cordon that work leaves (`services.work.drains`, `services.serving.replicas`);
* an evicted node is refused from the moment `evict` returns: its role is gone with the new policy,
  its certificate by its state; its work is placed elsewhere by the scheduler; join tokens made for
  its name until then are void;
* a node is deleted when nothing is on it, not even a process that is ending, unless it is away;
  nothing of it is left that a server which joins under its name could use.

Called by `rpc.nodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from appliance.api.nodes.v1 import node_pb2
from appliance.api.nodes.v1 import node_service_pb2 as rpc
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import NODES, QUEUE, Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.common.updates import check_etag, etag_of
from appliance.control.services.fleet.certificates import EVICTED, delete_in, evict_in
from appliance.control.services.fleet.node_rows import LOST, READY, NodeUse, use_by_node
from appliance.control.services.system.node_work import ENDING, WorkOnNodes
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.core.problems import Problems
from appliance.core.values import given

MAX_REASON = 200
_MAX_NAMED = 5
_STATES = {
    READY: node_pb2.Node.STATE_READY,
    LOST: node_pb2.Node.STATE_LOST,
    EVICTED: node_pb2.Node.STATE_EVICTED,
}
_OPEN = {
    "cordoned": False,
    "draining": False,
    "cordon_reason": "",
    "cordoned_by": "",
    "cordon_time": None,
    "drain_grace_seconds": 0,
}
"""Columns of a node that takes work."""
_node = tables.node.c


class Nodes:
    """Shows nodes, and does what people decide about them."""

    def __init__(  # noqa: PLR0913  # what it reads, and what an eviction touches
        self,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        work: WorkOnNodes,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._work = work
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, name: str) -> node_pb2.Node:
        """One node, with what runs on it."""
        with self._database.read() as state:
            return self._whole(state, caller, _by_name(state, name))

    def list(self, caller: Caller, request: rpc.ListNodesRequest) -> rpc.ListNodesResponse:
        """One page of nodes, by name."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = tables.node.select().order_by(_node.id).limit(size + 1)
        if after is not None:
            wanted = wanted.where(_node.id > after[0])
        with self._database.read() as state:
            rows, used = state.all(wanted), use_by_node(state)
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return rpc.ListNodesResponse(
            nodes=[_resource(row, used.get(row.id, NodeUse())) for row in page],
            next_page_token=token,
        )

    def cordon(self, caller: Caller, request: rpc.CordonNodeRequest) -> node_pb2.Node:
        """Place nothing new on a node; a drain goes on.

        Raises InvalidInput for a reason that is too long or no line of text.
        """
        return self._close(caller, request, {})

    def drain(self, caller: Caller, request: rpc.DrainNodeRequest) -> node_pb2.Node:
        """Let what runs on a node go on elsewhere; the scheduler does it.

        Raises InvalidInput for a reason or a grace that cannot be.
        """
        grace = given(request, "grace_seconds")
        return self._close(caller, request, {"draining": True, "drain_grace_seconds": grace})

    def uncordon(self, caller: Caller, request: rpc.UncordonNodeRequest) -> node_pb2.Node:
        """Let work come to a node again."""
        return self._changes.make(
            caller,
            request,
            node_pb2.Node,
            lambda transaction: self._write(transaction, caller, request.name, _OPEN),
        )

    def evict(self, caller: Caller, request: rpc.EvictNodeRequest) -> node_pb2.Node:
        """Refuse a node from now on."""
        identifier = Name.parse(request.name, "node").id

        def work(transaction: Transaction) -> node_pb2.Node:
            machine = Principal(PrincipalKind.NODE, identifier)
            evict_in(transaction, self._policies, self._events, machine)
            return self._whole(transaction, caller, _by_name(transaction, request.name))

        return self._changes.make(caller, request, node_pb2.Node, work)

    def delete(self, caller: Caller, request: rpc.DeleteNodeRequest) -> rpc.DeleteNodeResponse:
        """Delete a node on which nothing is.

        Raises NotFound, Conflict, and FailedPrecondition with what is on it.
        """

        def work(transaction: Transaction) -> rpc.DeleteNodeResponse:
            row = _by_name(transaction, request.name)
            check_etag(request.etag, _etag(row), request.name)
            # What a node that is away has not ended is fenced off, and may never end.
            on_it = [
                each
                for each in self._work.of(transaction, caller, row)
                if row.state == READY or each.state != ENDING
            ]
            if on_it:
                raise FailedPrecondition(_why_not_deleted(row, on_it), work=len(on_it))
            machine = Principal(PrincipalKind.NODE, row.id)
            delete_in(transaction, self._policies, self._events, machine)
            transaction.after_commit(lambda: self._events.publish(request.name))
            return rpc.DeleteNodeResponse()

        return self._changes.make(caller, request, rpc.DeleteNodeResponse, work)

    def _close(
        self,
        caller: Caller,
        request: rpc.CordonNodeRequest | rpc.DrainNodeRequest,
        more: dict[str, object],
    ) -> node_pb2.Node:
        """Cordon a node, with further columns."""

        def work(transaction: Transaction) -> node_pb2.Node:
            problems, reason = Problems(), request.reason
            problems.take(request)
            problems.check(
                "reason",
                holds=len(reason) <= MAX_REASON and (not reason or reason.isprintable()),
                sentence=f"is one line of at most {MAX_REASON} printable characters",
            )
            problems.raise_if_any()
            values = {
                "cordoned": True,
                "cordon_reason": reason,
                "cordoned_by": caller.principal.name,
                "cordon_time": self._clock(),
                **more,
            }
            return self._write(transaction, caller, request.name, values)

        return self._changes.make(caller, request, node_pb2.Node, work)

    def _write(
        self, transaction: Transaction, caller: Caller, name: str, values: dict[str, object]
    ) -> node_pb2.Node:
        row = _by_name(transaction, name)
        transaction.run(tables.node.update().where(_node.id == row.id).values(**values))
        transaction.after_commit(lambda: self._events.publish(name, NODES, QUEUE))
        return self._whole(transaction, caller, _by_name(transaction, name))

    def _whole(self, state: Reading, caller: Caller, row: Row[Any]) -> node_pb2.Node:
        """The resource, with what runs there."""
        node = _resource(row, use_by_node(state).get(row.id, NodeUse()))
        node.work.extend(self._work.of(state, caller, row))
        return node


def _by_name(state: Reading, name: str) -> Row[Any]:
    """The row of a node. Raises InvalidInput, NotFound."""
    row = state.first(tables.node.select().where(_node.id == Name.parse(name, "node").id))
    if row is None:
        raise missing(name)
    return row


def _etag(row: Row[Any]) -> str:
    return etag_of(
        row.create_time.isoformat(),
        row.state == EVICTED,
        row.cordoned,
        row.draining,
        row.cordon_reason,
        row.drain_grace_seconds,
    )


def _why_not_deleted(row: Row[Any], on_it: Sequence[node_pb2.NodeWork]) -> str:
    named = [f"{each.name} ({each.state})" for each in on_it if each.name]
    said, left = named[:_MAX_NAMED], len(on_it) - len(named[:_MAX_NAMED])
    if left:
        said.append(f"{left} more" if said else f"work that you may not see ({left})")
    advice = {
        READY: f"empty it with `appliance node drain {row.id} --wait`",
        LOST: f"let it go on elsewhere with `appliance node drain {row.id} --wait`, or at once with"
        f" `appliance node evict {row.id}`",
        EVICTED: "it starts elsewhere within seconds",
    }[row.state]
    return (
        f"{names.node(row.id)} is not deleted, because there is still {', '.join(said)}: {advice};"
        " then repeat"
    )


def _resource(row: Row[Any], use: NodeUse) -> node_pb2.Node:
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
        cordoned=row.cordoned,
        draining=row.draining,
        cordon_reason=row.cordon_reason,
        cordoned_by=row.cordoned_by,
        cordon_time=timestamp(row.cordon_time),
        drain_grace_seconds=row.drain_grace_seconds,
        certificate_expire_time=timestamp(row.certificate_expire_time),
        etag=_etag(row),
    )
