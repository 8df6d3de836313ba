"""`job logs` and `job describe`: what reaches the screen, and over cut streams."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from appliance.api.jobs.v1 import (
    checkpoint_service_pb2,
    job_event_pb2,
    job_log_pb2,
    job_pb2,
    job_service_pb2,
)
from appliance.cli import job_lines
from appliance.core.errors import Unavailable, UnknownMethod
from tests.cli.conftest import Run
from tests.fakes.control_api import FakeApi

JOB = "projects/demo/jobs/one"
READ = "JobService.ReadJobLogs"
Answer = job_service_pb2.ReadJobLogsResponse
Kind = job_log_pb2.JobLogNotice
Kinds = job_event_pb2.JobEvent


def lines(*texts: str, first: int = 1, epoch: int = 1, rank: int | None = 0) -> Answer:
    return Answer(
        lines=[
            job_log_pb2.JobLogLine(
                node="nodes/n1", epoch=epoch, number=first + place, rank=rank, text=text
            )
            for place, text in enumerate(texts)
        ]
    )


def begins(ranks: int, epoch: int = 1) -> Answer:
    text = f"start {epoch} on n1"
    return Answer(notice=Kind(kind=Kind.KIND_START, text=text, epoch=epoch, ranks=ranks))


def left_out(count: int) -> Answer:
    return Answer(
        notice=Kind(kind=Kind.KIND_LEFT_OUT, lines=count, text=f"{count} lines were left out")
    )


def test_text_is_on_stdout_and_what_is_missing_beside_it(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers[READ] = [
        begins(2),
        left_out(7),
        lines("zero"),
        lines("one", rank=1),
        lines("leader", rank=None),
    ]
    shown = command("job", "logs", "one", "-f", "--tail", "9", "--rank", "0", "--rank", "1")
    assert shown.out == "[rank 0] zero\n[rank 1] one\nleader\n"
    assert shown.err == "==> start 1 on n1 <==\n(7 lines were left out)\n"
    (call,) = logged_in.named(READ)
    request = call.request
    assert (request.name, request.follow, request.tail_lines, list(request.ranks)) == (
        JOB,
        True,
        9,
        [0, 1],
    )


def test_one_rank_needs_no_name(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers[READ] = [begins(1), lines("only")]
    assert command("job", "logs", "one").out == "only\n"


@pytest.mark.attack
def test_no_line_drives_a_terminal_or_is_taken_for_another(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers[READ] = [begins(2), lines("\x1b[2J\r[rank 1] forged\x85[rank 1] too")]
    out = command("job", "logs", "one").out
    assert [c for c in out if not c.isprintable() and c not in "\n\t"] == []
    assert out.splitlines()
    assert all(line.startswith("[rank 0] ") for line in out.splitlines())


def test_json_is_an_object_per_line(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers[READ] = [begins(1), lines("a\x1bb", "c")]
    shown = command("job", "logs", "one", "-o", "json").out.splitlines()
    assert [json.loads(line)["text"] for line in shown] == ["a\x1bb", "c"]


def test_a_stream_that_breaks_goes_on_where_it_was(
    command: Run, logged_in: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_lines.time, "sleep", lambda _: None)

    def answer(request: job_service_pb2.ReadJobLogsRequest) -> Iterator[Answer | Unavailable]:
        if not request.after:
            yield begins(1)
            yield lines("one", "two")
            yield lines("three", epoch=2)
            yield Unavailable("the server is stopping")
            return
        (place,) = request.after
        assert (place.node, place.epoch, place.number) == ("nodes/n1", 2, 1)
        yield lines("four", first=2, epoch=2)

    logged_in.answers[READ] = answer
    assert command("job", "logs", "one", "-f").out.split() == ["one", "two", "three", "four"]


def test_a_server_that_sends_no_lines_still_shows_the_last_output(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers[READ] = UnknownMethod("there is no such method")
    logged_in.answers["JobService.GetJobLogs"] = job_log_pb2.JobLogs(name=JOB, reason="it is fine")
    assert command("job", "logs", "one").err == f"{JOB}: it is fine\n"


def test_describe_says_everything_in_sections(command: Run, logged_in: FakeApi) -> None:

    logged_in.answers["JobService.GetJob"] = job_pb2.Job(
        name=JOB,
        uid="u1",
        creator="users/alice",
        state=job_pb2.Job.STATE_FAILED,
        state_reason="rank 3 was \x1b[1mkilled",
        train=job_pb2.TrainSpec(steps=300),
        on_lost=job_pb2.OnLost(replace_after_seconds=90),
    )
    share = job_event_pb2.JobShare(node="nodes/n1", first_rank=0, ranks=4, devices=range(4))
    events = [
        job_event_pb2.JobEvent(number=1, kind=Kinds.KIND_CREATED, actor="users/alice"),
        job_event_pb2.JobEvent(
            number=30, kind=Kinds.KIND_STARTED, epoch=2, shares=[share], message="begins anew"
        ),
        job_event_pb2.JobEvent(
            number=31, kind=Kinds.KIND_FAILED, epoch=2, message="rank 3 was killed"
        ),
    ]
    logged_in.answers["JobService.ListJobEvents"] = job_service_pb2.ListJobEventsResponse(
        events=events
    )
    logged_in.answers["CheckpointService.ListCheckpoints"] = (
        checkpoint_service_pb2.ListCheckpointsResponse()
    )
    out = command("job", "describe", "one").out
    assert "\x1b" not in out
    assert "28 events are not kept" in out
    assert "on n1: ranks 0-3, devices 0, 1, 2, 3; begins anew" in out
    history = out[out.index("History:") :]
    assert history.index("FAILED") < history.index("STARTED") < history.index("CREATED")
    found = json.loads(command("job", "describe", "one", "-o", "json").out)
    assert len(found["history"]) == 4
