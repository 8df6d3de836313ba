"""Report lines become messages for the control plane."""

import itertools

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.thinning import MAX_POINTS
from appliance.node.logs import LastOutput
from appliance.node.reports import MAX_CHECKPOINTS, MAX_TOGETHER, JobReports, ReplicaReports
from appliance.node.running import Ended

WORK = rpc.WorkEpoch(work="ab", epoch=2)


def progress(step: int, **metrics: float) -> dict[str, object]:
    return {"type": "progress", "step": step, "total": 9, "message": "", "metrics": metrics}


def news_of(reports: JobReports) -> rpc.JobProgress:
    news = reports.news()
    assert news is not None
    return news.job_progress


def test_steps_go_together_with_the_newest_progress() -> None:
    reports = JobReports(WORK)
    assert reports.news() is None
    for line in (
        progress(1),
        progress(2),
        progress(3, loss=1.5),
        progress(4, loss=1.25),
        progress(5),
    ):
        reports.take(line)
    said = news_of(reports)
    assert said.progress.step == 5
    assert [(each.step, dict(each.values)) for each in said.measured] == [
        (3, {"loss": 1.5}),
        (4, {"loss": 1.25}),
    ]
    assert reports.news() is None
    assert reports.drain() == []


def test_a_step_below_zero_is_no_report() -> None:
    reports = JobReports(WORK)
    with pytest.raises(ValueError, match="counted from zero"):
        reports.take(progress(-1, loss=1.0))
    assert reports.news() is None


def test_a_step_done_twice_is_said_once() -> None:
    reports = JobReports(WORK)
    for step, loss in ((1, 5.0), (2, 4.0), (1, 4.5)):
        reports.take(progress(step, loss=loss))
    assert [(m.step, m.values["loss"]) for m in news_of(reports).measured] == [(2, 4.0), (1, 4.5)]


def test_a_control_plane_that_is_away_for_long_misses_resolution_and_not_time() -> None:
    reports = JobReports(WORK)
    for step in range(1, 100_001):
        reports.take(progress(step, loss=1.0))
    said = [report.job_progress for report in reports.rest()]
    assert {len(each.measured) for each in said[:-1]} == {MAX_TOGETHER}
    steps = [metric.step for each in said for metric in each.measured]
    assert MAX_POINTS // 2 <= len(steps) <= MAX_POINTS
    assert (steps[0], steps[-1]) == (1, 100_000)
    apart = [b - a for a, b in itertools.pairwise(steps[1:-1])]
    assert max(apart) <= 64
    assert reports.news() is None


def test_checkpoints_that_nobody_hears_are_bounded() -> None:
    reports = JobReports(WORK)
    for step in range(MAX_CHECKPOINTS + 5):
        reports.take({"type": "checkpoint", "step": step, "digest": "ab"})
    waiting = reports.drain()
    assert len(waiting) == MAX_CHECKPOINTS
    assert waiting[-1].checkpoint.step == MAX_CHECKPOINTS + 4


def test_a_restart_is_told_with_its_numbers() -> None:
    reports = JobReports(WORK)
    reports.take({"type": "event", "name": "rank_restart", "restarts": 2, "resumed_at_step": 40})
    said = news_of(reports)
    assert said.event == "rank_restart restarts=2 resumed_at_step=40"
    assert said.restarts == 2
    assert not said.HasField("progress")
    reports.take(progress(41, loss=1.0))
    assert news_of(reports).event == ""


def test_a_restart_that_has_a_sentence_is_told_with_it() -> None:
    reports = JobReports(WORK)
    line = {"type": "event", "name": "rank_restart", "restarts": 1, "message": "started again"}
    reports.take(line)
    said = news_of(reports)
    assert (said.event, said.restarts) == ("started again", 1)


def test_whom_a_job_waits_for_is_told_beside_its_progress_until_it_starts_again() -> None:
    reports = JobReports(WORK)
    reports.take(progress(3, loss=1.5))
    reports.take({"type": "waiting", "message": "waits for rank 1 for 20 s"})
    told = news_of(reports)
    found = told.progress
    assert (found.step, found.total, found.message) == (3, 9, "waits for rank 1 for 20 s")
    assert dict(found.metrics) == {"loss": 1.5}
    assert not told.event
    reports.take({"type": "event", "name": "rank_restart", "restarts": 1, "message": "again"})
    again = news_of(reports).progress
    assert (again.step, again.message) == (3, "")


def test_a_job_may_wait_before_its_first_step() -> None:
    reports = JobReports(WORK)
    for text in ("waits for rank 1 for 20 s", "waits for rank 1 for 30 s"):
        reports.take({"type": "waiting", "message": text})
    assert news_of(reports).progress.message == "waits for rank 1 for 30 s"


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
    assert reports.rest() == []


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
