"""The life of a job as a table."""

import pytest

from appliance.core import jobs
from appliance.core.errors import FailedPrecondition
from appliance.core.jobs import TERMINAL, JobState, can_move

ALLOWED = {
    ("QUEUED", "STARTING"),
    ("QUEUED", "FAILED"),
    ("QUEUED", "CANCELLED"),
    ("STARTING", "RUNNING"),
    ("STARTING", "QUEUED"),
    ("STARTING", "FAILED"),
    ("STARTING", "CANCELLED"),
    ("STARTING", "REGISTERING"),
    ("RUNNING", "REGISTERING"),
    ("REGISTERING", "SUCCEEDED"),
    ("REGISTERING", "FAILED"),
    ("REGISTERING", "CANCELLED"),
    ("RUNNING", "QUEUED"),
    ("STARTING", "PAUSED"),
    ("RUNNING", "PAUSED"),
    ("QUEUED", "PAUSED"),
    ("STARTING", "PAUSING"),
    ("RUNNING", "PAUSING"),
    ("PAUSING", "REGISTERING"),
    ("PAUSING", "PAUSED"),
    ("PAUSING", "QUEUED"),
    ("PAUSING", "FAILED"),
    ("PAUSING", "CANCELLED"),
    ("PAUSED", "QUEUED"),
    ("PAUSED", "FAILED"),
    ("PAUSED", "CANCELLED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
    ("FAILED", "QUEUED"),
    ("CANCELLED", "QUEUED"),
}


def test_moves() -> None:
    assert {(a.value, b.value) for a in JobState for b in JobState if can_move(a, b)} == ALLOWED


@pytest.mark.parametrize("state", TERMINAL)
def test_an_ended_job_changes_only_when_it_is_resumed(state: JobState) -> None:
    for after in set(JobState) - ({JobState.QUEUED} if state != JobState.SUCCEEDED else set()):
        with pytest.raises(FailedPrecondition):
            jobs.move(state, after)


def test_move() -> None:
    assert jobs.move(JobState.QUEUED, JobState.STARTING) is JobState.STARTING
    with pytest.raises(FailedPrecondition) as raised:
        jobs.move(JobState.QUEUED, JobState.SUCCEEDED)
    assert str(raised.value) == "a job cannot go from QUEUED to SUCCEEDED"
