"""What is said again, and what is not."""

from __future__ import annotations

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.node.outbox import ReportOutbox

WORK = ("a", 1)


def said(text: str) -> rpc.ReportRequest:
    return rpc.ReportRequest(job_progress=rpc.JobProgress(event=text))


def read(reports: list[rpc.ReportRequest]) -> list[tuple[int, str]]:
    return [(report.number, report.job_progress.event) for report in reports]


def test_what_was_answered_is_not_said_again() -> None:
    outbox = ReportOutbox()
    assert read(outbox.send([said("1"), said("2")], keep=True)) == [(1, "1"), (2, "2")]
    assert read(outbox.send([said("3")], keep=True)) == [(3, "3")]
    outbox.acknowledge(2)
    assert read(outbox.begin([said("ready")])) == [(1, "ready"), (2, "3")]
    # A new stream numbers anew: the answer to 1 is not one to what was 3.
    outbox.acknowledge(1)
    assert read(outbox.begin([])) == [(1, "3")]
    outbox.acknowledge(1)
    assert read(outbox.begin([])) == []


def test_a_last_word_is_kept_and_its_work_held_until_it_was_answered() -> None:
    outbox = ReportOutbox()
    outbox.end(WORK, [said("log"), said("over")])
    assert outbox.unacknowledged_ends() == [WORK]
    assert read(outbox.unsent_ends()) == [(1, "log"), (2, "over")]
    assert outbox.unsent_ends() == []
    outbox.acknowledge(1)
    outbox.forget([])
    assert read(outbox.begin([])) == []
    assert read(outbox.unsent_ends()) == [(1, "log"), (2, "over")]
    outbox.acknowledge(2)
    assert outbox.unacknowledged_ends() == []
    assert outbox.begin([]) == outbox.unsent_ends() == []


def test_an_end_that_was_heard_is_remembered_until_its_lease_is_over() -> None:
    outbox = ReportOutbox()
    outbox.end(WORK, [said("over")])
    outbox.forget([])
    assert list(outbox.ended()) == [WORK]
    outbox.unsent_ends()
    outbox.acknowledge(1)
    outbox.forget([WORK])
    assert list(outbox.ended()) == [WORK]
    outbox.forget([("a", 2)])
    assert not outbox.ended()


def checkpoint(work: str, step: int) -> rpc.ReportRequest:
    of = rpc.WorkEpoch(work=work, epoch=1)
    return rpc.ReportRequest(checkpoint=rpc.CheckpointComplete(work=of, step=step))


def test_checkpoints_that_nobody_answers_are_bounded_for_each_job_and_nothing_else_is_lost() -> (
    None
):
    outbox = ReportOutbox()
    outbox.end(WORK, [said("over")])
    outbox.send([said("steps")], keep=True)
    for step in range(1, 1501):
        outbox.send([checkpoint("a", step)], keep=True)
        if step <= 900:
            outbox.send([checkpoint("b", step)], keep=True)
    again = outbox.begin([])
    assert [event for _, event in read(again) if event] == ["steps"]
    steps = {
        work: [r.checkpoint.step for r in again if r.checkpoint.work.work == work] for work in "ab"
    }
    assert steps == {"a": list(range(501, 1501)), "b": list(range(1, 901))}
    assert [event for _, event in read(outbox.unsent_ends())] == ["over"]
