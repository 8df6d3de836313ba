"""What a leader says about its ranks, and when it lets them start again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.watching import CRASHED, ELSEWHERE, PEER_LOST, GangWatch
from tests.fakes.job_context import FakeJob


class Meeting:
    """Stands in for the rendezvous: what nodes publish can be read."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []

    def publish(self, document: bytes) -> None:
        self.documents = [document]

    def published(self) -> list[bytes]:
        return self.documents


class House:
    """A leader's watch at a clock of its own; every node with one rank."""

    def __init__(self, folder: Path, nodes: int = 1, *, limit: int | None = 60) -> None:
        self.now = 0.0
        self.job = FakeJob(folder, "train", {}, world_size=max(nodes, 2))
        self.meeting = Meeting()
        if nodes > 1:
            self.job.orders |= {"local_ranks": 1, "devices": [0], "node_count": nodes}
            self.job.orders |= {"node": "nodes/a"}
        self.watch = self.leader(limit)

    def leader(self, limit: int | None = 60, **orders: Any) -> GangWatch:
        document = json.dumps(self.job.orders | orders).encode()
        report = Reporter(_descriptor(self.job), 0)
        meeting: Any = self.meeting
        return GangWatch(JobOrders.parse(document), limit, meeting, report, lambda: self.now)

    def forward(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.watch.check_ranks()

    @property
    def said(self) -> list[str]:
        return [line["message"] for line in self.job.lines("waiting")]


def _descriptor(job: FakeJob) -> int:
    return job.context().report._descriptor


def test_who_is_waited_for_is_said_from_a_third_of_the_time_on(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.watch.signs.life(1).mark("step 13")
    house.forward(1)
    house.forward(19)
    assert house.said == []
    house.forward(31)
    assert house.said == [
        f"waits for rank 0 for {seconds} s; all ranks are started again after 60 s"
        for seconds in (20, 30, 40, 50)
    ]
    assert house.watch.cause == ""


def test_a_rank_that_goes_on_takes_it_back(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.forward(25)
    house.watch.signs.life(1).mark("step 13")
    house.forward(19)
    assert house.said[1:] == [""]
    house.forward(3)
    assert len(house.said) == 3
    assert house.watch.cause == ""


def test_a_verdict_names_rank_work_time_and_setting_and_holds_for_the_next_round(
    tmp_path: Path,
) -> None:
    house = House(tmp_path)
    for number in range(2):
        house.watch.signs.life(number).mark("step 13, update")
    house.forward(61)
    pattern = (
        r"rank 0 has hung \(step 13, update\): no rank has gone on since \d{4}-\d\d-\d\d [:0-9]{8} "
        r"UTC, which is longer than stall_seconds \(60\), and its process does not answer"
    )
    cause = house.watch.cause
    assert re.fullmatch(pattern, cause), cause
    assert house.said[-1] == f"{cause}; all ranks are started again"
    assert house.watch.stalled
    # Ranks that were killed for it are no cause of their own.
    house.watch.ended([-9, -9])
    assert house.watch.cause == cause
    house.watch.begin()
    assert (house.watch.before, house.watch.cause) == (cause, "")
    house.forward(19)
    assert house.said[-1].startswith("rank 0 has hung")


def test_a_kind_without_a_limit_is_left_alone(tmp_path: Path) -> None:
    house = House(tmp_path, limit=None)
    house.forward(100_000)
    assert (house.said, house.watch.cause) == ([], "")


def test_the_first_node_watches_the_ranks_of_all_nodes_and_alone_decides(tmp_path: Path) -> None:
    house = House(tmp_path, 2)
    other = house.leader(node="nodes/b", node_rank=1, rank_base=1)
    far, near = other.signs.life(0), house.watch.signs.life(0)
    for step in range(30):
        near.mark("step 2")
        near._slot[8] = step  # a beat
        house.now += 1
        if step == 0:
            far.mark("step 2")
        other.check_ranks()
        house.watch.check_ranks()
    assert house.said == []
    for step in range(30, 51):
        near._slot[8] = step
        house.now += 1
        other.check_ranks()
        house.watch.check_ranks()
    assert house.said == [
        "waits for rank 1 on nodes/b (step 2) for 20 s; all ranks are started again after 60 s"
    ]
    assert (other.cause, house.watch.cause) == ("", "")


@pytest.mark.attack
@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"node": "nodes/b", "signs": [[1, 2, 3, 9, "a"]]}',
        b'{"node": "nodes/b", "signs": [[1, 2]]}',
        b'{"node": "nodes/b", "signs": [[0, 99, 99, 2, "of a rank that is not there"]]}',
        b'{"node": "nodes/b", "signs": [[2, 99, 99, 2, ""], [-1, 99, 99, 2, ""]]}',
        b'{"node": "nodes/b\\nnodes/c: gone", "signs": [[1, 99, 99, 2, ""]]}',
        json.dumps({"node": "nodes/b", "signs": [[1, 99, 99, 2, "x" * 300]]}).encode(),
    ],
)
def test_what_no_leader_writes_about_ranks_elsewhere_counts_for_nothing(
    tmp_path: Path, document: bytes
) -> None:
    house = House(tmp_path, 2)
    house.meeting.documents = [document]
    house.forward(31)
    assert house.said == [
        f"waits for rank 0 on nodes/a for {seconds} s; all ranks are started again after 60 s"
        for seconds in (20, 30)
    ]


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([PEER_LOST, -9], "a rank was killed by SIGKILL"),
        ([PEER_LOST, CRASHED], "a rank crashed"),
        ([PEER_LOST, PEER_LOST], "a rank lost its connection to another"),
        ([17], "a rank crashed"),
        ([-40], "a rank was killed by signal 40"),
    ],
)
def test_what_came_first_is_the_cause_and_not_what_followed(
    tmp_path: Path, codes: list[int], cause: str
) -> None:
    watch = House(tmp_path).watch
    watch.ended([])
    assert watch.cause == ""
    watch.ended(codes)
    assert (watch.cause, watch.stalled) == (cause, False)
    watch.begin()
    watch.begin()
    assert (watch.before, watch.cause) == (ELSEWHERE, "")
