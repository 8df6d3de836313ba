"""What agents report about a job: progress, checkpoints, and its end, with the outputs it made.

Rules kept here:
* nothing counts that is not said under the job's lease, but the last output of a node whose start
  is over;
* nothing here waits for the object store: a checkpoint that is reported is looked at later
  (`services.work.checkpoint_tasks`), and when every part has ended well, what was made is
  registered later (`services.work.registration`); both are rows in a queue when the report is
  answered.

Called by `services.agent.agents`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row, update

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from appliance.control.events import Events
from appliance.control.services.data.artifact_rows import pending_of
from appliance.control.services.data.artifacts import CHECKPOINTS
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.work import checkpoint_rows, job_events, job_rows, metric_rows
from appliance.control.services.work.checkpoint_rows import point_of
from appliance.control.services.work.job_logs import JobLogs
from appliance.control.services.work.pauses import Pauses
from appliance.control.services.work.runs import Runs
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import (
    ApplianceError,
    InvalidInput,
    LeaseLost,
    Paused,
    StoreFull,
)
from appliance.core.jobs import LEASED, JobState

RETRIED = frozenset({"UNAVAILABLE", "LEASE_LOST", "RANK_LOST", "NODE_LOST", "LEADER_LOST"})
"""Reasons for an end that another start may cure."""

WITH_NODE = frozenset({"LEASE_LOST", "NODE_LOST"})
"""Those that say nothing of the job."""
BEGUN = "started"
"""The event of ranks that work for the first time."""
MAX_MESSAGE = 1000
MAX_STEPS = 256
"""Measured steps of one report."""
MAX_CHECKS = 100
"""Checkpoints of a job that wait to be looked at. A newer one counts more than the oldest, which
the next start still finds in the object store."""
_MAX_METRICS = 100
_MAX_NAME = 64
_MAX_RESULT = 1 << 16
_DIGEST = 64
_logger = logging.getLogger(__name__)
_version = tables.artifact_version.c


@dataclass(frozen=True)
class _News:
    """What some reports of one job say together."""

    work: rpc.WorkEpoch
    restarts: int
    values: dict[str, object]
    """Of the row of the job."""
    event: str
    """For its history: its ranks were started again; empty for nothing."""
    measured: dict[int, dict[str, float]]


class RunReports:
    """Takes in reports about jobs."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        tasks: StorageTasks,
        leases: Leases,
        runs: Runs,
        pauses: Pauses,
        logs: JobLogs,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._leases = leases
        self._runs = runs
        self._pauses = pauses
        self._logs = logs
        self._events = events
        self._clock = clock

    def progress(
        self, node: str, reports: Sequence[rpc.JobProgress]
    ) -> list[tuple[rpc.WorkEpoch, ApplianceError]]:
        """Jobs have come further, in one transaction; the first progress makes one RUNNING.

        Returns the work whose reports do not count, with LeaseLost or InvalidInput.
        """
        refused: list[tuple[rpc.WorkEpoch, ApplianceError]] = []
        of_work: dict[tuple[str, int], list[rpc.JobProgress]] = {}
        for report in reports:
            of_work.setdefault((report.work.work, report.work.epoch), []).append(report)
        news: list[_News] = []
        # Before the transaction, for which others wait.
        for said in of_work.values():
            try:
                news.append(_news(said))
            except InvalidInput as error:
                refused.append((said[0].work, error))
        if not news:
            return refused
        with self._database.write() as transaction:
            for each in news:
                try:
                    self._further(transaction, node, each)
                except LeaseLost as error:
                    # Before anything of this job was written.
                    refused.append((each.work, error))
        return refused

    def _further(self, transaction: Transaction, node: str, news: _News) -> None:
        """One job has come further. Raises LeaseLost before it writes."""
        row = self._row(transaction, node, news.work)
        values = news.values | {"restarts": max(row.restarts, news.restarts)}
        metric_rows.keep(transaction, row.uid, row.epoch, news.measured)
        if row.state == JobState.STARTING:
            values["start_time"] = row.start_time or self._clock()
        to = JobState.RUNNING if row.state == JobState.STARTING else None
        self._note_further(transaction, row, to, values)
        if news.event:
            said = job_events.Said(news.event)
            job_events.note(
                transaction, row.uid, job_events.RANKS_RESTARTED, row.epoch, self._clock(), said
            )

    def _note_further(
        self,
        transaction: Transaction,
        row: Row[Any],
        to: JobState | None,
        values: Mapping[str, Any],
    ) -> None:
        """What is new of a job: in another state, or in the same."""
        if to is None:
            job_rows.change(transaction, self._events, row, **values)
        else:
            job_rows.move(transaction, self._events, row, to, self._clock(), **values)

    def checkpoint(self, node: str, report: rpc.CheckpointComplete) -> None:
        """A checkpoint is complete: it is looked at, and put on record, soon.

        Raises LeaseLost for an older epoch, InvalidInput for what cannot be one.
        """
        uid, point = report.work.work, CheckpointPoint(report.work.epoch, report.step)
        if len(report.manifest_digest) != _DIGEST or point.step < 1:
            raise InvalidInput("a checkpoint has a step of 1 or more, and a SHA-256 as its digest")
        details = {
            "epoch": point.epoch,
            "step": point.step,
            "digest": report.manifest_digest,
            "node": node,
        }
        with self._database.read() as state:
            row = self._row(state, node, report.work)
            if checkpoint_rows.series_row(state, uid) is None:
                raise InvalidInput(f"a {row.kind} job has no checkpoints")
            known = [point_of(each) for each in checkpoint_rows.of_job(state, uid)]
            waiting = self._tasks.waiting(state, TaskKind.CHECK_CHECKPOINT, uid)
        # Said again on a new stream.
        if point in known or any(row.details == details for row in waiting):
            return
        with self._database.write() as transaction:
            self._row(transaction, node, report.work)
            self._tasks.add(transaction, TaskKind.CHECK_CHECKPOINT, uid, **details)
            self._tasks.drop_oldest(transaction, TaskKind.CHECK_CHECKPOINT, uid, MAX_CHECKS)

    def ended(self, node: str, report: rpc.JobEnded) -> None:
        """A job's part on a node has ended. Raises LeaseLost."""
        work = report.work
        # Also of a lease that is over: the process is gone, so its devices are free.
        self._leases.confirm_stopped(work.work, work.epoch, node)
        self._runs.confirm_stopped(work.work, node)
        try:
            share = self._leases.check(work.work, work.epoch, node)
        except LeaseLost:
            # Another node's end, or a person, came first; what this one wrote may be the cause.
            if not report.succeeded:
                self._note(work, partial(self._logs.fill, node, report))
            raise
        if report.reason == Paused.reason and not report.succeeded:
            self._paused(node, report)
            return
        if not report.succeeded:
            self._note(work, partial(self._logs.keep, share, report))
            self._failed(report)
            self._leases.confirm_stopped(work.work, work.epoch, node)
            return
        with self._database.write() as transaction:
            row = self._row(transaction, node, work)
            values: dict[str, object] = {}
            if share.rank_base == 0:
                if report.result.ByteSize() > _MAX_RESULT:
                    raise InvalidInput(f"a job finds at most {_MAX_RESULT} bytes")
                self._note_outputs(transaction, row, report)
                values["result"] = json_format.MessageToDict(report.result)
            shares = self._leases.end_share(work.work, work.epoch, node)
            values["placement"] = [other.as_json() for other in shares]
            if row.state == JobState.STARTING:
                values["start_time"] = row.start_time or self._clock()
            over = all(other.ended for other in shares)
            to = JobState.RUNNING if row.state == JobState.STARTING else None
            self._note_further(transaction, row, JobState.REGISTERING if over else to, values)
            if over:
                self._tasks.add(transaction, TaskKind.REGISTER, work.work)
        if over:
            self._leases.release(work.work, work.epoch)

    def _paused(self, node: str, report: rpc.JobEnded) -> None:
        """A job's part has ended as it was told to, after a checkpoint. Raises LeaseLost."""
        work, over = report.work, False
        with self._database.write() as transaction:
            row = self._row(transaction, node, work)
            wanted = row.state == JobState.PAUSING
            if wanted:
                shares = self._leases.end_share(work.work, work.epoch, node)
                what = report.message[:MAX_MESSAGE]
                over = self._pauses.saved(transaction, row, shares, what)
        if not wanted:
            # The state is older than the order: it was restored.
            why = f"node {node} has paused it, and nobody here knows of such an order"
            self._runs.lost(work.work, work.epoch, why)
        if over:
            self._leases.release(work.work, work.epoch)

    def _note(self, work: rpc.WorkEpoch, keep: Callable[[], None]) -> None:
        """Keep what ranks wrote last, if that can be done: why they ended is worth more."""
        try:
            keep()
        except ApplianceError as error:
            _logger.warning(
                "the last output of job %s cannot be kept: %s", work.work, error.message
            )

    def _failed(self, report: rpc.JobEnded) -> None:
        work = report.work
        message = report.message[:MAX_MESSAGE] or "the job ended without saying why"
        if report.reason == StoreFull.reason:
            self._pauses.store_full(work.work, work.epoch, message)
            return
        if report.reason in RETRIED:
            ranks = report.reason not in WITH_NODE
            self._runs.lost(work.work, work.epoch, message, report.reason if ranks else "")
            return
        self._runs.give_up(work.work, work.epoch, report.reason or "INTERNAL", message)

    def _row(self, state: Any, node: str, work: rpc.WorkEpoch) -> Row[Any]:  # noqa: ANN401  # Reading or Transaction
        """The job of a report, whose lease the node holds, and which is not over in the row.

        The lease ends a moment after the row says so: the same end may be heard twice by then.
        """
        self._leases.check(work.work, work.epoch, node)
        row = job_rows.by_uid(state, work.work)
        if row is None or row.epoch != work.epoch or row.state not in LEASED:
            raise LeaseLost(f"epoch {work.epoch} of {work.work} is over; stop its processes")
        return row

    def _note_outputs(self, transaction: Transaction, row: Row[Any], report: rpc.JobEnded) -> None:
        waiting = {found.slot: found for found in pending_of(transaction, row.uid)}
        for output in report.outputs:
            if output.slot not in waiting or output.slot == CHECKPOINTS:
                raise InvalidInput(f"a {row.kind} job makes no {output.slot[:40]!r}")
            if len(output.manifest_digest) != _DIGEST:
                raise InvalidInput("the digest of an output is not a SHA-256")
            transaction.run(
                update(tables.artifact_version)
                .where(_version.uid == waiting[output.slot].uid)
                .values(manifest_digest=output.manifest_digest)
            )


def _news(reports: Sequence[rpc.JobProgress]) -> _News:
    """What reports of one job say together. Raises InvalidInput."""
    values: dict[str, object] = {}
    event = ""
    progress: job_pb2.Progress | None = None
    measured: dict[int, dict[str, float]] = {}
    for report in reports:
        _check_measurements(report)
        if report.event:
            # That it has begun its state says, and the sentence would stand there for ever.
            event = "" if report.event == BEGUN else report.event[:MAX_MESSAGE]
            values["message"] = event
        if report.HasField("progress"):
            progress = report.progress
            if progress.metrics:
                measured[progress.step] = dict(progress.metrics)
        measured |= {each.step: dict(each.values) for each in report.measured}
    if progress is not None:
        newest = job_pb2.Progress()
        newest.CopyFrom(progress)
        newest.message = progress.message[:MAX_MESSAGE]
        values["progress"] = json_format.MessageToDict(newest)
    restarts = max(report.restarts for report in reports)
    return _News(reports[0].work, restarts, values, event, measured)


def _check_measurements(report: rpc.JobProgress) -> None:
    """Refuse what would not fit into a row, or is no name for a person."""
    if len(report.measured) > MAX_STEPS:
        raise InvalidInput(f"a job reports at most {MAX_STEPS} steps at a time")
    if report.progress.step < 0 or any(each.step < 0 for each in report.measured):
        raise InvalidInput("the steps of a job are counted from zero")
    for measured in (report.progress.metrics, *(each.values for each in report.measured)):
        if len(measured) > _MAX_METRICS:
            raise InvalidInput(f"a job reports at most {_MAX_METRICS} measurements at a time")
        if any(len(name) > _MAX_NAME or not name.isprintable() for name in measured):
            raise InvalidInput(
                f"the name of a measurement has at most {_MAX_NAME} printable characters"
            )
