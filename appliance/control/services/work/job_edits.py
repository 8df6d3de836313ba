"""Changes to jobs that are there: what happens when a node is silent; and their deletion.

Rules kept here:
* a job that has not ended can be changed, one that has can be deleted;
* with a job goes what belongs to it alone: checkpoints (their key first, their files by the queue),
  measurements, history, last output. What it made stays, and names it by its uid for ever;
* nobody loses what it is about to read: while a job that has not ended begins with a checkpoint of
  another, that one stays, and the error names both.

Called by `rpc.jobs`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row, delete, insert, select

from appliance.api.jobs.v1 import job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.control.events import QUEUE, Events
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.updates import changed_fields, check_etag
from appliance.control.services.data.artifact_rows import pending_of
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.work import job_events, job_rows
from appliance.control.services.work.job_checks import check_on_lost
from appliance.control.services.work.runs import Runs
from appliance.control.store import requests, tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.errors import FailedPrecondition
from appliance.core.jobs import TERMINAL, JobState
from appliance.core.names import Name
from appliance.core.problems import Problems

CHANGEABLE = ("on_lost",)
_NAMED = 5
"""Jobs that an error names."""
_job = tables.job.c


class JobEdits:
    """Updates and deletes jobs."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        changes: Changes,
        artifacts: Artifacts,
        runs: Runs,
        leases: Leases,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._artifacts = artifacts
        self._runs = runs
        self._leases = leases
        self._events = events
        self._clock = clock

    def update(self, caller: Caller, request: rpc.UpdateJobRequest) -> job_pb2.Job:
        """Change a job that has not ended.

        Raises NotFound, InvalidInput, Conflict, FailedPrecondition when it has ended.
        """
        asked = request.job
        name = Name.parse(asked.name, "job", field="job.name")
        changed_fields(request, CHANGEABLE)
        problems = Problems()
        check_on_lost(asked, problems)
        problems.raise_if_any()

        def work(transaction: Transaction) -> job_pb2.Job:
            row = job_rows.by_name(transaction, name)
            check_etag(asked.etag, job_rows.etag(row), asked.name)
            if row.state in TERMINAL:
                raise FailedPrecondition(
                    f"{name} has ended ({row.state}): there is nothing to change. To go on with it,"
                    f" use `appliance job resume {name}` first",
                    state=row.state,
                )
            on_lost = json_format.MessageToDict(asked.on_lost)
            job_rows.change(transaction, self._events, row, on_lost=on_lost)
            said = job_events.Said(_words(asked.on_lost), caller.principal.name)
            now = self._clock()
            job_events.note(transaction, row.uid, job_events.UPDATED, row.epoch, now, said)
            changed = job_rows.by_name(transaction, name)
            seconds = job_rows.lost_seconds(changed)
            transaction.after_commit(lambda: self._leases.wait_for(row.uid, seconds))
            transaction.after_commit(lambda: self._events.publish(QUEUE))
            return job_rows.resource(transaction, changed)

        return self._changes.make(caller, request, job_pb2.Job, work)

    def delete(self, caller: Caller, request: rpc.DeleteJobRequest) -> job_pb2.Job:
        """Delete a job that has ended, and what belongs to it alone.

        Raises NotFound, Conflict, FailedPrecondition when it has not ended, or another job begins
        with one of its checkpoints.
        """
        name = Name.parse(request.name, "job")

        def work(transaction: Transaction) -> job_pb2.Job:
            row = job_rows.by_name(transaction, name)
            check_etag(request.etag, job_rows.etag(row), request.name)
            if why := _why_not(transaction, row):
                raise FailedPrecondition(why, state=row.state)
            shown = job_rows.resource(transaction, row)
            pending = pending_of(transaction, row.uid)
            self._artifacts.drop(transaction, pending)
            transaction.run(delete(tables.job).where(_job.uid == row.uid))
            transaction.run(
                insert(tables.deleted_job).values(
                    uid=row.uid, project=row.project, id=row.id, delete_time=self._clock()
                )
            )
            requests.forget_about(transaction, str(name))
            folders = [version.folder for version in pending]
            transaction.after_commit(lambda: self._runs.leave(row.uid, folders))
            transaction.after_commit(lambda: self._events.publish(str(name), QUEUE))
            return shown

        return self._changes.make(caller, request, job_pb2.Job, work)


def _why_not(state: Reading, row: Row[Any]) -> str:
    """Why a job cannot be deleted, and what to do; empty when it can."""
    name = job_rows.name_of(row)
    if row.state not in TERMINAL:
        words = JobState(row.state).lower()
        return f"{name} is {words}: end it first with `appliance job cancel {name}`"
    readers = [
        job_rows.name_of(other)
        for other in state.all(
            select(tables.job)
            .where(_job.project == row.project, _job.state.not_in(tuple(TERMINAL)))
            .order_by(_job.create_time)
        )
        if any(uid.startswith(f"{row.uid}/") for uid in job_rows.uids_read(state, other))
    ]
    if not readers:
        return ""
    more = f" and {len(readers) - _NAMED} more" if len(readers) > _NAMED else ""
    return (
        f"{', '.join(readers[:_NAMED])}{more} will begin with a checkpoint of {name}: delete it"
        " when they have saved one of their own, or end them first, with"
        f" `appliance job cancel {readers[0]}`"
    )


def _words(on_lost: job_pb2.OnLost) -> str:
    match on_lost.WhichOneof("policy"):
        case "wait":
            return "it waits for silent nodes"
        case "replace_after_seconds":
            return f"it starts elsewhere after {on_lost.replace_after_seconds} s of silence"
    return "silent nodes are treated as the site says"
