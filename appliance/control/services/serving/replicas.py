"""The life of replicas on nodes: wanted, started, ready, lost and started again, drained.

Rules kept here:
* a replica that is gone is started again at once, then after 1, 2, 4 ... 30 seconds while it keeps
  failing; the count starts anew after it has served for a while;
* each start has a new epoch and a new certificate; what an older one says does not count;
* an endpoint is what its replicas are: its state is derived from theirs in the same transaction;
* replicas of one endpoint go to the nodes that have the fewest of them.

Called by the scheduler, by `services.agent.agents` (reports) and by `services.serving.endpoints`
(delete).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.events import QUEUE, ROUTING, Events
from appliance.control.services.fleet import node_rows
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import Leases, Share
from appliance.control.services.fleet.memory import replica_device
from appliance.control.services.fleet.run_orders import stop_order
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import Exhausted, InvalidInput, LeaseLost
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.needs import REPLICA
from appliance.core.numbers import readable
from appliance.core.placement import Demand, NodeCapacity, Placement, place, waiting
from appliance.core.waiting import pause_after

PENDING, STARTING, READY, DRAINING, LOST = "PENDING", "STARTING", "READY", "DRAINING", "LOST"
DEGRADED, STOPPING, FAILED = "DEGRADED", "STOPPING", "FAILED"
DRAIN_SECONDS = 30.0
MAX_MESSAGE = 1000
_FIRST_PAUSE, _MAX_PAUSE = timedelta(seconds=1), timedelta(seconds=30)
_HOPELESS = 5
_SERVED_WELL = timedelta(seconds=30)
_RUNS = (STARTING, READY, DRAINING)
_replica = tables.replica.c
_endpoint = tables.endpoint.c


def work_of(endpoint: str, replica: str) -> str:
    """What leases call a replica."""
    return f"{endpoint}/{replica}"


@dataclass(frozen=True)
class _Failures:
    count: int
    retry_at: float


@dataclass(frozen=True)
class Wanted:
    """A replica that waits for devices: its endpoint's row, its own, and what it needs."""

    endpoint: Row[Any]
    replica: Row[Any]
    demand: Demand


class Replicas:
    """Starts, watches and ends replicas."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        leases: Leases,
        fleet: ConnectedAgents,
        events: Events,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._leases = leases
        self._fleet = fleet
        self._events = events
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures: dict[str, _Failures] = {}

    def wanted(self) -> list[Wanted]:
        """Replicas to start now, oldest endpoint first."""
        version = tables.artifact_version.c
        found: list[Wanted] = []
        with self._database.read() as state:
            endpoints = state.all(
                select(tables.endpoint)
                .where(_endpoint.state != STOPPING)
                # What a clock that was ahead has dated comes first, or newer ones pass it for ever.
                .order_by(
                    _endpoint.create_time <= self._clock(), _endpoint.create_time, _endpoint.uid
                )
            )
            for endpoint in endpoints:
                model = state.first(
                    select(tables.artifact_version).where(version.uid == endpoint.model_version)
                )
                if model is None:
                    continue
                need = demand(model.facts, endpoint.tensor_parallel, endpoint.cache_bytes)
                found += [
                    Wanted(endpoint, replica, need)
                    for replica in _of(state, endpoint.uid)
                    if replica.state in {PENDING, LOST} and self._due(endpoint.uid, replica.id)
                ]
        return found

    def choose(self, wanted: Wanted, nodes: Sequence[NodeCapacity]) -> Placement:
        """A place for a replica, all of it on one node. Raises Exhausted."""
        with self._database.read() as state:
            others = [replica.node for replica in _of(state, wanted.endpoint.uid)]
        order = sorted(
            nodes, key=lambda node: (others.count(node.node), len(node.devices_used), node.node)
        )
        for node in order:
            try:
                return place(wanted.demand, [node])[0]
            except Exhausted:
                continue
        need = readable(wanted.demand.memory_per_rank)
        free = f"{wanted.demand.ranks} free device(s) with {need} each on one node"
        raise Exhausted(waiting(wanted.demand, nodes, free))

    def wait(self, wanted: Wanted, why: str) -> None:
        """Note why a replica does not start yet."""
        if (wanted.replica.state, wanted.replica.reason) == (PENDING, why):
            return
        with self._database.write() as transaction:
            self._change(transaction, wanted.replica, state=PENDING, reason=why)

    def start(self, wanted: Wanted, placement: Placement) -> bool:
        """Lease a replica to its place and send the order; whether it is on its way."""
        endpoint, replica = wanted.endpoint, wanted.replica
        work = work_of(endpoint.uid, replica.id)
        reserved = placement.ranks * wanted.demand.memory_per_rank
        share = Share(placement.node, 0, placement.device_indices, reserved)
        epoch = self._leases.grant(work, replica.epoch, [share])
        try:
            with self._database.write() as transaction:
                self._change(
                    transaction,
                    replica,
                    state=STARTING,
                    reason="",
                    node=placement.node,
                    epoch=epoch,
                    placement=share.as_json(),
                    address="",
                    restarts=replica.epoch,
                    start_time=self._clock(),
                    ready_time=None,
                )
                node_rows.check_open(transaction, [placement.node])
        except LeaseLost:
            self._leases.release(work, epoch)
            return False
        except BaseException:
            self._leases.release(work, epoch)
            raise
        order = rpc.ConnectResponse(
            start_replica=rpc.StartReplica(
                work=rpc.WorkEpoch(work=work, epoch=epoch),
                endpoint=names.endpoint(endpoint.project, endpoint.id),
                devices=share.devices,
                max_sequence_length=endpoint.max_sequence_length,
                cache_bytes=endpoint.cache_bytes,
            )
        )
        if self._fleet.send(placement.node, order):
            return True
        self.lost(work, epoch, f"node {placement.node} went away while the replica started")
        return False

    def changed(self, node: str, report: rpc.ReplicaChanged) -> None:
        """A replica answers, or has ended. Raises LeaseLost."""
        work, epoch = report.work.work, report.work.epoch
        if report.ended:
            self._leases.confirm_stopped(work, epoch, node)
        self._leases.check(work, epoch, node)
        if report.ended:
            self.lost(work, epoch, report.message[:MAX_MESSAGE] or "its process has ended")
            self._leases.confirm_stopped(work, epoch, node)
            return
        if not report.ready:
            return
        if not 0 < len(report.address) <= 255 or ":" not in report.address:
            raise InvalidInput("the address of a replica is host:port")
        with self._database.write() as transaction:
            row = _row(transaction, work, epoch)
            if row.state == STARTING:
                now = self._clock()
                self._change(
                    transaction, row, state=READY, reason="", address=report.address, ready_time=now
                )

    def lost(self, work: str, epoch: int, why: str) -> None:
        """A start of a replica is over: it is wanted again, unless its endpoint is going."""
        with self._database.write() as transaction:
            # Not before: what cannot be written now is said, or found, again.
            transaction.after_commit(lambda: self.stop(work, epoch, 0.0))
            try:
                row = _row(transaction, work, epoch)
            except LeaseLost:
                return
            if row.state not in _RUNS:
                return
            if row.state == DRAINING:
                self._remove(transaction, row)
                return
            served = row.ready_time is not None and self._clock() - row.ready_time >= _SERVED_WELL
            failures = self._one_more(work, served_well=served)
            transaction.after_commit(lambda: self._note_failures(work, failures))
            count = self._fewest_failures(transaction, row.endpoint, {work: failures})
            self._change(
                transaction,
                row,
                state=LOST,
                reason=why,
                node=None,
                placement={},
                address="",
                failures=count,
            )

    def drain(self, transaction: Transaction, endpoint: Row[Any]) -> None:
        """The endpoint is going: replicas that run finish what they have, the others go now."""
        for row in _of(transaction, endpoint.uid):
            if row.state not in _RUNS:
                self._remove(transaction, row)
                continue
            self._change(transaction, row, state=DRAINING, reason="the endpoint was deleted")
            work, epoch = work_of(row.endpoint, row.id), row.epoch
            order = stop_order(work, epoch, DRAIN_SECONDS)
            transaction.after_commit(functools.partial(self._tell, row.node, order))

    def leave_drained_nodes(self) -> None:
        """Replicas on nodes that are drained finish what they answer, and are wanted again."""
        with self._database.read() as state:
            nodes = node_rows.draining(state)
            on_them = _replica.node.in_(sorted(nodes)) & _replica.state.in_((STARTING, READY))
            rows = state.all(select(tables.replica).where(on_them)) if nodes else []
        for row in rows:
            why = f"{names.node(row.node)} is drained"
            with contextlib.suppress(LeaseLost), self._database.write() as transaction:
                self._change(
                    transaction, row, state=LOST, reason=why, node=None, placement={}, address=""
                )
                leave = functools.partial(
                    self.stop, work_of(row.endpoint, row.id), row.epoch, DRAIN_SECONDS
                )
                transaction.after_commit(leave)

    def stop(self, work: str, epoch: int, grace_seconds: float) -> None:
        """End a lease and tell its node to stop."""
        for share in self._leases.release(work, epoch):
            self._tell(share.node, stop_order(work, epoch, grace_seconds))

    def restore_leases(self) -> None:
        """At start: give the nodes of running replicas a whole lease to be heard of again."""
        with self._database.read() as state:
            rows = state.all(select(tables.replica).where(_replica.state.in_(_RUNS)))
        for row in rows:
            share = Share.from_json(row.placement)
            self._leases.restore(work_of(row.endpoint, row.id), row.epoch, [share])

    def restart_missing_replicas(self, node: str, running: Sequence[tuple[str, int]]) -> None:
        """A node connected anew and does not run these replicas any more: start them again now."""
        with self._database.read() as state:
            rows = state.all(
                select(tables.replica).where(_replica.node == node, _replica.state.in_(_RUNS))
            )
        for row in rows:
            work = work_of(row.endpoint, row.id)
            if (work, row.epoch) not in running:
                self.lost(work, row.epoch, f"node {node} no longer runs it")

    def _tell(self, node: str, order: rpc.ConnectResponse) -> None:
        self._fleet.send(node, order)

    def _due(self, endpoint: str, replica: str) -> bool:
        with self._lock:
            failures = self._failures.get(work_of(endpoint, replica))
            return failures is None or self._monotonic() >= failures.retry_at

    def _fewest_failures(
        self, state: Reading, endpoint: str, newest: Mapping[str, _Failures]
    ) -> int:
        """Failures in a row of the replica of an endpoint that has the fewest."""
        works = [work_of(endpoint, row.id) for row in _of(state, endpoint)]
        with self._lock:
            found = [newest.get(work) or self._failures.get(work) for work in works]
        return min((each.count if each else 0 for each in found), default=0)

    def _one_more(self, work: str, *, served_well: bool) -> _Failures:
        """What is known of the failures of a replica after one more, and when to try again."""
        with self._lock:
            before = self._failures.get(work)
        count = 1 if served_well or before is None else before.count + 1
        pause = pause_after(count - 1, _FIRST_PAUSE, _MAX_PAUSE) if count > 1 else timedelta()
        return _Failures(count, self._monotonic() + pause.total_seconds())

    def _note_failures(self, work: str, failures: _Failures) -> None:
        with self._lock:
            self._failures[work] = failures

    def _change(
        self, transaction: Transaction, row: Row[Any], failures: int = 0, **values: object
    ) -> None:
        """Change a replica that is still as `row` says, and its endpoint with it."""
        changed = transaction.run(
            update(tables.replica)
            .where(
                _replica.endpoint == row.endpoint,
                _replica.id == row.id,
                _replica.epoch == row.epoch,
                _replica.state == row.state,
            )
            .values(**values)
        )
        if changed != 1:
            raise LeaseLost(f"replica {row.id} was changed by somebody else at the same time")
        self._derive(transaction, row.endpoint, failures)

    def _remove(self, transaction: Transaction, row: Row[Any]) -> None:
        """The replica of a deleted endpoint is gone, and the endpoint with its last one."""
        transaction.run(
            delete(tables.replica).where(_replica.endpoint == row.endpoint, _replica.id == row.id)
        )
        with self._lock:
            self._failures.pop(work_of(row.endpoint, row.id), None)
        self._derive(transaction, row.endpoint, 0)

    def _derive(self, transaction: Transaction, uid: str, failures: int) -> None:
        endpoint = transaction.first(select(tables.endpoint).where(_endpoint.uid == uid))
        if endpoint is None:
            return
        name = names.endpoint(endpoint.project, endpoint.id)
        transaction.after_commit(lambda: self._events.publish(name, ROUTING, QUEUE))
        rows = _of(transaction, uid)
        if endpoint.state == STOPPING and not rows:
            transaction.run(delete(tables.endpoint).where(_endpoint.uid == uid))
            return
        state, reason = derive_state(endpoint.state, endpoint.reason, rows, failures)
        transaction.run(
            update(tables.endpoint)
            .where(_endpoint.uid == uid)
            .values(state=state, reason=reason, revision=_endpoint.revision + 1)
        )


def derive_state(
    state: str, reason: str, replicas: Sequence[Row[Any]], failures: int
) -> tuple[str, str]:
    """State of an endpoint and the reason for a person, from its replicas. Pure.

    Args:
        state: as it is.
        reason: as it is.
        replicas: their rows.
        failures: how often each replica has failed in a row, at least; zero for other news.
    """
    if state == STOPPING:
        return STOPPING, reason
    ready = sum(replica.state == READY for replica in replicas)
    reasons = [replica.reason for replica in replicas if replica.state != READY and replica.reason]
    why = reasons[0] if reasons else ""
    if ready == len(replicas):
        return READY, ""
    if ready:
        return DEGRADED, why or f"{ready} of {len(replicas)} replicas are ready"
    if failures >= _HOPELESS:
        return FAILED, f"no replica stays up, tried again every {_MAX_PAUSE.seconds} s: {why}"
    if state == FAILED:
        return FAILED, reason
    return STARTING, why


def identity_of(row: Row[Any]) -> Principal:
    """Who one start of a replica is; `row` of the table `replica`."""
    return Principal(PrincipalKind.REPLICA, f"{row.endpoint}-{row.id}-{row.epoch}")


def demand(facts: Any, tensor_parallel: int, cache_bytes: int) -> Demand:  # noqa: ANN401  # a JSON column
    """What a replica needs: its devices, and the memory on each."""
    weights = int(facts.get("weight_bytes", 0))
    need = replica_device(weights, tensor_parallel, cache_bytes)
    return Demand(tensor_parallel, memory_per_rank=need, kind=REPLICA)


def _of(state: Reading, uid: str) -> list[Row[Any]]:
    return state.all(select(tables.replica).where(_replica.endpoint == uid).order_by(_replica.id))


def _row(state: Reading, work: str, epoch: int) -> Row[Any]:
    """The replica of a piece of work, if the epoch is still its own. Raises LeaseLost."""
    endpoint, _, replica = work.partition("/")
    row = state.first(
        select(tables.replica).where(_replica.endpoint == endpoint, _replica.id == replica)
    )
    if row is None or row.epoch != epoch:
        raise LeaseLost(f"epoch {epoch} of {work} is over; stop its processes")
    return row
