"""The life of a job, and who may act for it.

A pure state machine and the rules of leases and epochs.

Rules kept here:
* a state changes only along `_MOVES`; a job that has ended never changes again;
* every start of a job has an epoch one higher than the last, and nothing said under a lower epoch
  counts (fencing: two nodes never both write for one job);
* a lease that has run out is over for its holder at once, and its holder stops at two thirds of it,
  so that the old holder has stopped before a new one starts even when clocks drift a little.

Times are seconds on one monotonic clock of whoever asks. Called by the scheduler, the job service
and the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from appliance.core.errors import FailedPrecondition, LeaseLost

STOP_AT = 2 / 3
"""Fraction of a lease after which a holder that could not renew it must have stopped."""


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States a job never leaves."""

_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.FAILED, JobState.CANCELLED}),
    # Back to QUEUED: the lease ran out, so another node takes the job up with the next epoch.
    JobState.STARTING: frozenset(
        {JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def can_move(before: JobState, after: JobState) -> bool:
    """Whether a job may go from one state to the other; staying is not a move."""
    return after in _MOVES[before]


def move(before: JobState, after: JobState) -> JobState:
    """Return `after`, or raise FailedPrecondition when a job cannot go there from `before`."""
    if can_move(before, after):
        return after
    if before in TERMINAL:
        raise FailedPrecondition(f"the job has ended ({before}); create a new job", state=before)
    raise FailedPrecondition(f"a job cannot go from {before} to {after}", state=before)


@dataclass(frozen=True)
class Lease:
    """Node `node` may act for `work` under `epoch` until `expires` (seconds, monotonic)."""

    work: str
    epoch: int
    node: str
    expires: float

    def live(self, now: float) -> bool:
        """Whether the lease still holds."""
        return now < self.expires


def grant(work: str, last_epoch: int, node: str, now: float, seconds: float) -> Lease:
    """A lease for the next start of `work`: one epoch above the last (0 when it never started)."""
    return Lease(work, last_epoch + 1, node, now + seconds)


def check(lease: Lease, epoch: int, node: str, now: float) -> None:
    """Raise LeaseLost unless `node`, speaking under `epoch`, holds `lease` now."""
    if epoch != lease.epoch or node != lease.node:
        raise LeaseLost(
            f"epoch {epoch} of {lease.work} is over; stop its processes",
            work=lease.work,
            epoch=lease.epoch,
        )
    if not lease.live(now):
        raise LeaseLost(
            f"the lease on {lease.work} has run out; stop its processes",
            work=lease.work,
            epoch=lease.epoch,
        )


def renew(lease: Lease, epoch: int, node: str, now: float, seconds: float) -> Lease:
    """The same lease for `seconds` more from now, never shorter than it is. Raises LeaseLost."""
    check(lease, epoch, node, now)
    return replace(lease, expires=max(lease.expires, now + seconds))


def stop_time(renewed_at: float, seconds: float) -> float:
    """When a holder that renewed at `renewed_at` (own clock) and hears nothing has stopped."""
    return renewed_at + seconds * STOP_AT
