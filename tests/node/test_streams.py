"""What an agent says and hears on its two streams, and what it says again."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.nodes.v1 import node_pb2
from appliance.core import process_tree
from appliance.node.agent import Agent
from appliance.node.logs import LAST_BYTES
from appliance.wire.accepted import AcceptedFile, AcceptedSerials
from tests.fakes.agent import Said, Start, first_processes, serve, until
from tests.fakes.control_plane import FakeControlPlane, Session
from tests.fakes.toy_kind import FULL, QUIET, SLOW, STEPS, TEXT
from tests.fakes.toy_order import toy_order


def measured(session: Session) -> list[int]:
    """The steps of all reports, as they came."""
    return [metric.step for each in session.of("job_progress") for metric in each.measured]


@pytest.mark.parametrize("reader", ["_read_heard", "_read_all"])
async def test_a_read_that_grpc_cancels_ends_a_stream_and_not_the_agent(
    control: FakeControlPlane,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
) -> None:
    read, cancelled = getattr(Agent, reader), []

    async def cancels(agent: Agent, call: object) -> None:
        if not cancelled:
            cancelled.append(call)
            raise asyncio.CancelledError
        await read(agent, call)

    monkeypatch.setattr(Agent, reader, cancels)
    await start()
    session = await control.session()
    if reader == "_read_all":
        session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    assert (await session.until("job_ended")).succeeded


@pytest.mark.attack
async def test_the_last_output_of_a_failed_job_is_said_until_it_was_taken_and_shows_no_key(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    control.answering = False
    await start()
    session = await control.session()
    session.send(start_job=toy_order(control, tmp_path, FULL))
    ended = await session.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "RESOURCE_EXHAUSTED")
    assert "rank 1 crashed" in ended.log
    assert TEXT in ended.log
    assert TEXT not in ended.message
    assert len(ended.log.encode()) <= LAST_BYTES
    # The rank wrote a key of its orders in four ways, one of them within a line of JSON.
    assert ended.log.count("[redacted]") == 4
    keys = [key.key for key in control.keys["0a" * 16].outputs]
    written = ended.log.replace("\\\\", "\\")
    for key in keys:
        for form in (repr(key)[2:-1], key.hex(), base64.b64encode(key).decode()):
            assert form not in written
    session.close()
    again = await (await control.session()).until("job_ended")
    assert again == ended


async def test_nothing_ends_because_nobody_answers(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    session = await control.session()
    started = toy_order(control, tmp_path, SLOW)
    control.leases.clear()
    session.send(start_job=started)
    await session.until("job_progress", event="")
    # The control plane names no work any more, then is gone; an hour would be the same.
    await session.beats(5)
    session.close()
    again = await control.session()
    (pid,) = first_processes()
    assert len(process_tree.session(pid)) == 3
    again.send(stop=rpc.StopWork(work=started.work, grace_seconds=0))
    ended = await again.until("job_ended")
    assert (ended.succeeded, ended.reason) == (False, "LEASE_LOST")
    assert process_tree.session(pid) == []


async def test_work_goes_on_while_the_control_plane_is_away(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    await start()
    control.answering = False
    first = await control.session()
    order = toy_order(control, tmp_path, SLOW)
    first.send(start_job=order)
    await first.until("job_progress", event="")
    first.close()
    second = await control.session()
    hello = await second.until("hello")
    assert [(work.work, work.epoch) for work in hello.running] == [("0a" * 16, 1)]
    ended = await second.until("job_ended")
    assert ended.succeeded
    # Said again, because nobody has answered it; the work counts as held until then.
    second.close()
    third = await control.session()
    assert [work.epoch for work in (await third.until("hello")).running] == [1]
    control.answering = True
    assert (await third.until("job_ended")).succeeded
    await third.beats(5)
    assert not third.of("heartbeat")[-1].running
    third.close()
    fourth = await control.session()
    await fourth.beats(3)
    assert fourth.of("job_ended") == []
    # An order that comes late starts nothing again.
    fourth.send(start_job=order)
    await fourth.beats(3)
    assert len(control.asked) == 1


@pytest.mark.parametrize("heard", [False, True])
async def test_what_a_stream_took_along_is_said_again_and_what_was_heard_is_not(
    control: FakeControlPlane, start: Start, tmp_path: Path, *, heard: bool
) -> None:
    await start()
    first = await control.session()
    order = toy_order(control, tmp_path, SLOW)
    control.answering = heard
    first.send(start_job=order)
    await first.until("job_progress", event="")
    if heard:
        await first.beats(3)
    first.close()
    second = await control.session()
    control.answering = True
    await second.until("job_ended")
    # Counted at the end: what the first stream brought while it was closed was also answered.
    before, after = measured(first), measured(second)
    assert sorted(set(before + after)) == list(range(1, STEPS + 1))
    assert after == sorted(after)
    assert (1 in after) is not heard


async def test_heartbeats_and_orders_wait_for_no_report(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    control.taking.clear()
    order = toy_order(control, tmp_path, QUIET)
    session.send(start_job=order)
    await until(lambda: bool(agent.works.outbox.unacknowledged_ends()))
    # It has ended, and nobody has taken that in: the node does not say that it runs nothing.
    await session.beats(5)
    assert list(session.of("heartbeat")[-1].running) == [order.work]
    session.send(start_replica=serve(control))
    await until(lambda: len(control.asked) == 2)
    control.taking.set()
    assert (await session.until("job_ended")).succeeded
    assert (await session.until("replica_changed")).ready
    await session.beats(3)
    assert [work.work for work in session.of("heartbeat")[-1].running] == ["0b" * 16 + "/0"]


async def test_a_stream_of_reports_that_breaks_is_opened_again_beside_the_other(
    control: FakeControlPlane, start: Start, tmp_path: Path, said: Said
) -> None:
    await start()
    session = await control.session()
    control.breaks = True
    session.send(start_job=toy_order(control, tmp_path, QUIET))
    # Not always why: gRPC puts the failure of the next message in the place of the status.
    await said.until("reports do not reach the control plane")
    await session.beats(3)
    control.breaks = False
    assert (await session.until("job_ended")).succeeded
    assert sorted(set(measured(session))) == list(range(1, STEPS + 1))
    assert control.sessions.empty()


async def test_what_it_can_run_is_said_in_the_hello_and_again_when_it_is_news(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    first = await control.session()
    first.send(start_job=toy_order(control, tmp_path, SLOW))
    await first.until("job_progress", event="")
    (hello,) = first.of("hello")
    assert list(hello.capabilities) == []
    lacks = [node_pb2.Capability(kind="train", reason="torch is not installed")]
    agent.announce(lacks)
    second = await control.session()
    (hello,) = [await second.until("hello")]
    assert list(hello.capabilities) == lacks
    # Work goes on meanwhile.
    assert [work.epoch for work in hello.running] == [1]
    agent.announce(lacks)
    await second.beats(3)
    assert control.sessions.empty()


async def test_which_gateways_count_is_kept_for_the_workers(
    control: FakeControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await start()
    session = await control.session()
    await session.beats(2)
    file = AcceptedFile(agent.works.place.gateways)
    # A control plane of 0.1.0 does not say it.
    assert not file.path.exists()
    for serials in (["a"], ["a", "b"]):
        control.gateways = rpc.GatewayCertificates(serials=serials)
        control.gateways.as_of.GetCurrentTime()
        await until(lambda: file.path.exists() and _named(file) == serials)  # noqa: B023
    session.send(start_replica=serve(control))
    await session.until("replica_changed", ready=True)
    assert _named(file) == ["a", "b"]


def _named(file: AcceptedFile) -> list[str]:
    return sorted(AcceptedSerials.parse(file.path.read_bytes()).serials)
