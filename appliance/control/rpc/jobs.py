"""JobService: see `appliance.control.services.work.jobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.jobs.v1 import job_log_pb2, job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.api.jobs.v1.job_service_pb2_grpc import JobServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.work.job_edits import JobEdits
from appliance.control.services.work.jobs import Jobs
from appliance.control.services.work.live_logs import LiveLogs

Context = grpc.aio.ServicerContext[Any, Any]


_ENDED = frozenset(
    {job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED}
)


class JobRpc(Servicer, JobServiceServicer):
    """Translates."""

    def __init__(
        self, service: Jobs, edits: JobEdits, logs: LiveLogs, pool: CallPool, events: Events
    ) -> None:
        super().__init__(pool, events)
        self._service = service
        self._edits = edits
        self._logs = logs

    async def GetJob(self, request: rpc.GetJobRequest, context: Context) -> job_pb2.Job:
        """Returns one job."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListJobs(
        self, request: rpc.ListJobsRequest, context: Context
    ) -> rpc.ListJobsResponse:
        """Returns one page of jobs, newest first."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateJob(self, request: rpc.CreateJobRequest, context: Context) -> job_pb2.Job:
        """Accepts a job and queues it."""
        return await self._run(self._service.create, self.caller, request)

    async def UpdateJob(self, request: rpc.UpdateJobRequest, context: Context) -> job_pb2.Job:
        """Changes a job that has not ended."""
        return await self._run(self._edits.update, self.caller, request)

    async def DeleteJob(self, request: rpc.DeleteJobRequest, context: Context) -> job_pb2.Job:
        """Deletes a job that has ended."""
        return await self._run(self._edits.delete, self.caller, request)

    async def PlanJob(self, request: rpc.PlanJobRequest, context: Context) -> rpc.JobPlan:
        """Says what a job would need, and where it would run."""
        return await self._run(self._service.plan, self.caller, request)

    async def CancelJob(self, request: rpc.CancelJobRequest, context: Context) -> job_pb2.Job:
        """Ends a job on request."""
        return await self._run(self._service.cancel, self.caller, request)

    async def PauseJob(self, request: rpc.PauseJobRequest, context: Context) -> job_pb2.Job:
        """Lets a job save a checkpoint and wait."""
        return await self._run(self._service.pause, self.caller, request)

    async def ResumeJob(self, request: rpc.ResumeJobRequest, context: Context) -> job_pb2.Job:
        """Queues a job again that failed or was cancelled."""
        return await self._run(self._service.resume, self.caller, request)

    async def WatchJob(
        self, request: rpc.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.Job]:
        """Streams the job now and each time it changes, until it ends."""
        caller = self.caller

        def read() -> job_pb2.Job:
            return self._service.get(caller, request.name)

        async for job in self._follow(request.name, read, lambda job: job.state in _ENDED):
            yield job

    async def ListJobMetrics(
        self, request: rpc.ListJobMetricsRequest, context: Context
    ) -> rpc.ListJobMetricsResponse:
        """Returns one page of measurements, by step."""
        return await self._run(self._service.metrics, self.caller, request)

    async def ListJobEvents(
        self, request: rpc.ListJobEventsRequest, context: Context
    ) -> rpc.ListJobEventsResponse:
        """Returns one page of what happened to a job, oldest first."""
        return await self._run(self._service.events, self.caller, request)

    async def ReadJobLogs(
        self, request: rpc.ReadJobLogsRequest, context: Context
    ) -> AsyncIterator[rpc.ReadJobLogsResponse]:
        """Streams what the ranks of a job write."""
        with self._logs.seat(self.caller.principal.name):
            async for answer in self._logs.read(request, self._run_for_stream):
                yield answer

    async def GetJobLogs(
        self, request: rpc.GetJobLogsRequest, context: Context
    ) -> job_log_pb2.JobLogs:
        """Returns the last output of the ranks of a job that did not succeed."""
        return await self._run(self._service.logs, self.caller, request)
