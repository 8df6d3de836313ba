"""The life of a job: a pure state machine.

Rule kept here: a state changes only along `_MOVES`; a job that has ended changes only when somebody
resumes it, and one that has succeeded never.

Called by the scheduler and the job service.
"""

from __future__ import annotations

from enum import StrEnum

from appliance.core.errors import FailedPrecondition


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    REGISTERING = "REGISTERING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States in which nothing happens any more, unless somebody resumes the job."""
LEASED = frozenset({JobState.STARTING, JobState.RUNNING, JobState.PAUSING})
"""States in which nodes hold the job: it has devices there."""

_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.STARTING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}
    ),
    # Back to QUEUED: it is lost on its nodes, and starts again with the next epoch.
    JobState.STARTING: frozenset(
        {
            JobState.RUNNING,
            JobState.REGISTERING,
            JobState.QUEUED,
            JobState.PAUSING,
            JobState.PAUSED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.REGISTERING,
            JobState.QUEUED,
            JobState.PAUSING,
            JobState.PAUSED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    # It may be done before it has paused. Queued again only when it leaves a node that is drained:
    # what somebody has paused never starts again by itself.
    JobState.PAUSING: frozenset(
        {
            JobState.REGISTERING,
            JobState.PAUSED,
            JobState.QUEUED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    # Queued again when somebody asks; and when the object store was full, once it has space.
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.REGISTERING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    # Only when somebody asks for it.
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}


def can_move(before: JobState, after: JobState) -> bool:
    """Whether a job may go from one state to the other; staying is not a move."""
    return after in _MOVES[before]


def move(before: JobState, after: JobState) -> JobState:
    """Return `after`, or raise FailedPrecondition when a job cannot go there from `before`."""
    if can_move(before, after):
        return after
    if before in TERMINAL:
        raise FailedPrecondition(f"the job has ended ({before}), and stays so", state=before)
    raise FailedPrecondition(f"a job cannot go from {before} to {after}", state=before)
