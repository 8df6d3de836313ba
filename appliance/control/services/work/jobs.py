"""Jobs: accepted, shown, paused, cancelled, resumed.

Rules kept here:
* a job is accepted only when everything that can be known before devices are taken is right
  (`services.work.job_checks`);
* its row says what will run: every default is filled in when it is accepted;
* accepting is one row in one transaction; the scheduler does the rest;
* who resumes a job needs what accepting it needs, and it is checked in the same way;
* a cancelled job has ended when `CancelJob` returns: nothing its nodes still say counts.

Called by `rpc.jobs`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from appliance.api.jobs.v1 import job_log_pb2, job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import QUEUE, Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, missing
from appliance.control.services.work import checkpoint_rows, job_events, job_plans, job_rows
from appliance.control.services.work.job_checks import JobChecks, check_on_lost, kind_asked
from appliance.control.services.work.job_logs import JobLogs
from appliance.control.services.work.pauses import Pauses
from appliance.control.services.work.runs import Runs
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.objects import new_uid
from appliance.core import names
from appliance.core.errors import AlreadyExists, FailedPrecondition, NotFound
from appliance.core.jobs import TERMINAL, JobState
from appliance.core.names import Name
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.core.values import given
from appliance.kinds import kind_of
from appliance.kinds.kind import Kind, flag_of

_READ_LOGS = "jobs.readLogs"
_RESUMED = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.PAUSED})
_job = tables.job.c


class Jobs:
    """Accepts, shows and cancels jobs."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        runs: Runs,
        pauses: Pauses,
        logs: JobLogs,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._checks = JobChecks(policies)
        self._runs = runs
        self._pauses = pauses
        self._logs = logs
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, name: str) -> job_pb2.Job:
        """One job."""
        with self._database.read() as state:
            return self._shown(state, caller, [job_rows.by_name(state, Name.parse(name, "job"))])[0]

    def list(self, caller: Caller, request: rpc.ListJobsRequest) -> rpc.ListJobsResponse:
        """One page of the jobs of a project, newest first."""
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        wanted = select(tables.job).where(_job.project == project)
        after = paging.key_of(request.page_token, str)
        with self._database.read() as state:
            check_project(state, project)
            if after is not None:
                last = job_rows.by_uid(state, str(after[0]))
                if last is None:
                    raise missing(f"{request.parent}/jobs")
                wanted = wanted.where(
                    (_job.create_time < last.create_time)
                    | ((_job.create_time == last.create_time) & (_job.uid < last.uid))
                )
            rows = state.all(
                wanted.order_by(_job.create_time.desc(), _job.uid.desc()).limit(size + 1)
            )
            page, token = paging.cut(rows, size, lambda row: (row.uid,))
            return rpc.ListJobsResponse(
                jobs=self._shown(state, caller, page), next_page_token=token
            )

    def create(self, caller: Caller, request: rpc.CreateJobRequest) -> job_pb2.Job:
        """Accept a job.

        Raises InvalidInput with a sentence for each field that is wrong, AlreadyExists,
        FailedPrecondition when no node could hold it.
        """

        def work(transaction: Transaction) -> job_pb2.Job:
            project, identifier = _place(transaction, request.parent, request.job_id)
            kind, spec, _ = self._asked(transaction, caller, project, request.job)
            uid = new_uid()
            now = self._clock()
            try:
                transaction.run(
                    insert(tables.job).values(
                        uid=uid,
                        project=project,
                        id=identifier,
                        kind=kind.name,
                        spec=json_format.MessageToDict(spec),
                        on_lost=json_format.MessageToDict(request.job.on_lost),
                        inputs=job_rows.bound(transaction, kind, spec),
                        state=JobState.QUEUED,
                        creator=caller.principal.name,
                        create_time=now,
                    )
                )
            except IntegrityError as error:
                raise _taken(Name.of("job", project, identifier)) from error
            said = job_events.Said(actor=caller.principal.name)
            job_events.note(transaction, uid, job_events.CREATED, 0, now, said)
            transaction.after_commit(lambda: self._events.publish(QUEUE))
            return job_rows.resource(
                transaction, job_rows.by_name(transaction, Name.of("job", project, identifier))
            )

        return self._changes.make(caller, request, job_pb2.Job, work)

    def plan(self, caller: Caller, request: rpc.PlanJobRequest) -> rpc.JobPlan:
        """What a job would need, and where it would run now.

        Raises as `create` does.
        """
        with self._database.read() as state:
            project, identifier = _place(state, request.parent, request.job_id)
            name = Name.of("job", project, identifier)
            with contextlib.suppress(NotFound):
                job_rows.by_name(state, name)
                raise _taken(name)
            kind, spec, demand = self._asked(state, caller, project, request.job)
        job = job_pb2.Job(name=str(name))
        getattr(job, kind.name).CopyFrom(spec)
        if request.job.HasField("on_lost"):
            job.on_lost.CopyFrom(request.job.on_lost)
        return job_plans.plan(job, kind, demand, self._runs.capacities())

    def cancel(self, caller: Caller, request: rpc.CancelJobRequest) -> job_pb2.Job:
        """End a job on request. Raises FailedPrecondition when it has ended."""
        name = Name.parse(request.name, "job")

        def work(transaction: Transaction) -> job_pb2.Job:
            row = job_rows.by_name(transaction, name)
            self._runs.end_in(
                transaction,
                row,
                JobState.CANCELLED,
                by=caller.principal.name,
                reason="CANCELLED",
                message=f"cancelled by {caller.principal.name}",
                end_time=self._clock(),
            )
            transaction.after_commit(lambda: self._runs.stop(row.uid, row.epoch))
            return self._shown(transaction, caller, [job_rows.by_name(transaction, name)])[0]

        return self._changes.make(caller, request, job_pb2.Job, work)

    def pause(self, caller: Caller, request: rpc.PauseJobRequest) -> job_pb2.Job:
        """Let a job save a checkpoint and wait until it is resumed.

        Raises InvalidInput for a grace that cannot be, FailedPrecondition when it has ended or is
        being registered.
        """
        name = Name.parse(request.name, "job")

        def work(transaction: Transaction) -> job_pb2.Job:
            problems = Problems()
            problems.take(request)
            problems.raise_if_any()
            row = job_rows.by_name(transaction, name)
            grace = given(request, "grace_seconds")
            self._pauses.ask(transaction, row, caller.principal.name, grace)
            return self._shown(transaction, caller, [job_rows.by_name(transaction, name)])[0]

        return self._changes.make(caller, request, job_pb2.Job, work)

    def resume(self, caller: Caller, request: rpc.ResumeJobRequest) -> job_pb2.Job:
        """Queue a job again that failed, was cancelled or is paused.

        It goes on from its newest checkpoint.

        Raises InvalidInput as `create` does, FailedPrecondition when it is at work, has succeeded,
        reads what was deleted, or is to have a mesh that its kind does not know.
        """
        name = Name.parse(request.name, "job")

        def work(transaction: Transaction) -> job_pb2.Job:
            row = job_rows.by_name(transaction, name)
            if row.state not in _RESUMED:
                raise FailedPrecondition(_why_not_resumed(transaction, row), state=row.state)
            job_rows.check_inputs(transaction, row)
            kind, spec = kind_of(row.kind), job_rows.spec_of(row)
            if request.HasField("mesh"):
                spec = kind.on_another_mesh(spec, request.mesh)
            # One that has a checkpoint of its own no longer reads the one that it began with.
            own = checkpoint_rows.newest(transaction, row.uid) is not None
            left_out = frozenset({kind.beginning} if own else ())
            spec, _ = self._checks.checked(
                transaction, caller, row.project, kind, spec, Problems(), left_out=left_out
            )
            job_rows.move(
                transaction,
                self._events,
                row,
                JobState.QUEUED,
                self._clock(),
                by=caller.principal.name,
                spec=json_format.MessageToDict(spec),
                reason="",
                message=f"resumed by {caller.principal.name}",
                placement=[],
                pause={},
                pauses=0,
                failures=0,
                retry_time=None,
                end_time=None,
            )
            return self._shown(transaction, caller, [job_rows.by_name(transaction, name)])[0]

        return self._changes.make(caller, request, job_pb2.Job, work)

    def logs(self, caller: Caller, request: rpc.GetJobLogsRequest) -> job_log_pb2.JobLogs:
        """The last output of the ranks of a start that did not succeed. Raises Tampered."""
        del caller  # the gate has decided
        with self._database.read() as state:
            row = job_rows.by_name(state, Name.parse(request.name, "job"))
            return self._logs.read(state, row)

    def metrics(
        self, caller: Caller, request: rpc.ListJobMetricsRequest
    ) -> rpc.ListJobMetricsResponse:
        """One page of the measurements of a job, by step, then by epoch."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int, int)
        metric = tables.job_metric.c
        with self._database.read() as state:
            job = job_rows.by_name(state, Name.parse(request.name, "job"))
            wanted = select(tables.job_metric).where(metric.job == job.uid)
            if after is not None:
                step, epoch = after
                wanted = wanted.where(
                    (metric.step > step) | ((metric.step == step) & (metric.epoch > epoch))
                )
            rows = state.all(wanted.order_by(metric.step, metric.epoch).limit(size + 1))
        page, token = paging.cut(rows, size, lambda row: (row.step, row.epoch))
        return rpc.ListJobMetricsResponse(
            metrics=[
                job_pb2.JobMetric(step=row.step, epoch=row.epoch, values=row._mapping["values"])  # noqa: SLF001  # SQLAlchemy's public name; `.values` is a method of a row
                for row in page
            ],
            next_page_token=token,
        )

    def events(
        self, caller: Caller, request: rpc.ListJobEventsRequest
    ) -> rpc.ListJobEventsResponse:
        """One page of what happened to a job, oldest first."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int)
        with self._database.read() as state:
            job = job_rows.by_name(state, Name.parse(request.name, "job"))
            last = 0 if after is None else int(after[0])
            rows = job_events.of_job(state, job.uid, last, size + 1)
        page, token = paging.cut(rows, size, lambda row: (row.number,))
        return rpc.ListJobEventsResponse(
            events=[job_events.resource(row) for row in page], next_page_token=token
        )

    def _asked(
        self, state: Reading, caller: Caller, project: str, job: job_pb2.Job
    ) -> tuple[Kind, Message, Demand]:
        """The kind of a job that is asked for, its spec as it will run, and what it needs."""
        kind, problems = kind_asked(job), Problems()
        check_on_lost(job, problems)
        asked = getattr(job, kind.name)
        return kind, *self._checks.checked(state, caller, project, kind, asked, problems)

    def _shown(
        self, state: Reading, caller: Caller, rows: Sequence[Row[Any]]
    ) -> Sequence[job_pb2.Job]:
        """The resources of rows of one project, as this caller may see them."""
        policy, kept = self._policies.current(), set[str]()
        if rows and policy.allowed(caller.principal, rows[0].project, _READ_LOGS):
            kept = self._logs.kept(state, [row.uid for row in rows])
        found = [job_rows.resource(state, row) for row in rows]
        for job in found:
            job.has_logs = job.uid in kept
        return found


def _place(state: Reading, parent: str, job_id: str) -> tuple[str, str]:
    """The project and the id of a job that is asked for. Raises NotFound, InvalidInput."""
    project = Name.parse(parent, "project", field="parent").id
    check_project(state, project)
    return project, names.check_id(job_id, "job_id")


def _taken(name: Name) -> AlreadyExists:
    return AlreadyExists(f"{name} exists already: choose another id", name=str(name))


def _why_not_resumed(state: Reading, row: Row[Any]) -> str:
    if row.state == JobState.PAUSING:
        return "the job is pausing: resume it when it is PAUSED"
    if row.state not in TERMINAL:
        return f"the job is {row.state.lower()}: there is nothing to resume"
    newest = checkpoint_rows.newest(state, row.uid)
    if newest is None:
        return "the job has succeeded: there is nothing to resume; create another job"
    name = checkpoint_rows.name_of(row, newest)
    return (
        "the job has succeeded: there is nothing to resume. To go on, create another job with"
        f" `appliance job {row.kind} {flag_of(kind_of(row.kind).beginning)} {name}`"
    )
