"""What is said while something is waited for: one line on a terminal, changes elsewhere."""

from __future__ import annotations

import io

import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.cli import live
from appliance.cli.job_view import line, step_of, tell
from appliance.cli.live import Speed, Waiting
from appliance.cli.output import plain
from appliance.cli.tables import can_redraw
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(state: str, step: int = 0, total: int = 0, message: str = "", **more: object) -> dict:  # type: ignore[type-arg]
    progress = job_pb2.Progress(step=step, total=total, message=message)
    made = job_pb2.Job(name="projects/p/jobs/j", state=f"STATE_{state}", progress=progress, **more)
    return plain(made)


def test_the_pace_says_how_long_it_will_take() -> None:
    speed = Speed()
    assert speed.text(0, 0, 0) == ""
    assert speed.text(0, 100, 5) == "0/100"
    assert speed.text(10, 100, 10) == "10/100"
    assert speed.text(30, 100, 20) == "30/100, 2/s, 35s left"
    # It has begun again from a checkpoint: what was before says nothing.
    assert speed.text(5, 100, 30) == "5/100"
    assert speed.text(6, 100, 40) == "6/100, 10 s each, 15m left"
    assert speed.text(100, 100, 50).endswith("/s")


def test_a_pipe_gets_a_line_for_each_change_and_one_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Waiting(clock) as waiting:
        for seconds, step in ((0, 0), (1, 1), (2, 2), (70, 70), (71, 71)):
            clock.now = 100.0 + seconds
            tell(waiting, job("RUNNING", step, 200, "learning"))
        tell(waiting, job("SUCCEEDED", 200, 200, "learning"))
    said = capsys.readouterr()
    assert said.out == ""
    assert [each.split("  ")[1:3] for each in said.err.splitlines()] == [
        ["RUNNING", "learning"],
        ["RUNNING", "learning"],
        ["SUCCEEDED"],
    ]


def test_a_terminal_has_one_line_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "can_redraw", lambda _: True)
    monkeypatch.setattr(live, "terminal_width", lambda: 50)
    clock = Clock()
    with Waiting(clock) as waiting:
        clock.now += 64
        tell(waiting, job("RUNNING", 3, 9, "learning", state_reason="\x1b]0;x"))
        tell(waiting, job("RUNNING", 4, 9, "learning " * 20))
    said = capsys.readouterr().err
    assert "\n" not in said
    lines = said.split("\r\x1b[K")
    assert lines[-1] == ""
    assert all(each.isprintable() and len(each) < 50 for each in lines)
    assert "j  RUNNING  learning" in lines[1]
    assert "3/9  1m4s" in lines[1]


def test_what_is_over_does_nothing_more_and_has_no_steps_left() -> None:
    assert "started" not in line(job("SUCCEEDED", 189, 189, "started"))
    assert step_of(job("SUCCEEDED", 0, 189)) == ""
    assert step_of(job("FAILED", 3, 189)) == "3/189"


def test_the_result_stands_at_the_end(command: Run, logged_in: FakeApi) -> None:
    made = job_pb2.Job(name="projects/demo/jobs/e", state="STATE_QUEUED")
    result = job_pb2.JobResult(values={"perplexity": 15.4321, "tokens": 1323264})
    done = job_pb2.Job(name=made.name, state="STATE_SUCCEEDED", result=result)
    logged_in.answers |= {"JobService.CreateJob": made, "JobService.WatchJob": [made, done]}
    words = ("job", "evaluate", "e", "--model", "m/1", "--dataset", "d/1", "--wait")
    said = command(*words)
    assert said.out.splitlines()[-1] == "perplexity 15.4321, tokens 1323264"
    assert said.err.splitlines() == ["e  QUEUED", "e  SUCCEEDED"]


@pytest.mark.parametrize(
    ("term", "there", "can"),
    [("xterm", True, True), ("dumb", True, False), ("xterm", False, False)],
)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch, *, term: str, there: bool, can: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: there)
    assert can_redraw(stream) is can
    assert can_redraw(None) is False
