"""Real leaders with real ranks: they finish, start again, stop, fail, and show no key."""

from __future__ import annotations

import base64
import os
import re
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core import process_tree
from appliance.core.addresses import host_port
from appliance.core.needs import REPAIR
from appliance.node.logs import LAST_BYTES
from tests.fakes.gang import RunningGang
from tests.fakes.job_context import FakeJob
from tests.fakes.ports import free_port
from tests.fakes.toy_kind import (
    ALWAYS,
    BUG,
    CRASH,
    FOLLOW,
    FULL,
    KILL,
    LAST,
    LATE,
    QUIET,
    SLOW,
    STEPS,
    TEXT,
    WRONG,
)
from tests.fakes.without import without

RANKS = 2
KILLED = (
    "rank {rank} was killed by SIGKILL, as the kernel does when memory runs out, also after 3"
    " restarts"
)
TOTAL = sum(range(1, STEPS + 1)) * sum(range(1, RANKS + 1))


def toy(folder: Path, what: int, **changes: object) -> FakeJob:
    job = FakeJob(folder, "prepare", {"seed": what}, world_size=RANKS)
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


def test_two_ranks_finish(tmp_path: Path, gangs: list[RunningGang]) -> None:
    job = toy(tmp_path, QUIET)
    gang = start(gangs, job)
    assert gang.wait() == 0, gang.log.read_text()
    assert job.output("dataset").read_json("total-1.json") == TOTAL
    assert job.lines("result")[0]["value"] == {"values": {"total": TOTAL}, "dropped": {"short": 2}}
    assert [line["step"] for line in job.lines("progress")] == list(range(1, STEPS + 1))
    assert job.lines("event") == [{"type": "event", "name": "started"}]
    assert job.lines("error") == []


@pytest.mark.parametrize(
    ("what", "why"), [(KILL, "a rank was killed by SIGKILL"), (CRASH, "a rank crashed")]
)
def test_a_lost_rank_restarts_the_gang_from_the_checkpoint(
    tmp_path: Path, gangs: list[RunningGang], what: int, why: str
) -> None:
    job = toy(tmp_path, what)
    gang = start(gangs, job)
    assert gang.wait() == 0, gang.log.read_text()
    assert job.output("dataset").read_json("total-0.json") == TOTAL
    assert job.lines("event")[1] == {
        "type": "event",
        "name": "rank_restart",
        "message": f"the ranks were started again at step 4, because {why}",
        "restarts": 1,
        "resumed_at_step": 4,
    }
    steps, after = [line["step"] for line in job.lines("progress")], range(5, STEPS + 1)
    # Rank 0 may or may not have reported step 5 before it noticed.
    assert steps in ([*range(1, 5), *after], [*range(1, 6), *after])
    assert job.lines("error") == []


def test_a_rank_that_always_dies_ends_the_job_with_a_sentence(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, ALWAYS)
    gang = start(gangs, job)
    assert gang.wait() == 1
    (error,) = job.lines("error")
    assert (error["reason"], error["message"]) == ("RANK_LOST", KILLED.format(rank=0))
    assert [line.get("restarts") for line in job.lines("event")] == [None, 1, 2, 3]


def test_the_rank_that_was_killed_is_the_reason_not_those_that_miss_it(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, LAST)
    gang = start(gangs, job)
    assert gang.wait() == 1
    (error,) = job.lines("error")
    assert (error["reason"], error["message"]) == ("RANK_LOST", KILLED.format(rank=1))
    assert "rank 1 was killed by SIGKILL" in gang.log.read_text()


def test_a_bug_is_told_by_class_and_place_and_its_text_stays_in_the_log(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, BUG)
    gang = start(gangs, job)
    assert gang.wait() == 1
    (error,) = job.lines("error")
    assert error["reason"] == "INTERNAL"
    assert re.fullmatch(
        r"rank 1 crashed with KeyError in appliance\.jobs\.runtime\.ranks, line \d+,"
        r" also after 3 restarts",
        error["message"],
    )
    assert TEXT not in job.reports.read_text()
    # One trace for each try, and little else: the cause is among the last lines.
    log = gang.log.read_text()
    assert (log.count("Traceback"), log.count(TEXT)) == (4, 4)
    assert log.count("rank 0 ended after rank 1: RuntimeError") == 4
    assert len(log) < LAST_BYTES


def test_a_full_disk_ends_the_job_without_restart_and_names_no_path(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, FULL)
    gang = start(gangs, job)
    assert gang.wait() == 1
    (error,) = job.lines("error")
    assert error["reason"] == "RESOURCE_EXHAUSTED"
    assert error["message"].startswith("rank 1 met a full disk: free some space")
    assert job.lines("event") == [{"type": "event", "name": "started"}]
    assert TEXT not in job.reports.read_text()
    assert TEXT in gang.log.read_text()


@pytest.mark.parametrize(
    ("module", "missing", "package"),
    [
        ("tests.fakes.leader", "torch", "torch"),
        ("appliance.jobs", "re2", "google-re2"),
        ("appliance.jobs", "tokenizers", "tokenizers"),
    ],
)
def test_a_node_that_lacks_a_package_says_which(
    tmp_path: Path, gangs: list[RunningGang], module: str, missing: str, package: str
) -> None:
    job = toy(tmp_path, QUIET)
    gangs.append(RunningGang(job, module, first=without(tmp_path / "first", missing)))
    assert gangs[-1].wait() == 1
    assert job.lines() == [
        {
            "type": "error",
            "reason": "FAILED_PRECONDITION",
            "message": f"{package} cannot be imported on the node: {REPAIR}",
        }
    ]


def test_bad_input_ends_the_job_once_and_without_restart(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, WRONG)
    gang = start(gangs, job)
    assert gang.wait() == 1
    assert job.lines("error") == [
        {
            "type": "error",
            "reason": "INVALID_INPUT",
            "message": "the text is wrong: send another",
        }
    ]
    assert job.lines("event") == [{"type": "event", "name": "started"}]


def test_sigterm_stops_the_ranks_at_their_next_fence(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, SLOW)
    gang = start(gangs, job)
    gang.until("progress", step=2)
    gang.process.send_signal(signal.SIGTERM)
    assert gang.wait() == 1
    assert [line["reason"] for line in job.lines("error")] == ["LEASE_LOST"]
    assert len(job.lines("progress")) < STEPS
    assert process_tree.session(gang.process.pid) == []


def test_ranks_die_with_their_leader(tmp_path: Path, gangs: list[RunningGang]) -> None:
    gang = start(gangs, toy(tmp_path, SLOW))
    gang.until("progress", step=1)
    ranks = [pid for pid in gang.family() if pid != gang.process.pid]
    assert len(ranks) == RANKS
    waiting = [os.pidfd_open(pid) for pid in ranks]
    gang.process.kill()
    gang.process.wait(10)
    for descriptor in waiting:
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)
    assert process_tree.session(gang.process.pid) == []


def two_nodes(folder: Path, what: int, host: str = "127.0.0.1") -> tuple[FakeJob, FakeJob]:
    """The parts of a toy job on two nodes, a rank on each."""
    meeting = host_port(host, free_port())
    part = {"local_ranks": 1, "devices": [0], "node_count": 2, "rendezvous": meeting}
    first = toy(folder / "a", what, **part)
    second = FakeJob(folder / "b", "prepare", {}, world_size=RANKS)
    second.orders = {**first.orders, "node_rank": 1, "rank_base": 1}
    return first, second


def test_the_node_whose_rank_crashed_is_heard_before_the_one_that_misses_it(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    first, second = two_nodes(tmp_path, BUG)
    misses, crashed = start(gangs, first), start(gangs, second)
    crashed.until("error", reason="INTERNAL")
    assert first.lines("error") == []
    assert (misses.wait(), crashed.wait()) == (1, 1)
    (error,) = first.lines("error")
    lost = "rank 0 lost its connection to another rank, also after 3 restarts"
    assert (error["reason"], error["message"]) == ("RANK_LOST", lost)
    (error,) = second.lines("error")
    assert error["message"].startswith("rank 1 crashed with KeyError in appliance.jobs.runtime.")


def test_a_node_that_has_followed_another_counts_those_starts_too(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    first, second = two_nodes(tmp_path, FOLLOW)
    follows, _ = start(gangs, first), start(gangs, second)
    assert follows.wait(90) == 1
    (error,) = first.lines("error")
    assert error["reason"] == "INTERNAL", error
    assert error["message"].startswith("rank 0 crashed with KeyError")
    assert error["message"].endswith(", also after 3 restarts")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_two_nodes_meet_and_follow_each_other_through_a_restart(
    tmp_path: Path, gangs: list[RunningGang], host: str
) -> None:
    first, second = two_nodes(tmp_path, KILL, host)
    nodes = [start(gangs, second), start(gangs, first)]
    assert [gang.wait() for gang in nodes] == [0, 0], nodes[0].log.read_text()
    assert first.output("dataset").read_json("total-1.json") == TOTAL
    assert first.lines("event")[1]["resumed_at_step"] == 4
    assert second.lines() == []


def test_ranks_of_two_nodes_save_after_one_step_although_one_node_alone_was_told(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    first, second = two_nodes(tmp_path, SLOW)
    nodes = [start(gangs, first), start(gangs, second)]
    nodes[0].until("progress", step=2)
    nodes[1].process.send_signal(signal.SIGUSR1)
    assert [gang.wait() for gang in nodes] == [1, 1], nodes[0].log.read_text()
    step = first.lines("checkpoint")[-1]["step"]
    assert 2 <= step < STEPS
    for part in (first, second):
        said = [(line["reason"], line["message"]) for line in part.lines("error")]
        assert said == [("PAUSED", f"saved the checkpoint of step {step}")]
    assert not first.lines("output")


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_that_go_on_after_a_pause_was_cut_have_not_paused(
    tmp_path: Path, gangs: list[RunningGang], nodes: int
) -> None:
    """They were told in the last step, one died, and the others' pause belongs to that round."""
    parts = two_nodes(tmp_path, LATE) if nodes == 2 else (toy(tmp_path, LATE),)
    assert [gang.wait() for gang in [start(gangs, part) for part in parts]] == [0] * nodes
    assert parts[0].output("dataset").read_json("total-1.json") == TOTAL
    assert [part.lines("error") for part in parts] == [[]] * nodes


@pytest.mark.attack
def test_no_key_is_in_arguments_environment_or_log(
    tmp_path: Path, gangs: list[RunningGang]
) -> None:
    job = toy(tmp_path, SLOW)
    gang = start(gangs, job)
    gang.until("progress", step=1)
    texts = [place["key"].encode() for place in job.orders["outputs"].values()]
    secrets = [*texts, *(base64.b64decode(text) for text in texts)]
    secrets += [base64.b64decode(text).hex().encode() for text in texts]
    family = gang.family()
    assert len(family) >= RANKS + 1
    for pid in family:
        shown = (
            Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        )
        assert not [secret for secret in secrets if secret in shown]
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    assert gang.wait() == 0
    log = gang.log.read_bytes() + job.reports.read_bytes()
    assert not [secret for secret in secrets if secret in log]


def test_an_unknown_kind_is_one_sentence(tmp_path: Path, gangs: list[RunningGang]) -> None:
    job = FakeJob(tmp_path, "quantize", {})
    gang = start(gangs, job)
    assert gang.wait() == 1
    assert job.lines() == [
        {
            "type": "error",
            "reason": "INVALID_INPUT",
            "message": "this node cannot run jobs of kind quantize: update its software",
        }
    ]
