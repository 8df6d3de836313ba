"""What a wait looks at: whether what is followed is done, and how it ended. Decides only.

Called by the nouns of both clients, which differ in how they follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.api.jobs.v1.job_pb2 import Job
from appliance.api.serving.v1.endpoint_pb2 import Endpoint
from appliance.client.ending import JobFailed, WaitTimedOut
from appliance.core.errors import ApplianceError, FailedPrecondition, NotFound, Unavailable

_ENDED = frozenset({Job.STATE_SUCCEEDED, Job.STATE_FAILED, Job.STATE_CANCELLED})
_SETTLED = frozenset(
    {
        Endpoint.STATE_READY,
        Endpoint.STATE_STOPPING,
        Endpoint.STATE_FAILED,
        Endpoint.STATE_STOPPED,
    }
)


class Limit:
    """How long a wait may take, in seconds; None: as long as it takes."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def judged(self, name: str, error: ApplianceError) -> ApplianceError:
        """The error that a wait ends with: that of the call, or that its time is over."""
        over = self._end is not None and time.monotonic() >= self._end - 1.0
        if isinstance(error, Unavailable) and over:
            return WaitTimedOut(f"{name} was not done in {self._timeout:g} s; it is left as it is")
        return error


def job_has_ended(job: Job, progress: Callable[[Job], None] | None) -> bool:
    """Whether a job needs no more waiting; `progress` is told of it."""
    if progress is not None:
        progress(job)
    return job.state in _ENDED


def result_of(job: Job | None, name: str) -> Job:
    """A job that succeeded. Raises JobFailed for another end, NotFound when it is gone."""
    if job is None:
        raise NotFound(f"{name} was deleted while it was waited for")
    if job.state != Job.STATE_SUCCEEDED:
        state = Job.State.Name(job.state).removeprefix("STATE_").lower()
        raise JobFailed(f"{job.name} {state}: {job.state_reason or 'no reason given'}")
    return job


def endpoint_has_settled(endpoint: Endpoint, progress: Callable[[Endpoint], None] | None) -> bool:
    """Whether an endpoint is ready, or will not be; `progress` is told of it."""
    if progress is not None:
        progress(endpoint)
    # An update was given up for now: older replicas answer, because the new version does not start.
    given_up = endpoint.state == Endpoint.STATE_DEGRADED and any(
        each.state == each.STATE_READY and each.generation != endpoint.generation
        for each in endpoint.replica_status
    )
    return given_up or endpoint.state in _SETTLED


def ready(endpoint: Endpoint | None, name: str) -> Endpoint:
    """An endpoint that is ready. Raises FailedPrecondition or NotFound for one that is not."""
    if endpoint is None:
        raise NotFound(f"{name} was deleted while it was waited for")
    if endpoint.state != Endpoint.STATE_READY:
        state = Endpoint.State.Name(endpoint.state).removeprefix("STATE_").lower()
        raise FailedPrecondition(f"{name} is not served: {endpoint.state_reason or state}")
    return endpoint
