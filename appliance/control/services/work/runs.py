"""The life of a job on nodes: started under a new epoch, lost, given up, cancelled, taken up again.

Rules kept here:
* a start is one transaction: epoch, shares and the pending outputs of this epoch; orders go out
  after it;
* every start writes into folders of its own with keys of its own, so that what a lost node still
  writes is nowhere and opens for nobody; only the series of checkpoints goes on;
* a start that is lost with its node, or with this control plane, is repeated at once and counts for
  nothing; one whose ranks failed is repeated after a pause, and `MAX_FAILURES` in a row without a
  new checkpoint on record end the job;
* checkpoints are kept however a job ended: somebody may resume it, or begin another job with them;
* a job that was to pause never starts again by itself, whatever became of its ranks; one that
  leaves a node which is drained does, and that counts for nothing either;
* nothing starts on a node that takes nothing new.

Called by the scheduler and by `services.work.jobs` (cancel); what agents report about a run is in
`services.work.run_reports`, pauses are in `services.work.pauses`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.audit.system import Records
from appliance.control.events import Events
from appliance.control.services.data.artifact_rows import pending_of
from appliance.control.services.data.artifacts import CHECKPOINTS, Artifacts, Provenance
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind
from appliance.control.services.fleet import node_rows
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import Leases, Share
from appliance.control.services.fleet.run_orders import start_order, stop_order
from appliance.control.services.work import checkpoint_rows, job_events, job_rows, pause_rows
from appliance.control.services.work.job_logs import JobLogs
from appliance.control.services.work.shares import shares_of, shares_on
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import (
    AlreadyExists,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    Paused,
    Tampered,
)
from appliance.core.jobs import LEASED, JobState
from appliance.core.names import Name
from appliance.core.placement import Demand, NodeCapacity, Placement
from appliance.core.waiting import pause_after
from appliance.kinds import kind_of

MAX_FAILURES = 3
MAX_PAUSE = timedelta(minutes=30)
PAUSE_GROWS = 5
STOP_SECONDS = 5.0
WRONG = (Tampered, InvalidInput, FailedPrecondition, NotFound, AlreadyExists)
"""Errors of a job itself; doing it again would not help. Others are of the moment."""
_logger = logging.getLogger(__name__)


class Runs:
    """Starts and ends jobs on nodes."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        tasks: StorageTasks,
        leases: Leases,
        fleet: ConnectedAgents,
        logs: JobLogs,
        events: Events,
        records: Records,
        clock: Callable[[], datetime],
        retry_pause: timedelta,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._tasks = tasks
        self._leases = leases
        self._fleet = fleet
        self._logs = logs
        self._events = events
        self._records = records
        self._clock = clock
        self._retry_pause = retry_pause
        self._left: dict[tuple[str, str], tuple[str, ...]] = {}

    def capacities(self) -> list[NodeCapacity]:
        """What the nodes that are connected have, and what of it is taken now."""
        with self._database.read() as state:
            closed = node_rows.closed(state)
        return [
            replace(
                self._leases.capacity(facts.node, facts.devices, facts.memory_bytes),
                lacks=facts.lacks,
                closed=closed.get(facts.node, ""),
            )
            for facts in self._fleet.nodes()
        ]

    def wait(self, row: Row[Any], why: str) -> None:
        """Note why a queued job does not start yet."""
        if row.message != why:
            with self._database.write() as transaction:
                job_rows.change(transaction, self._events, row, message=why)
                said = job_events.Said(why)
                job_events.note(
                    transaction, row.uid, job_events.WAITING, row.epoch, self._clock(), said
                )

    def start(self, row: Row[Any], demand: Demand, placements: Sequence[Placement]) -> bool:
        """Lease a queued job to these places and send the orders; whether it is on its way."""
        try:
            shares = shares_on(placements, demand, self._leases, self._fleet)
        except Exhausted as error:
            self.wait(row, error.message)
            return False
        epoch = self._leases.grant(row.uid, row.epoch, shares, job_rows.lost_seconds(row))
        try:
            with self._database.write() as transaction:
                job_rows.move(
                    transaction,
                    self._events,
                    row,
                    JobState.STARTING,
                    self._clock(),
                    message="",
                    epoch=epoch,
                    placement=[share.as_json() for share in shares],
                    retry_time=None,
                )
                node_rows.check_open(transaction, [share.node for share in shares])
                self._allocate(transaction, row)
        except WRONG as error:
            self._leases.release(row.uid, epoch)
            self.fail(row, error.reason, f"it cannot start: {error.message}")
            return False
        except LeaseLost:
            self._leases.release(row.uid, epoch)
            return False
        except BaseException:
            self._leases.release(row.uid, epoch)
            raise
        for number, share in enumerate(shares):
            if not self._fleet.send(share.node, self._order(row, epoch, number, shares)):
                self.lost(row.uid, epoch, f"node {share.node} went away while the job started")
                return False
        return True

    def lost(self, uid: str, epoch: int, why: str, reason: str = "") -> None:
        """A start of a job is over without a result: queue it again, or give it up.

        Args:
            uid: of the job.
            epoch: of the start.
            why: for a person.
            reason: of a failure of its ranks, which counts; empty when it was lost with its node.
        """
        with self.of_start(uid, epoch) as (transaction, row):
            if row is not None:
                self._lose(transaction, row, why, reason)

    def give_up(self, uid: str, epoch: int, reason: str, message: str) -> None:
        """A start of a job is over, and another would end the same."""
        with self.of_start(uid, epoch) as (transaction, row):
            if row is not None:
                self._end_noted(transaction, row, JobState.FAILED, reason=reason, message=message)

    @contextmanager
    def of_start(self, uid: str, epoch: int) -> Iterator[tuple[Transaction, Row[Any] | None]]:
        """A transaction that ends a start, and the job's row in it; None when that is over.

        The row is read where it is changed: another node's report may be just before. The lease
        ends with the commit, not before: what cannot be written now is said again by who holds it.
        """
        with self._database.write() as transaction:
            row = job_rows.by_uid(transaction, uid)
            is_on = row is not None and row.epoch == epoch and row.state in LEASED
            transaction.after_commit(lambda: self.stop(uid, epoch))
            yield transaction, row if is_on else None

    def _lose(self, transaction: Transaction, row: Row[Any], why: str, reason: str) -> None:
        """The rows of `lost`, and the words on it after their commit."""
        if row.state == JobState.PAUSING:
            said = pause_rows.unsaved(row.pause, why, job_rows.begins(transaction, row))
            self.end_pause_in(transaction, row, row.pause, said)
            transaction.after_commit(lambda: self.note_pause_over(row, row.pause))
            return
        # What it has saved and nobody has looked at yet is progress too.
        waiting = self._tasks.waiting(transaction, TaskKind.CHECK_CHECKPOINT, row.uid)
        saved = any(task.details["epoch"] == row.epoch and not task.attempts for task in waiting)
        failures = bool(reason) + (0 if saved else row.failures)
        if failures >= MAX_FAILURES and reason:
            sentence = (
                f"given up after {failures} starts in a row without a new checkpoint; the last one"
                f" ended because {why}"
            )
            self._end_noted(transaction, row, JobState.FAILED, reason=reason, message=sentence)
            return
        retry_time, when = None, "starts again"
        if reason:
            retry_time = self._clock() + pause_after(
                failures, self._retry_pause, MAX_PAUSE, PAUSE_GROWS
            )
            when = f"starts again at {retry_time:%H:%M:%S} UTC"
        job_rows.move(
            transaction,
            self._events,
            row,
            JobState.QUEUED,
            self._clock(),
            placement=[],
            message=f"{when}: {why}",
            failures=failures,
            retry_time=retry_time,
        )
        self._drop(transaction, row)

        def say() -> None:
            name = job_rows.name_of(row)
            self._records.note("job.restarts", name, reason or "NODE_LOST", epoch=row.epoch)
            level = logging.ERROR if reason else logging.WARNING
            _logger.log(level, "job %s %s: %s", row.uid, when, why)

        transaction.after_commit(say)

    def end_pause_in(  # noqa: PLR0913  # an order, and what is known of its end
        self,
        transaction: Transaction,
        row: Row[Any],
        pause: dict[str, Any],
        why: str,
        under_way: Sequence[Share] | None = None,
        by: str = "",
    ) -> None:
        """The rows of a job whose start is over by a pause: PAUSED, or queued again.

        Args:
            transaction: to change them in; `stop` comes before or after.
            row: of the job, which is leased.
            pause: the order.
            why: for a person.
            under_way: as of `set_aside_in`.
            by: as of `set_aside_in`.
        """
        to, pause = (JobState.QUEUED, {}) if pause_rows.leaves(pause) else (JobState.PAUSED, pause)
        self.set_aside_in(transaction, row, why, under_way, to, by, pause=pause)

    def set_aside_in(  # noqa: PLR0913  # what is written, and what is said of it
        self,
        transaction: Transaction,
        row: Row[Any],
        why: str,
        under_way: Sequence[Share] | None = None,
        to: JobState = JobState.PAUSED,
        by: str = "",
        **values: object,
    ) -> None:
        """The rows of a job that waits from now on, without devices.

        Args:
            transaction: to change them in; `stop` comes before or after.
            row: of the job, which is leased.
            why: for a person.
            under_way: the parts that have not ended; those of the row if not given.
            to: its state.
            by: name of whoever has just paused it.
            values: further columns.
        """
        job_rows.move(
            transaction,
            self._events,
            row,
            to,
            self._clock(),
            by=by,
            placement=[],
            message=why,
            **values,
        )
        self._drop(transaction, row, under_way)

    def note_paused(self, row: Row[Any], reason: str) -> None:
        """The audit log says that a job pauses."""
        self._records.note("job.paused", job_rows.name_of(row), reason, epoch=row.epoch)

    def note_pause_over(self, row: Row[Any], pause: dict[str, Any]) -> None:
        """The audit log says that a start is over by a pause."""
        if not pause_rows.leaves(pause):
            self.note_paused(row, Paused.reason)
            return
        self._records.note("job.restarts", job_rows.name_of(row), "NODE_DRAINED", epoch=row.epoch)
        _logger.info("job %s leaves %s and is queued again", row.uid, pause["by"])

    def fail(self, row: Row[Any], reason: str, message: str) -> None:
        """End a job that cannot succeed."""
        self.end(row, JobState.FAILED, reason=reason, message=message)

    def end(self, row: Row[Any], to: JobState, *, reason: str, message: str) -> None:
        """End a job without outputs: its pending versions go, its nodes stop."""
        with self._database.write() as transaction:
            self._end_noted(transaction, row, to, reason=reason, message=message)

    def _end_noted(
        self, transaction: Transaction, row: Row[Any], to: JobState, *, reason: str, message: str
    ) -> None:
        """As `end`, in a transaction; what follows comes after its commit."""
        now = self._clock()
        self.end_in(transaction, row, to, reason=reason, message=message, end_time=now)

        def follow() -> None:
            self.stop(row.uid, row.epoch)
            self._records.note(f"job.{to.lower()}", job_rows.name_of(row), reason, epoch=row.epoch)

        transaction.after_commit(follow)

    def end_in(
        self,
        transaction: Transaction,
        row: Row[Any],
        to: JobState,
        *,
        by: str = "",
        **values: object,
    ) -> None:
        """The rows of `end`, in a transaction; `stop` comes after its commit."""
        job_rows.move(transaction, self._events, row, to, self._clock(), by=by, **values)
        if to == JobState.SUCCEEDED:
            self._logs.forget(transaction, row.uid)
        self._drop(transaction, row)

    def stop(self, uid: str, epoch: int) -> None:
        """End a lease and tell its nodes to stop."""
        for share in self._leases.release(uid, epoch):
            self._fleet.send(share.node, stop_order(uid, epoch, STOP_SECONDS))

    def confirm_stopped(self, uid: str, node: str) -> None:
        """A job's processes on a node have ended.

        What they wrote into folders that were deleted meanwhile is deleted too.
        """
        folders = self._left.pop((uid, node), ())
        if folders:
            self._artifacts.delete_folders(folders)

    def leave(self, uid: str, folders: Iterable[str]) -> None:
        """A job was deleted, with these folders: nodes that still end it may write into them."""
        for key in [key for key in self._left if key[0] == uid]:
            self._left[key] = (*self._left[key], *folders)

    def _allocate(self, transaction: Transaction, row: Row[Any]) -> None:
        """Pending versions for what this start makes; the checkpoints go on."""
        kind, spec = kind_of(row.kind), job_rows.spec_of(row)
        names_read = (name for name, _ in kind.inputs_of(spec).values())
        inputs = tuple((name, row.inputs.get(name, "")) for name in names_read)
        made = Provenance(row.creator, row.uid, inputs)
        for slot, output in kind.outputs_of(spec).items():
            name = Name.parse(output.name, output.resource)
            of_slot = replace(made, slot=slot)
            self._artifacts.allocate(transaction, row.project, name.kind, name.id, of_slot)
        series = checkpoint_rows.series_row(transaction, row.uid)
        if kind.checkpoint_bytes is not None and series is None:
            made = replace(made, slot=CHECKPOINTS)
            self._artifacts.allocate(transaction, row.project, CHECKPOINTS, row.uid, made)

    def _drop(
        self, transaction: Transaction, row: Row[Any], under_way: Sequence[Share] | None = None
    ) -> None:
        rows = [found for found in pending_of(transaction, row.uid) if found.kind != CHECKPOINTS]
        self._artifacts.drop(transaction, rows)
        folders = tuple(found.folder for found in rows)
        if under_way is None:
            under_way = [share for share in shares_of(row) if not share.ended]
        if under_way:
            self._logs.expect(transaction, row, under_way)
        for share in under_way:
            key = (row.uid, share.node)
            self._left[key] = (*self._left.get(key, ()), *folders)

    def _order(
        self, row: Row[Any], epoch: int, number: int, shares: Sequence[Share]
    ) -> rpc.ConnectResponse:
        first = self._fleet.facts(shares[0].node)
        with self._database.read() as state:
            job = job_rows.resource(state, row)
        return start_order(job, epoch, number, shares, first.address if first else "")
