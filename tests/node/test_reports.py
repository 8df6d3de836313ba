"""Report lines become messages for the control plane."""

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.node.launcher import Ended
from appliance.node.logs import LastOutput
from appliance.node.reports import MOST_WAITING, JobReports, ReplicaReports

WORK = rpc.WorkEpoch(work="ab", epoch=2)


def progress(step: int, **metrics: float) -> dict[str, object]:
    return {"type": "progress", "step": step, "total": 9, "message": "", "metrics": metrics}


def test_every_step_with_measurements_is_kept_and_plain_progress_is_replaced() -> None:
    reports = JobReports(WORK)
    for line in (
        progress(1),
        progress(2),
        progress(3, loss=1.5),
        progress(4, loss=1.25),
        progress(5),
    ):
        reports.take(line)
    waiting = reports.drain()
    assert [m.job_progress.progress.step for m in waiting] == [3, 4, 5]
    assert dict(waiting[1].job_progress.progress.metrics) == {"loss": 1.25}
    assert reports.drain() == []


def test_a_control_plane_that_is_away_for_long_misses_the_oldest() -> None:
    reports = JobReports(WORK)
    for step in range(MOST_WAITING + 5):
        reports.take(progress(step, loss=1.0))
    waiting = reports.drain()
    assert len(waiting) == MOST_WAITING
    assert waiting[0].job_progress.progress.step == 5


def test_a_restart_is_told_with_its_numbers() -> None:
    reports = JobReports(WORK)
    reports.take({"type": "event", "name": "rank_restart", "restarts": 2, "resumed_at_step": 40})
    (message,) = reports.drain()
    assert message.job_progress.event == "rank_restart restarts=2 resumed_at_step=40"
    assert message.job_progress.restarts == 2
    assert not message.job_progress.HasField("progress")


def test_a_restart_that_has_a_sentence_is_told_with_it() -> None:
    reports = JobReports(WORK)
    line = {"type": "event", "name": "rank_restart", "restarts": 1, "message": "started again"}
    reports.take(line)
    (message,) = reports.drain()
    assert (message.job_progress.event, message.job_progress.restarts) == ("started again", 1)


def test_whom_a_job_waits_for_is_told_beside_its_progress_until_it_starts_again() -> None:
    reports = JobReports(WORK)
    reports.take(progress(3, loss=1.5))
    reports.take({"type": "waiting", "message": "waits for rank 1 for 20 s"})
    _, told = reports.drain()
    found = told.job_progress.progress
    assert (found.step, found.total, found.message) == (3, 9, "waits for rank 1 for 20 s")
    assert dict(found.metrics) == {"loss": 1.5}
    assert not told.job_progress.event
    reports.take({"type": "event", "name": "rank_restart", "restarts": 1, "message": "again"})
    (again,) = reports.drain()
    assert (again.job_progress.progress.step, again.job_progress.progress.message) == (3, "")


def test_a_job_may_wait_before_its_first_step() -> None:
    reports = JobReports(WORK)
    for text in ("waits for rank 1 for 20 s", "waits for rank 1 for 30 s"):
        reports.take({"type": "waiting", "message": text})
    (told,) = reports.drain()
    assert told.job_progress.progress.message == "waits for rank 1 for 30 s"


def test_of_errors_the_first_counts() -> None:
    reports = JobReports(WORK)
    reports.take({"type": "error", "reason": "INVALID_INPUT", "message": "wrong"})
    reports.take({"type": "error", "reason": "INTERNAL", "message": "consequence"})
    ended = reports.ended(Ended(1)).job_ended
    assert (ended.succeeded, ended.reason, ended.message) == (False, "INVALID_INPUT", "wrong")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Ended(-9), "LEADER_LOST"),
        (Ended(3), "INTERNAL"),
        (Ended(-9, out_of_memory=True), "RESOURCE_EXHAUSTED"),
    ],
)
def test_an_end_without_a_word_has_a_reason(how: Ended, reason: str) -> None:
    ended = JobReports(WORK).ended(how).job_ended
    assert (ended.succeeded, ended.reason) == (False, reason)
    assert "log" not in ended.message
    assert ended.message == how.sentence()


def test_only_a_bad_end_brings_the_last_output() -> None:
    last = LastOutput("Traceback ...\n", cut=True)
    bad = JobReports(WORK).ended(Ended(1, last=last)).job_ended
    good = JobReports(WORK).ended(Ended(0, last=last)).job_ended
    assert (bad.log, bad.log_cut) == (last.text, True)
    assert (good.log, good.log_cut) == ("", False)


@pytest.mark.parametrize(
    "line",
    [{}, {"type": "dance"}, {"type": "progress"}, {"type": "output", "slot": 1}, {"type": "ready"}],
)
def test_what_is_no_report_changes_nothing(line: dict[str, object]) -> None:
    reports = JobReports(WORK)
    with pytest.raises((KeyError, ValueError, TypeError)):
        reports.take(line)
    assert reports.drain() == []


def test_a_replica_is_ready_and_ends() -> None:
    reports = ReplicaReports(WORK)
    reports.take({"type": "ready", "address": "10.0.0.1:4000"})
    (ready,) = reports.drain()
    assert ready.replica_changed == rpc.ReplicaChanged(
        work=WORK, ready=True, address="10.0.0.1:4000"
    )
    ended = reports.ended(Ended(1)).replica_changed
    assert ended.message == (
        "the replica ended: its process ended with code 1; its log on the node says more"
    )
