"""Real ranks that hang: who is waited for is said, and the gang starts again from a checkpoint."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.jobs.runtime.leader import OTHERS_SECONDS
from tests.fakes.gang import RunningGang
from tests.fakes.job_context import FakeJob
from tests.fakes.ports import free_port
from tests.fakes.toy_kind import ALWAYS_STOP, BUSY, SLEEP, SLOW, STEPS, STOP

RANKS = 2
TOTAL = sum(range(1, STEPS + 1)) * sum(range(1, RANKS + 1))
STALL_SECONDS = 3
SILENT = "its process does not answer"
ALIVE = "its process is alive"


def toy(folder: Path, what: int, **changes: Any) -> FakeJob:
    """The toy under a kind of job that has a limit."""
    spec = {"seed": what, "stallSeconds": STALL_SECONDS}
    job = FakeJob(folder, "train", spec, world_size=RANKS)
    job.add_output("dataset")
    job.add_output("checkpoints")
    job.orders |= changes
    return job


@pytest.fixture
def gangs() -> Iterator[list[RunningGang]]:
    started: list[RunningGang] = []
    yield started
    for gang in started:
        gang.kill()


def start(gangs: list[RunningGang], job: FakeJob) -> RunningGang:
    gangs.append(RunningGang(job))
    return gangs[-1]


def said(job: FakeJob) -> list[str]:
    return [line["message"] for line in job.lines("waiting")]


def check_said(job: FakeJob, who: str) -> None:
    """That it was waited for a rank was said before it was started again."""
    *texts, last = said(job)
    assert texts
    assert last.endswith("; all ranks are started again")
    for text in texts:
        assert re.fullmatch(
            rf"waits for {who} \(falls asleep\) for [12] s; all ranks are started again after 3 s",
            text,
        ), text


def verdict(who: str, how: str) -> str:
    return (
        rf"{who} has hung \(falls asleep\): no rank has gone on since "
        rf"[-0-9]{{10}} [:0-9]{{8}} UTC, which is longer than stall_seconds \(3\), and {how}"
    )


@pytest.mark.parametrize(("what", "how"), [(STOP, SILENT), (SLEEP, ALIVE)])
def test_a_hung_rank_is_named_and_the_gang_starts_again_from_the_checkpoint(
    tmp_path: Path, gangs: list[RunningGang], what: int, how: str
) -> None:
    job = toy(tmp_path, what)
    gang = start(gangs, job)
    assert gang.wait() == 0, gang.log.read_text()
    assert job.output("dataset").read_json("total-0.json") == TOTAL
    check_said(job, "rank 1")
    restart = job.lines("event")[1]
    because = "the ranks were started again at step 4, because "
    assert re.fullmatch(because + verdict("rank 1", how), restart["message"]), restart
    assert (restart["restarts"], restart["resumed_at_step"]) == (1, 4)
    assert len(job.lines("event")) == 2
    assert job.lines("error") == []


def test_a_rank_alone_is_watched_too(tmp_path: Path, gangs: list[RunningGang]) -> None:
    job = toy(tmp_path, STOP, world_size=1, local_ranks=1, devices=[0])
    gang = start(gangs, job)
    assert gang.wait() == 0, gang.log.read_text()
    check_said(job, "rank 0")
    assert "rank 0 has hung (falls asleep)" in job.lines("event")[1]["message"]
    assert job.output("dataset").read_json("total-0.json") == TOTAL // 3


def test_a_rank_that_hangs_each_time_ends_the_job_with_a_sentence(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, ALWAYS_STOP)
    gang = start(gangs, job)
    assert gang.wait(90) == 1
    (error,) = job.lines("error")
    again = ", also after 3 restarts"
    assert error["reason"] == "RANK_LOST"
    assert re.fullmatch(verdict("rank 1", SILENT) + again, error["message"]), error
    assert gang.family() == []


def test_a_rank_that_works_for_longer_than_the_limit_is_waited_for(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, BUSY)
    gang = start(gangs, job)
    assert gang.wait() == 0, gang.log.read_text()
    assert [line["name"] for line in job.lines("event")] == ["started"]
    assert said(job) == []


def test_a_rank_that_goes_on_in_time_is_not_waited_for_any_more(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, STOP)
    gang = start(gangs, job)
    gang.until("waiting")
    for process in gang.family():
        os.kill(process, signal.SIGCONT)
    assert gang.wait() == 0, gang.log.read_text()
    assert said(job)[-1] == ""
    assert [line["name"] for line in job.lines("event")] == ["started"]


def test_a_leader_that_was_stopped_itself_takes_nobody_for_hung(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, SLOW)
    gang = start(gangs, job)
    gang.until("progress", step=2)
    # As when the machine sleeps: for longer than the limit nobody runs.
    os.killpg(gang.process.pid, signal.SIGSTOP)
    with pytest.raises(AssertionError):
        gang.until("progress", timeout=STALL_SECONDS + 1, step=STEPS)
    os.killpg(gang.process.pid, signal.SIGCONT)
    assert gang.wait() == 0, gang.log.read_text()
    assert [line["name"] for line in job.lines("event")] == ["started"]


def two_nodes(folder: Path, what: int) -> tuple[FakeJob, FakeJob]:
    """A job of one rank on each of two nodes; the second hangs."""
    meeting = f"127.0.0.1:{free_port()}"
    shared = {"local_ranks": 1, "devices": [0], "node_count": 2, "rendezvous": meeting}
    first = toy(folder / "a", what, node="nodes/a", **shared)
    second = toy(folder / "b", what)
    second.orders = {**first.orders, "node": "nodes/b", "node_rank": 1, "rank_base": 1}
    return first, second


@pytest.mark.parametrize(("what", "how"), [(STOP, SILENT), (SLEEP, ALIVE)])
def test_a_rank_that_hangs_on_another_node_is_named_with_it_and_both_start_again(
    tmp_path: Path, gangs: list[RunningGang], what: int, how: str
) -> None:
    first, second = two_nodes(tmp_path, what)
    nodes = [start(gangs, second), start(gangs, first)]
    first_ranks = _ranks_once_waiting(nodes)
    assert [gang.wait() for gang in nodes] == [0, 0], nodes[0].log.read_text()
    assert not [rank for rank in first_ranks if Path(f"/proc/{rank}").exists()]
    check_said(first, "rank 1 on nodes/b")
    restart = first.lines("event")[1]["message"]
    because = "the ranks were started again at step 4, because "
    assert re.fullmatch(because + verdict("rank 1 on nodes/b", how), restart), restart
    assert first.output("dataset").read_json("total-1.json") == TOTAL
    assert first.lines("error") == second.lines() == []


def _ranks_once_waiting(nodes: list[RunningGang]) -> list[int]:
    """The ranks of both nodes when one of them is waited for."""
    nodes[1].until("waiting")
    return [rank for gang in nodes for rank in gang.family() if rank != gang.process.pid]


def test_a_node_that_falls_silent_is_named(tmp_path: Path, gangs: list[RunningGang]) -> None:
    first, second = two_nodes(tmp_path, SLOW)
    nodes = [start(gangs, second), start(gangs, first)]
    nodes[1].until("progress", step=3)
    os.killpg(nodes[0].process.pid, signal.SIGSTOP)
    nodes[1].until("waiting")
    assert said(first)[0].startswith("waits for rank 1 on nodes/b ")


def test_the_leader_of_another_node_that_is_gone_is_worth_another_start(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    first, second = two_nodes(tmp_path, SLOW)
    nodes = [start(gangs, second), start(gangs, first)]
    nodes[1].until("progress", step=2)
    nodes[1].kill()
    killed = time.monotonic()
    assert nodes[0].wait(90) == 1
    # What the first node's leader says itself comes before.
    assert time.monotonic() - killed > OTHERS_SECONDS
    (error,) = second.lines("error")
    assert error["reason"] == "UNAVAILABLE"
    assert "the nodes of the job cannot reach each other" in error["message"]
