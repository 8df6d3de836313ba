"""Every list: which rows, in which order, how many, and what is new."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
import yaml

from appliance.api.access.v1 import service_account_pb2, service_account_service_pb2
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.cli import watching
from appliance.cli.conditions import Condition, check_path
from appliance.cli.values import paths_of
from appliance.core.errors import Exhausted, Unavailable
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

DEMO = "projects/demo"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
LIST = "JobService.ListJobs"


def job(name: str, state: str, step: int = 0, *, hours: float = 0) -> job_pb2.Job:
    made = job_pb2.Job(
        name=f"{DEMO}/jobs/{name}",
        state=f"STATE_{state}",
        nodes=[f"nodes/{name}-node"],
        progress=job_pb2.Progress(step=step, total=9, metrics={"loss": step / 2}),
        train=job_pb2.TrainSpec(),
        creator="users/alice",
    )
    made.create_time.FromDatetime(datetime.now(UTC) - timedelta(hours=hours))
    return made


class Pages:
    """Three jobs on three pages, whatever size is asked for."""

    def __init__(self) -> None:
        self.jobs = [job("one", "RUNNING", 3), job("two", "FAILED", 7, hours=2)]
        self.jobs.append(job("three", "RUNNING", 5, hours=49))
        self.sizes: list[int] = []

    def __call__(self, request: Any) -> Any:
        self.sizes.append(request.page_size)
        at = int(request.page_token or 0)
        more = str(at + 1) if at + 1 < len(self.jobs) else ""
        return job_service_pb2.ListJobsResponse(jobs=self.jobs[at : at + 1], next_page_token=more)


@pytest.fixture
def pages(logged_in: FakeApi) -> Pages:
    logged_in.answers[LIST] = found = Pages()
    return found


def listed(command: Run, *options: str) -> list[str]:
    done = command("job", "list", "-o", "name", *options)
    assert (done.code, done.err) == (0, "")
    return [line.removeprefix(f"{DEMO}/jobs/") for line in done.out.splitlines()]


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        (["state=RUNNING"], ["one", "three"]),
        (["state = running"], ["one", "three"]),
        (["state=STATE_RUNNING", "progress.step>=5"], ["three"]),
        (["state!=RUNNING"], ["two"]),
        (["name=two"], ["two"]),
        ([f"name={DEMO}/jobs/two"], ["two"]),
        (["name~T"], ["one", "two", "three"]),
        (["name~thr"], ["three"]),
        (["nodes=two-node"], ["two"]),
        (["nodes!=two-node"], ["one", "three"]),
        (["progress.metrics.loss<3"], ["one", "three"]),
        (["age>1h"], ["two", "three"]),
        (["age<2d1h30m", "age>1h30m"], ["two", "three"]),
        (["create_time<1h"], ["one"]),
        (["create_time>2001-01-01"], ["one", "two", "three"]),
        (["create_time<2001-01-01T00:00:00Z"], []),
        (["creator=alice"], ["one", "two", "three"]),
        (["restarts=0"], ["one", "two", "three"]),
    ],
)
@pytest.mark.usefixtures("pages")
def test_a_list_is_filtered_by_what_json_shows(
    command: Run, expressions: list[str], expected: list[str]
) -> None:
    assert listed(command, *(f"--filter={each}" for each in expressions)) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("progress.step", ["one", "three", "two"]),
        ("-progress.step", ["two", "three", "one"]),
        ("age", ["one", "two", "three"]),
        ("-create_time", ["one", "two", "three"]),
        ("name", ["one", "three", "two"]),
    ],
)
@pytest.mark.usefixtures("pages")
def test_a_list_is_sorted(command: Run, field: str, expected: list[str]) -> None:
    assert listed(command, "--sort", field) == expected
    assert listed(command, "--sort", field, "--limit", "2") == expected[:2]


def test_a_limit_asks_for_no_page_that_is_not_needed(command: Run, pages: Pages) -> None:
    assert listed(command, "--limit", "1") == ["one"]
    assert pages.sizes == [1]
    pages.sizes.clear()
    assert listed(command, "--filter", "state=FAILED", "--limit", "1") == ["two"]
    assert len(pages.sizes) == 2
    assert len(listed(command, "--limit", "0")) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--filter", "state"), "write it like state=RUNNING"),
        (("--filter", "stat=RUNNING"), "there is no field 'stat'. Did you mean state?"),
        (("--filter", "progress.stp>3"), "Did you mean progress.step? There are progress.message"),
        (("--filter", "age<soon"), "a duration such as 2d"),
        (("--sort", "-stat"), "--sort: there is no field 'stat'. Did you mean state?"),
        (("--limit", "-1"), "-1 is not in the range"),
    ],
)
def test_a_wrong_expression_is_said_before_anything_is_printed(
    command: Run, logged_in: FakeApi, options: tuple[str, ...], said: str
) -> None:
    logged_in.answers[LIST] = job_service_pb2.ListJobsResponse()
    done = command("job", "list", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_every_field_of_a_resource_can_be_named() -> None:
    known = paths_of(job_pb2.Job.DESCRIPTOR)
    assert {"state", "progress.step", "progress.metrics.*", "train.learning_rate"} <= set(known)
    check_path("progress.metrics.loss", known, "--filter")
    with pytest.raises(click.UsageError, match="There are age, checkpoint_step"):
        check_path("x", known, "--filter")


def test_sizes_are_typed_with_their_units() -> None:
    row = {"size_bytes": 3 << 30}
    assert Condition.parse("size_bytes>2GiB").holds(row, NOW)
    assert Condition.parse("size_bytes<4G").holds(row, NOW)
    assert not Condition.parse("size_bytes<2000000").holds(row, NOW)


def test_tokens_are_filtered_by_their_own_fields(command: Run, logged_in: FakeApi) -> None:
    app = "serviceAccounts/demo--app"
    logged_in.answers["ServiceAccountService.ListTokens"] = (
        service_account_service_pb2.ListTokensResponse(
            tokens=[
                service_account_pb2.Token(id=each, service_account=app) for each in ("t1", "t2")
            ]
        )
    )
    tokens = ("service-account", "list-tokens", "-o", "name")
    assert command(*tokens, "--filter", "id=t2").out == "t2\n"
    assert command(*tokens, "--filter", "service_account=demo--app").out == "t1\nt2\n"
    assert "Did you mean id?" in command(*tokens, "--filter", "idd=t2").err


@pytest.mark.usefixtures("pages")
def test_long_lists_are_whole_in_every_form(command: Run) -> None:
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        rows = read(command("job", "list", "-o", form).out)
        assert [row["progress"]["step"] for row in rows] == [3, 7, 5]
        assert read(command("job", "list", "-o", form, "--filter", "name=no").out) == []
    headings = command("job", "list").out.splitlines()[0].split()
    assert headings == ["JOB", "KIND", "STATE", "STEP", "CREATED", "WHY", "OUTPUTS"]
    assert "RESTARTS" in command("job", "list", "-o", "wide").out
    rows = command("job", "list", "--no-headers").out.splitlines()
    assert rows[1].split() == ["two", "train", "FAILED", "7/9", "2h", "ago"]


class Enough(Exception):
    """A watcher has seen all that a test shows it."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done between passes of a watcher; the pauses it made."""
    steps: list[Any] = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if not steps:
            raise Enough
        steps.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    steps_and_pauses: list[Any] = [steps, pauses]
    return steps_and_pauses


def test_watching_prints_what_is_new_and_what_has_changed(
    command: Run, pages: Pages, passes: list[Any]
) -> None:
    def fail() -> None:
        pages.jobs[0].state = job_pb2.Job.STATE_FAILED

    def come() -> None:
        pages.jobs.insert(0, job("four", "QUEUED"))

    passes[0] += [lambda: None, fail, come, pages.jobs.clear]
    done = command("job", "list", "--watch", "--filter", "name!=two")
    assert "Enough" in done.err
    shown = [line.split()[:3] for line in done.out.splitlines()]
    assert shown == [
        ["JOB", "KIND", "STATE"],
        ["one", "train", "RUNNING"],
        ["three", "train", "RUNNING"],
        ["one", "train", "FAILED"],
        ["four", "train", "QUEUED"],
    ]
    # Three pages: far below the ten calls a second that a caller has.
    assert passes[1][0] == watching.SECONDS
    assert all(pause * 2 >= calls for pause, calls in zip(passes[1], (3, 3, 3, 4), strict=False))


@pytest.mark.usefixtures("pages")
def test_watching_as_json_prints_a_row_on_each_line(command: Run, passes: list[Any]) -> None:
    passes[0].append(lambda: None)
    done = command("job", "list", "--watch", "-o", "json", "--limit", "2")
    assert [json.loads(line)["name"][-3:] for line in done.out.splitlines()] == ["one", "two"]


def test_a_watcher_waits_for_a_server_that_is_away_or_full(
    command: Run, logged_in: FakeApi, pages: Pages, passes: list[Any]
) -> None:
    def answer(what: Any) -> Any:
        return lambda: logged_in.answers.update({LIST: what})

    full, away = Exhausted("wait", retry_after=7), Unavailable("away")
    passes[0] += [answer(full), answer(away), answer(pages)]
    done = command("job", "list", "--watch", "-o", "name", "--limit", "1")
    assert done.out == f"{DEMO}/jobs/one\n"
    assert passes[1][1:3] == [7, watching.SECONDS]
    logged_in.answers[LIST] = Unavailable("away")
    assert command("job", "list", "--watch").code == 7


def test_a_terminal_is_drawn_anew(
    command: Run, pages: Pages, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "can_redraw", lambda _: True)
    passes[0].append(pages.jobs.pop)
    first, second = command("job", "list", "--watch").out.split(watching._CLEAR)[1:]
    assert (len(first.splitlines()), len(second.splitlines())) == (4, 3)


def test_json_of_a_list_that_broke_off_cannot_be_taken_for_a_whole_one(
    command: Run, logged_in: FakeApi, pages: Pages
) -> None:
    def breaks_off(request: Any) -> Any:
        return Unavailable("away") if request.page_token == "2" else pages(request)

    logged_in.answers[LIST] = breaks_off
    done = command("job", "list", "-o", "json")
    assert done.code == 7
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.out)


def test_what_is_nested_in_rows_that_a_command_makes_is_found(
    command: Run, logged_in: FakeApi
) -> None:
    rows = [job_pb2.JobMetric(step=step, values={"loss": 9.0 - step}) for step in range(3)]
    answer = job_service_pb2.ListJobMetricsResponse(metrics=rows)
    logged_in.answers["JobService.ListJobMetrics"] = answer
    found = command("job", "metrics", "one", "--filter", "values.loss<8", "-o", "json")
    assert [row["step"] for row in json.loads(found.out)] == [2]
