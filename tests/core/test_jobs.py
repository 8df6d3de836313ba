"""The life of a job as a table, and leases that fence old epochs off."""

import pytest

from appliance.core import jobs
from appliance.core.errors import FailedPrecondition, LeaseLost
from appliance.core.jobs import TERMINAL, JobState, Lease, can_move

ALLOWED = {
    ("QUEUED", "STARTING"),
    ("QUEUED", "FAILED"),
    ("QUEUED", "CANCELLED"),
    ("STARTING", "RUNNING"),
    ("STARTING", "QUEUED"),
    ("STARTING", "FAILED"),
    ("STARTING", "CANCELLED"),
    ("RUNNING", "SUCCEEDED"),
    ("RUNNING", "QUEUED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
}
LEASE = Lease("job-1", epoch=4, node="n1", expires=100.0)


def test_moves() -> None:
    assert {(a.value, b.value) for a in JobState for b in JobState if can_move(a, b)} == ALLOWED


@pytest.mark.parametrize("state", TERMINAL)
def test_an_ended_job_never_changes(state: JobState) -> None:
    for after in JobState:
        with pytest.raises(FailedPrecondition):
            jobs.move(state, after)


def test_move() -> None:
    assert jobs.move(JobState.QUEUED, JobState.STARTING) is JobState.STARTING
    with pytest.raises(FailedPrecondition) as raised:
        jobs.move(JobState.QUEUED, JobState.SUCCEEDED)
    assert str(raised.value) == "a job cannot go from QUEUED to SUCCEEDED"


def test_each_start_has_a_higher_epoch() -> None:
    first = jobs.grant("job-1", 0, "n1", now=10.0, seconds=15.0)
    second = jobs.grant("job-1", first.epoch, "n2", now=30.0, seconds=15.0)
    assert first == Lease("job-1", 1, "n1", 25.0)
    assert second == Lease("job-1", 2, "n2", 45.0)


def test_the_holder_may_act() -> None:
    jobs.check(LEASE, 4, "n1", now=99.9)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("epoch", "node", "now"), [(3, "n1", 50.0), (5, "n1", 50.0), (4, "n2", 50.0), (4, "n1", 100.0)]
)
def test_nobody_else_may(epoch: int, node: str, now: float) -> None:
    with pytest.raises(LeaseLost) as raised:
        jobs.check(LEASE, epoch, node, now)
    assert raised.value.metadata == {"work": "job-1", "epoch": "4"}
    with pytest.raises(LeaseLost):
        jobs.renew(LEASE, epoch, node, now, 15.0)


def test_renewal_never_shortens() -> None:
    assert jobs.renew(LEASE, 4, "n1", 95.0, 15.0).expires == 110.0
    assert jobs.renew(LEASE, 4, "n1", 95.0, 1.0).expires == 100.0


def test_a_holder_stops_before_its_lease_ends() -> None:
    assert jobs.stop_time(90.0, 15.0) == 100.0
    assert jobs.stop_time(90.0, 15.0) < jobs.grant("w", 0, "n", 90.0, 15.0).expires
