"""What is said again, and what is not."""

from __future__ import annotations

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.node.outbox import Outbox

WORK = ("a", 1)


def said(text: str) -> rpc.ReportRequest:
    return rpc.ReportRequest(job_progress=rpc.JobProgress(event=text))


def read(reports: list[rpc.ReportRequest]) -> list[tuple[int, str]]:
    return [(report.number, report.job_progress.event) for report in reports]


def test_what_was_answered_is_not_said_again() -> None:
    outbox = Outbox()
    assert read(outbox.send([said("1"), said("2")], keep=True)) == [(1, "1"), (2, "2")]
    assert read(outbox.send([said("3")], keep=True)) == [(3, "3")]
    outbox.heard(2)
    assert read(outbox.begin([said("ready")])) == [(1, "ready"), (2, "3")]
    # A new stream numbers anew: the answer to 1 is not one to what was 3.
    outbox.heard(1)
    assert read(outbox.begin([])) == [(1, "3")]
    outbox.heard(1)
    assert read(outbox.begin([])) == []


def test_a_last_word_is_kept_and_its_work_held_until_it_was_answered() -> None:
    outbox = Outbox()
    outbox.end(WORK, [said("log"), said("over")])
    assert outbox.unheard() == [WORK]
    assert read(outbox.last_words()) == [(1, "log"), (2, "over")]
    assert outbox.last_words() == []
    outbox.heard(1)
    outbox.forget([])
    assert read(outbox.begin([])) == []
    assert read(outbox.last_words()) == [(1, "log"), (2, "over")]
    outbox.heard(2)
    assert outbox.unheard() == []
    assert outbox.begin([]) == outbox.last_words() == []


def test_an_end_that_was_heard_is_remembered_until_its_lease_is_over() -> None:
    outbox = Outbox()
    outbox.end(WORK, [said("over")])
    outbox.forget([])
    assert list(outbox.ended()) == [WORK]
    outbox.last_words()
    outbox.heard(1)
    outbox.forget([WORK])
    assert list(outbox.ended()) == [WORK]
    outbox.forget([("a", 2)])
    assert not outbox.ended()


def test_what_nobody_answers_is_bounded_and_the_last_word_is_not_lost() -> None:
    outbox = Outbox()
    outbox.end(WORK, [said("over")])
    for number in range(30_000):
        outbox.send([said(str(number))], keep=True)
    again = outbox.begin([])
    assert len(again) == 1000
    assert again[-1].job_progress.event == "29999"
    assert [event for _, event in read(outbox.last_words())] == ["over"]
