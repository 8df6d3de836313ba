"""Work on a node: started, stopped and replaced by order, in real processes."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import process_tree
from appliance.core.thinning import MAX_POINTS
from appliance.node.agent import NEWS_SECONDS, REPORT_SECONDS
from appliance.node.documents import NodeEnvironment
from appliance.node.metrics import NodeMetrics
from appliance.node.reports import JobReports
from appliance.node.works import Works, _Work
from tests.fakes.agent import COMMANDS, Start, first_processes, serve
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.toy_kind import QUIET, SLOW, STEPS
from tests.fakes.toy_order import toy_order


async def test_a_job_runs_to_its_end(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    hello = await session.until("hello")
    assert (hello.devices, hello.device_kind, list(hello.running)) == (2, "cpu", [])
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason, ended.message) == (True, "", "")
    assert [(output.slot, output.facts) for output in ended.outputs] == [
        ("dataset", '{"total": 108}')
    ]
    assert len(ended.outputs[0].manifest_digest) == 64
    assert dict(ended.result.values) == {"total": 108}
    assert dict(ended.result.dropped) == {"short": 2}
    progress = session.of("job_progress")
    assert [m.step for p in progress for m in p.measured] == list(range(1, STEPS + 1))
    assert progress[-1].progress.step == STEPS
    assert [p.event for p in progress if p.event] == ["started"]
    assert [c.step for c in session.of("checkpoint")] == [2, 4, 6, 8]
    log = tmp_path / "runs" / f"{'0a' * 16}.1" / "log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert list((tmp_path / "scratch").iterdir()) == []


def shown_of(pid: int) -> tuple[bytes, bytes]:
    """Environment and arguments of a process."""
    folder = Path(f"/proc/{pid}")
    return (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()


@pytest.mark.attack
async def test_no_key_is_in_any_process_of_the_work(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, SLOW))
    await session.until("job_progress", event="")
    (first,) = first_processes()
    family = process_tree.session(first)
    assert len(family) == 3
    keys = [key.key for key in control.keys["0a" * 16].outputs]
    secrets = [*keys, *map(base64.b64encode, keys), *(key.hex().encode() for key in keys)]
    secrets.append(agent.identity.key_pem.splitlines()[1])
    for pid in family:
        environment, arguments = shown_of(pid)
        shown = environment + arguments
        assert not [secret for secret in secrets if secret in shown]
        assert b"PYTEST" not in environment


async def test_a_stopped_job_ends_and_nothing_is_left(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    session.send(start_job=started)
    await session.until("job_progress", event="")
    (pid,) = first_processes()
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=20))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert process_tree.session(pid) == []


async def test_an_order_of_an_older_epoch_is_ignored_and_a_newer_one_replaces(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path / "a", SLOW, epoch=2))
    await session.until("job_progress", event="")
    (pid,) = first_processes()
    session.send(start_job=toy_order(control, tmp_path / "b", SLOW, epoch=1))
    session.send(start_job=toy_order(control, tmp_path / "c", QUIET, epoch=3))
    ended = await session.until("job_ended")
    assert ended.work.epoch == 3
    assert process_tree.session(pid) == []
    assert [asked.work.epoch for asked in control.asked] == [2, 3]


async def test_a_process_that_cannot_be_ended_delays_what_needs_its_place_and_nothing_else(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path / "a", SLOW))
    await session.until("job_progress", event="")
    (entry,) = agent.works._entries.values()
    # As one in an uninterruptible sleep: signals change nothing.
    monkeypatch.setattr(entry.running, "stop", lambda _: None)
    session.send(start_job=toy_order(control, tmp_path / "b", QUIET, epoch=2))
    session.send(start_replica=serve(control))
    assert (await session.until("replica_changed")).ready
    await session.beats(1)
    running = {(work.work, work.epoch) for work in session.of("heartbeat")[-1].running}
    assert {epoch for work, epoch in running if work == "0a" * 16} == {1, 2}
    assert [asked.work.work for asked in control.asked] == ["0a" * 16, "0b" * 16 + "/0"]
    # The older one ends after all, and the newer one has its place.
    os.killpg(entry.running.pid, signal.SIGKILL)
    assert (await session.until("job_ended")).work.epoch == 2


async def test_a_start_that_is_called_off_while_it_waits_for_keys_is_over_at_once(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()

    async def never(_: object) -> rpc.ReleaseKeysResponse:
        return await asyncio.Future()

    monkeypatch.setattr(agent.works, "release", never)
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await session.beats(3)
    session.send(stop=rpc.StopWork(work=order.work, grace_seconds=30))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    await session.beats(2)
    assert not session.of("heartbeat")[-1].running


async def test_a_start_that_is_called_off_twice_is_over_when_nothing_of_it_is_left(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order to stop is repeated; meanwhile a slow disk makes the folders of the work."""
    agent = await start()
    session = await control.session()
    reached, goes_on = threading.Event(), threading.Event()
    prepare = agent.works.launcher._prepare

    def slow(*of: Any) -> Any:
        reached.set()
        goes_on.wait(30)
        return prepare(*of)

    monkeypatch.setattr(agent.works.launcher, "_prepare", slow)
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await asyncio.to_thread(reached.wait, 30)
    for _ in range(3):
        session.send(stop=rpc.StopWork(work=order.work, grace_seconds=30))
        await session.beats(2)
    assert session.of("heartbeat")[-1].running
    goes_on.set()
    await session.until("job_ended")
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_work_that_asks_for_keys_when_the_connection_ends_asks_again(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    control.releases.clear()
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    while not control.asked:
        await session.beats(1)
    session.close()
    again = await control.session()
    control.releases.set()
    ended = await again.until("job_ended")
    assert (ended.succeeded, ended.reason) == (True, "")
    assert len(control.asked) == 2


async def test_work_that_is_not_leased_is_not_started(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    refused = toy_order(control, tmp_path, QUIET)
    control.keys.clear()
    session.send(start_job=refused)
    await session.beats(10)
    assert len(control.asked) == 1
    assert session.of("job_ended") == []
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.attack
async def test_a_work_cannot_name_a_folder_elsewhere(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    bad = toy_order(control, tmp_path, QUIET)
    control.keys["../../x"] = control.keys["0a" * 16]
    bad.work.work = "../../x"
    session.send(start_job=bad)
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "INVALID_INPUT")


async def test_a_replica_says_when_it_is_ready_and_that_it_has_ended(
    control: FakeControlPlane, start: Start
) -> None:
    await start()
    session = await control.session()
    session.send(start_replica=serve(control))
    ready = await session.until("replica_changed")
    assert (ready.ready, ready.ended, ready.address) == (True, False, "127.0.0.1:4242")
    assert control.asked[0].certificate_request.startswith("-----BEGIN CERTIFICATE REQUEST")
    session.close()
    again = await control.session()
    assert (await again.until("replica_changed")).ready
    (pid,) = first_processes()
    os.kill(pid, signal.SIGKILL)
    ended = await again.until("replica_changed", ended=True)
    assert ended.message == (
        "the replica ended: its process was killed by SIGKILL, as the kernel does when memory runs"
        " out; its log on the node says more"
    )


async def test_a_replica_that_cannot_start_says_why(
    control: FakeControlPlane, start: Start
) -> None:
    await start()
    session = await control.session()
    session.send(start_replica=serve(control, length=13))
    ended = await session.until("replica_changed")
    assert (ended.ready, ended.ended, ended.message) == (False, True, "no room")


async def test_keys_are_asked_for_again_when_the_control_plane_says(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    """Each question is two records of the audit log."""
    await start()
    session = await control.session()
    control.waits_for_store = True
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    await session.beats(15)
    assert len(control.asked) == 1


class Told:
    """Works whose one job has measured, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.works = Works(
            None,  # type: ignore[arg-type]  # nothing is started
            COMMANDS,
            NodeEnvironment("file:///objects", "127.0.0.1", "cpu", Path("/nowhere")),
            None,  # type: ignore[arg-type]  # nobody asks for keys
            None,  # type: ignore[arg-type]
            NodeMetrics(CollectorRegistry()),
            NEWS_SECONDS,
            lambda: self.now,
        )
        self.reports = JobReports(rpc.WorkEpoch(work="ab", epoch=1))
        self.works._entries["ab", 1] = _Work(("ab", 1), self.reports, 0)
        self.said: list[rpc.ReportRequest] = []

    def train(self, first: int, steps: int) -> None:
        for step in range(first, first + steps):
            line = {"type": "progress", "step": step, "total": 0, "metrics": {"loss": 1.0}}
            self.reports.take(line)

    def wait(self, seconds: float, *, answers: bool) -> None:
        for _ in range(int(seconds / REPORT_SECONDS)):
            self.now += REPORT_SECONDS
            said = self.works.drain()
            self.said += said
            if answers and said:
                self.works.outbox.acknowledge(said[-1].number)

    def measured(self) -> list[int]:
        return [m.step for each in self.said for m in each.job_progress.measured]


def test_a_backlog_goes_in_bounded_reports_one_at_a_time() -> None:
    told = Told()
    told.train(1, 100)
    told.wait(10, answers=False)
    # The control plane is away: nothing more is sent before it has answered that.
    assert len(told.said) == 1
    for first in range(101, 600_000, 1000):
        told.train(first, 1000)
        told.wait(1, answers=False)
    assert len(told.said) == 1
    told.works.outbox.acknowledge(1)
    told.said.clear()
    told.wait(9, answers=True)
    assert len(told.said) <= 9
    assert max(each.ByteSize() for each in told.said) < 64 << 10
    steps = told.measured()
    assert MAX_POINTS // 2 < len(steps) <= MAX_POINTS
    assert (steps[0], steps[-1]) == (101, 600_100)


def test_a_job_that_is_fast_is_reported_once_a_second() -> None:
    told = Told()
    for first in range(1, 10_001, 50):
        told.train(first, 50)
        told.wait(REPORT_SECONDS, answers=True)
    assert 50 <= len(told.said) <= 51
    assert told.measured() == list(range(1, told.measured()[-1] + 1))
