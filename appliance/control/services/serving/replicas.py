"""The life of replicas on nodes: wanted, started, ready, lost and started again, drained.

Rules kept here:
* what an endpoint should have is decided by `replica_plan`; it is done here, in one transaction
  with what led to it, and looked at again by each pass of the scheduler;
* a replica that is gone is started again at once, then after 1, 2, 4 ... 30 seconds while it keeps
  failing; the count starts anew after it has served for a while;
* each start has a new epoch and a new certificate; what an older one says does not count;
* an endpoint is what its replicas are: its state is derived from theirs in the same transaction;
* replicas of one endpoint go to the nodes that have the fewest of them.

Called by the scheduler, by `services.agent.agents` (reports) and by `services.serving.endpoints`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.events import QUEUE, ROUTING, Events
from appliance.control.services.fleet import node_rows
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import Leases, Share
from appliance.control.services.fleet.run_orders import stop_order
from appliance.control.services.serving import endpoint_state, replica_rows
from appliance.control.services.serving.endpoint_state import Words
from appliance.control.services.serving.replica_failures import Failures, ReplicaFailures
from appliance.control.services.serving.replica_plan import (
    DELETED,
    DRAINING,
    LOST,
    PENDING,
    READY,
    RUNNING,
    RUNS,
    STARTING,
    Plan,
    aim_of,
    member_of,
    plan,
)
from appliance.control.services.serving.replica_rows import Wanted, of_endpoint, work_of
from appliance.control.store import requests, tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import Exhausted, InvalidInput, LeaseLost
from appliance.core.numbers import readable
from appliance.core.placement import NodeCapacity, Placement, place, waiting

DRAIN_SECONDS = 3600.0
"""As long as an answer may take: those of a replica that others replace end whole."""
END_SECONDS = 30.0
"""For answers of an endpoint that is stopped or deleted."""
MAX_MESSAGE = 1000
_SERVED_WELL = timedelta(seconds=30)
_replica = tables.replica.c
_endpoint = tables.endpoint.c


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
        self._failures = ReplicaFailures(monotonic)

    def reconcile_all(self) -> None:
        """Look at every endpoint again: time has passed, or a node is drained."""
        with self._database.read() as state:
            leaving = node_rows.draining(state)
            replicas: dict[str, list[Row[Any]]] = {}
            for row in state.all(select(tables.replica).order_by(_replica.id)):
                replicas.setdefault(row.endpoint, []).append(row)
            changing = [
                row.uid
                for row in state.all(select(tables.endpoint).order_by(_endpoint.uid))
                for rows in [replicas.get(row.uid, [])]
                if self._plan(row, rows, leaving) != Plan()
                or self._judged(state, row, rows, leaving) != (row.state, row.reason)
            ]
        for uid in changing:
            with self._database.write() as transaction:
                self.reconcile(transaction, uid)

    def reconcile(self, transaction: Transaction, uid: str) -> None:
        """Add replicas to an endpoint and let others go, so that it becomes what it should be."""
        endpoint = transaction.first(select(tables.endpoint).where(_endpoint.uid == uid))
        if endpoint is None:
            return
        rows = of_endpoint(transaction, uid)
        made = self._plan(endpoint, rows, node_rows.draining(transaction))
        why = dict(made.drain)
        for row in rows:
            if row.id in why:
                self._drain(transaction, row, why[row.id], endpoint.goal)
        replica_rows.add(transaction, endpoint, made.add, state_time=self._clock())
        self._derive(transaction, uid)

    def _plan(self, endpoint: Row[Any], rows: Sequence[Row[Any]], leaving: Collection[str]) -> Plan:
        return plan(aim_of(endpoint), [member_of(row) for row in rows], leaving, self._clock())

    def wanted(self) -> list[Wanted]:
        """Replicas to start now, oldest endpoint first."""
        version = tables.artifact_version.c
        found: list[Wanted] = []
        with self._database.read() as state:
            endpoints = state.all(
                select(tables.endpoint)
                .where(_endpoint.goal == RUNNING)
                # What a clock that was ahead has dated comes first, or newer ones pass it for ever.
                .order_by(
                    _endpoint.create_time <= self._clock(), _endpoint.create_time, _endpoint.uid
                )
            )
            for endpoint in endpoints:
                for replica in of_endpoint(state, endpoint.uid):
                    work = work_of(endpoint.uid, replica.id)
                    if replica.state not in {PENDING, LOST} or not self._failures.may_start(work):
                        continue
                    model = state.first(
                        select(tables.artifact_version).where(version.uid == replica.model_version)
                    )
                    if model is not None:
                        shape = (replica.tensor_parallel, replica.cache_bytes)
                        need = replica_rows.demand(model.facts, *shape)
                        found.append(Wanted(endpoint, replica, need))
        return found

    def choose(self, wanted: Wanted, nodes: Sequence[NodeCapacity]) -> Placement:
        """A place for a replica, all of it on one node. Raises Exhausted."""
        with self._database.read() as state:
            others = [replica.node for replica in of_endpoint(state, wanted.endpoint.uid)]
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
                max_sequence_length=replica.max_sequence_length,
                cache_bytes=replica.cache_bytes,
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
            row = replica_rows.at(transaction, work, epoch)
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
                row = replica_rows.at(transaction, work, epoch)
            except LeaseLost:
                return
            if row.state not in RUNS:
                return
            if row.state == DRAINING:
                self._remove(transaction, row)
                return
            served = row.state == READY and self._clock() - row.ready_time >= _SERVED_WELL
            failures = self._failures.one_more(work, served_well=served)
            transaction.after_commit(lambda: self._failures.note(work, failures))
            self._change(
                transaction,
                row,
                {work: failures},
                state=LOST,
                reason=why,
                node=None,
                placement={},
                address="",
            )

    def _drain(self, transaction: Transaction, row: Row[Any], why: str, goal: str) -> None:
        """A replica is going: it finishes what it has; one that does not run goes now."""
        if row.state not in RUNS:
            self._remove(transaction, row)
            return
        self._change(transaction, row, state=DRAINING, reason=why)
        self._tell_to_end(transaction, row, goal)

    def end_sooner(self, transaction: Transaction, uid: str) -> None:
        """An endpoint is stopped or deleted: what drains has no more time than the others."""
        for row in of_endpoint(transaction, uid):
            if row.state == DRAINING:
                self._tell_to_end(transaction, row, DELETED)

    def _tell_to_end(self, transaction: Transaction, row: Row[Any], goal: str) -> None:
        seconds = DRAIN_SECONDS if goal == RUNNING else END_SECONDS
        order = stop_order(work_of(row.endpoint, row.id), row.epoch, seconds)
        transaction.after_commit(functools.partial(self._tell, row.node, order))

    def stop(self, work: str, epoch: int, grace_seconds: float) -> None:
        """End a lease and tell its node to stop."""
        for share in self._leases.release(work, epoch):
            self._tell(share.node, stop_order(work, epoch, grace_seconds))

    def restore_leases(self) -> None:
        """At start: give the nodes of running replicas a whole lease to be heard of again."""
        with self._database.read() as state:
            rows = state.all(select(tables.replica).where(_replica.state.in_(RUNS)))
        for row in rows:
            share = Share.from_json(row.placement)
            self._leases.restore(work_of(row.endpoint, row.id), row.epoch, [share])

    def restart_missing_replicas(self, node: str, running: Sequence[tuple[str, int]]) -> None:
        """A node connected anew and does not run these replicas any more: start them again now."""
        with self._database.read() as state:
            rows = state.all(
                select(tables.replica).where(_replica.node == node, _replica.state.in_(RUNS))
            )
        for row in rows:
            work = work_of(row.endpoint, row.id)
            if (work, row.epoch) not in running:
                self.lost(work, row.epoch, f"node {node} no longer runs it")
            elif row.state == DRAINING:
                # It may have been away when it was told.
                with self._database.write() as transaction:
                    goal = select(_endpoint.goal).where(_endpoint.uid == row.endpoint)
                    self._tell_to_end(transaction, row, transaction.value(goal))

    def _tell(self, node: str, order: rpc.ConnectResponse) -> None:
        self._fleet.send(node, order)

    def _change(
        self,
        transaction: Transaction,
        row: Row[Any],
        newest: Mapping[str, Failures] | None = None,
        **values: object,
    ) -> None:
        """Change a replica that is still as `row` says, and its endpoint with it."""
        if values.get("state", row.state) != row.state:
            values["state_time"] = self._clock()
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
        self._derive(transaction, row.endpoint, newest)

    def _remove(self, transaction: Transaction, row: Row[Any]) -> None:
        """A replica is gone: those that wait for room have not been tried with what it had."""
        this = _replica.endpoint == row.endpoint
        transaction.run(delete(tables.replica).where(this, _replica.id == row.id))
        transaction.run(
            update(tables.replica)
            .where(this, _replica.state == PENDING)
            .values(state_time=self._clock())
        )
        work = work_of(row.endpoint, row.id)
        transaction.after_commit(lambda: self._failures.forget(work))
        self._derive(transaction, row.endpoint)

    def _derive(
        self, transaction: Transaction, uid: str, newest: Mapping[str, Failures] | None = None
    ) -> None:
        """The state of an endpoint, from its replicas; a deleted one goes with the last of them."""
        endpoint = transaction.first(select(tables.endpoint).where(_endpoint.uid == uid))
        if endpoint is None:
            return
        name = names.endpoint(endpoint.project, endpoint.id)
        transaction.after_commit(lambda: self._events.publish(name, ROUTING, QUEUE))
        if endpoint.goal == DELETED and not of_endpoint(transaction, uid):
            transaction.run(delete(tables.endpoint).where(_endpoint.uid == uid))
            requests.forget_about(transaction, name)
            return
        rows, leaving = of_endpoint(transaction, uid), node_rows.draining(transaction)
        state, reason = self._judged(transaction, endpoint, rows, leaving, newest)
        transaction.run(
            update(tables.endpoint)
            .where(_endpoint.uid == uid)
            .values(state=state, reason=reason, revision=_endpoint.revision + 1)
        )

    def _judged(
        self,
        state: Reading,
        endpoint: Row[Any],
        rows: Sequence[Row[Any]],
        leaving: Collection[str],
        newest: Mapping[str, Failures] | None = None,
    ) -> tuple[str, str]:
        """State and reason of an endpoint now."""
        works = [
            work_of(row.endpoint, row.id) for row in rows if row.generation == endpoint.generation
        ]
        return endpoint_state.judge(
            aim_of(endpoint),
            (endpoint.state, endpoint.reason),
            [member_of(row) for row in rows],
            leaving,
            self._failures.fewest(works, newest or {}),
            Words(
                names.endpoint(endpoint.project, endpoint.id),
                replica_rows.way_back(state, endpoint, rows),
            ),
        )
