"""A job that is told to save a checkpoint and end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import process_tree
from tests.fakes.agent import Start, first_processes, until
from tests.fakes.control_plane import FakeControlPlane, Session
from tests.fakes.toy_kind import QUIET, SLEEP, SLOW, STEPS
from tests.fakes.toy_order import toy_order


async def until_saved(session: Session) -> tuple[int, rpc.JobEnded]:
    """The step of the newest checkpoint of a job when it has ended, and its end."""
    ended = await session.until("job_ended")
    return session.of("checkpoint")[-1].step, ended


@pytest.mark.parametrize("when", ["at once", "while it works"])
async def test_a_job_that_is_to_save_saves_once_and_ends(
    control: FakeControlPlane, start: Start, tmp_path: Path, when: str
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    session.send(start_job=started)
    if when == "while it works":
        await session.until("job_progress", event="")
    else:
        # Its first process is there, and does not know of any signal yet.
        while not first_processes():
            await session.beats(1)
    (pid,) = first_processes()
    for _ in range(3):
        session.send(stop=rpc.StopWork(work=started.work, grace_seconds=60, save=True))
    step, ended = await until_saved(session)
    assert (ended.succeeded, ended.reason) == (False, "PAUSED")
    assert ended.message == f"saved the checkpoint of step {step}"
    assert step < STEPS
    assert not ended.outputs
    assert process_tree.session(pid) == []
    samples = [each for metric in agent._metrics.ended.collect() for each in metric.samples]
    outcomes = {each.labels["outcome"] for each in samples if each.name.endswith("_total")}
    assert outcomes == {"paused"}


async def asleep(folder: Path) -> None:
    """Wait until a rank sleeps in its step, and looks at nothing."""
    await until(lambda: any((folder / "scratch").rglob("done")))


async def test_a_job_that_does_not_save_in_time_is_ended_all_the_same(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLEEP)
    session.send(start_job=started)
    await asleep(tmp_path)
    (pid,) = first_processes()
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=3000, save=True))
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=1, save=True))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert ended.message == "none was saved within 1 s"
    assert process_tree.session(pid) == []


async def test_the_newest_time_to_save_counts(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLEEP)
    session.send(start_job=started)
    await asleep(tmp_path)
    (entry,) = agent.works._entries.values()

    async def told(grace_seconds: float) -> Any:
        session.send(stop=rpc.StopWork(work=started.work, grace_seconds=grace_seconds, save=True))
        await session.beats(2)
        return entry.saving

    first = await told(60)
    # The order is repeated with what is left of the time.
    assert await told(59) is first
    # A drain that is given more time, or a person who pauses what a drain has told to leave.
    longer = await told(3000)
    assert first.cancelled()
    assert longer.when() > first.when() + 2000
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=0))
    await session.until("job_ended")


async def test_a_job_that_saves_can_still_be_stopped(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLEEP)
    session.send(start_job=started)
    await asleep(tmp_path)
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=3000, save=True))
    session.send(stop=rpc.StopWork(work=started.work, grace_seconds=0))
    ended = await session.until("job_ended")
    assert (ended.reason, ended.message) == (
        "LEASE_LOST",
        "the node was told to stop this work",
    )


async def test_a_job_that_has_not_begun_has_nothing_to_save(
    control: FakeControlPlane, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    session = await control.session()

    async def never(_: object) -> rpc.ReleaseKeysResponse:
        return await asyncio.Future()

    monkeypatch.setattr(agent.works, "release", never)
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await session.beats(2)
    session.send(stop=rpc.StopWork(work=order.work, grace_seconds=300, save=True))
    ended = await session.until("job_ended")
    assert (ended.reason, ended.message) == ("LEASE_LOST", "it had not begun")
