"""Lines of ranks on their way from nodes to readers: bounded, shared, and honest about gaps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_log_pb2, job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.control.services.fleet.log_feeds import FEED_BYTES, MAX_FEEDS, Part
from appliance.control.services.work.live_logs import MAX_READERS_OF_CALLER, OVER_SECONDS
from appliance.core.errors import Exhausted, InvalidInput, NotFound
from tests.fakes.lab import ALICE, PROJECT, FakeAgent, Lab

JOB = f"projects/{PROJECT}/jobs/t1"
Kind = job_log_pb2.JobLogNotice
SendLog = agent.SendLogRequest
CAUGHT_UP, ENDED, NOT_KEPT = SendLog.STATE_CAUGHT_UP, SendLog.STATE_ENDED, SendLog.STATE_NOT_KEPT


class Reader:
    """One reader of the job `t1`, in a task of its own."""

    def __init__(self, lab: Lab, **request: Any) -> None:
        self.lines: list[job_log_pb2.JobLogLine] = []
        self.notices: list[job_log_pb2.JobLogNotice] = []
        self._changed = asyncio.Condition()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        answers = lab.live.read(rpc.ReadJobLogsRequest(name=JOB, **request), look)
        self.task = asyncio.create_task(self._read(answers))

    async def _read(self, answers: AsyncIterator[rpc.ReadJobLogsResponse]) -> None:
        async for answer in answers:
            await self.goes_on.wait()
            async with self._changed:
                self.lines += answer.lines
                if answer.HasField("notice"):
                    self.notices.append(answer.notice)
                self._changed.notify_all()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(condition)

    async def texts(self, count: int) -> list[str]:
        """The texts of the lines, when there are so many."""
        await self.until(lambda: len(self.lines) >= count)
        return [line.text for line in self.lines]

    async def noted(self, kind: Kind.Kind) -> job_log_pb2.JobLogNotice:
        await self.until(lambda: any(notice.kind == kind for notice in self.notices))
        return next(notice for notice in self.notices if notice.kind == kind)

    async def end(self) -> list[str]:
        async with asyncio.timeout(20):
            await self.task
        return [line.text for line in self.lines]

    async def leave(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def look(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def asked(node: FakeAgent, count: int = 1) -> agent.ReadLog:
    """The newest order to send lines, when so many have come."""
    async with asyncio.timeout(20):
        while len(node.reads) < count:
            await node.take()
            await asyncio.sleep(0.01)
    return node.reads[-1]


def lines(*texts: str, first: int = 1, rank: int | None = 0) -> list[agent.LogLine]:
    return [
        agent.LogLine(number=first + place, rank=rank, text=text)
        for place, text in enumerate(texts)
    ]


class Sending:
    """A stream of a node that fills what was asked for."""

    def __init__(self, lab: Lab, node: FakeAgent, read: str) -> None:
        self._context = lab.work.feeds.receiving(node.node, read)
        found = self._context.__enter__()
        assert found is not None
        self.feed, self.over = found

    def send(self, *said: agent.LogLine, state: int = CAUGHT_UP) -> None:
        self.feed.take(SendLog(lines=said, state=state))  # type: ignore[arg-type]  # an enum's number

    def close(self) -> None:
        self._context.__exit__(None, None, None)


async def test_a_reader_gets_what_is_there_then_what_comes_and_the_end(lab: Lab) -> None:
    node, work = await lab.started()
    reader = Reader(lab, follow=True)
    order = await asked(node)
    assert (order.work, order.after, order.max_bytes) == (work, 0, FEED_BYTES)
    sending = Sending(lab, node, order.read)
    sending.send(*lines("one", "two"))
    assert await reader.texts(2) == ["one", "two"]
    sending.send(*lines("of the leader", first=3, rank=None), state=CAUGHT_UP)
    assert await reader.texts(3) == ["one", "two", "of the leader"]
    line, last = reader.lines[0], reader.lines[2]
    assert (line.node, line.epoch, line.number, line.rank) == ("nodes/n1", 1, 1, 0)
    assert not last.HasField("rank")
    assert (reader.notices[0].kind, reader.notices[0].ranks) == (Kind.KIND_START, 1)
    node.fail(work, "INTERNAL")
    sending.send(*lines("the last", first=4), state=ENDED)
    assert (await reader.end())[-1] == "the last"
    assert sending.over.is_set()


async def test_readers_share_one_stream_which_ends_with_the_last_of_them(lab: Lab) -> None:
    node, _ = await lab.started()
    first = Reader(lab, follow=True)
    sending = Sending(lab, node, (await asked(node)).read)
    sending.send(*lines("one", "two", "three"))
    await first.texts(3)
    second = Reader(lab, follow=True, tail_lines=1)
    assert await second.texts(1) == ["three"]
    await node.take()
    assert len(node.reads) == 1
    await first.leave()
    assert not sending.over.is_set()
    await second.leave()
    assert sending.over.is_set()


async def test_who_does_not_follow_gets_what_is_there(lab: Lab) -> None:
    node, _ = await lab.started()
    reader = Reader(lab, tail_lines=2)
    sending = Sending(lab, node, (await asked(node)).read)
    sending.send(*lines("one", "two", "three"))
    assert await reader.end() == ["two", "three"]
    assert [notice.kind for notice in reader.notices] == [Kind.KIND_START]


async def test_lines_of_some_ranks_come_from_their_nodes_alone(lab: Lab) -> None:
    nodes = [await lab.connected(f"n{number}", devices=2) for number in range(2)]
    lab.train("t1", mesh=job_pb2.Mesh(data=4))
    lab.look()
    for node in nodes:
        await node.take()
    reader = Reader(lab, ranks=[3])
    sending = Sending(lab, nodes[1], (await asked(nodes[1])).read)
    sending.send(
        *lines("no", rank=2), *lines("yes", first=2, rank=3), *lines("x", first=3, rank=None)
    )
    assert await reader.end() == ["yes"]
    await nodes[0].take()
    assert nodes[0].reads == []


async def test_a_slow_reader_misses_lines_hears_it_and_delays_nobody(lab: Lab) -> None:
    node, _ = await lab.started()
    slow, fast = Reader(lab, follow=True), Reader(lab, follow=True)
    slow.goes_on.clear()
    sending = Sending(lab, node, (await asked(node)).read)
    text = "x" * 1000
    for turn in range(20):
        sending.send(*lines(*([text] * 100), first=1 + 100 * turn))
        await fast.texts(100 * (turn + 1))
    assert sum(len(line.text) for line in sending.feed.lines) <= FEED_BYTES
    slow.goes_on.set()
    notice = await slow.noted(Kind.KIND_LEFT_OUT)
    await slow.until(lambda: slow.lines and slow.lines[-1].number == 2000)
    assert notice.lines == 2000 - len(slow.lines) > 1000
    assert all(each.kind != Kind.KIND_LEFT_OUT for each in fast.notices)
    await slow.leave()
    await fast.leave()


async def test_a_node_that_was_away_goes_on_where_it_was(lab: Lab) -> None:
    node, _ = await lab.started()
    reader = Reader(lab, follow=True)
    sending = Sending(lab, node, (await asked(node)).read)
    sending.send(*lines("one", "two"))
    await reader.texts(2)
    sending.close()
    node.disconnect()
    assert (await reader.noted(Kind.KIND_NODE_AWAY)).node == "nodes/n1"
    await node.connect()
    order = await asked(node, 2)
    assert order.after == 2
    Sending(lab, node, order.read).send(*lines("three", first=3))
    assert await reader.texts(3) == ["one", "two", "three"]
    await reader.leave()


async def test_an_agent_of_an_older_release_is_said_to_be_too_old(lab: Lab) -> None:
    node, _ = await lab.started()
    node.hello.sends_logs = False
    node.disconnect()
    await node.connect()
    reader = Reader(lab, follow=True)
    assert "update the node" in (await reader.noted(Kind.KIND_AGENT_TOO_OLD)).text
    await node.take()
    assert node.reads == []
    await reader.leave()


async def test_who_does_not_follow_waits_for_no_node_that_is_away(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "INTERNAL")
    node.disconnect()
    reader = Reader(lab)
    assert await reader.end() == []
    assert reader.notices[-1].kind == Kind.KIND_NODE_AWAY


async def test_a_node_that_keeps_nothing_says_so(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "INTERNAL")
    reader = Reader(lab, follow=True)
    Sending(lab, node, (await asked(node)).read).send(state=NOT_KEPT)
    assert await reader.end() == []
    assert reader.notices[-1].kind == Kind.KIND_NOT_KEPT


async def test_a_job_that_no_node_has_started_says_so(lab: Lab) -> None:
    (await lab.connected("n1")).disconnect()
    lab.train("t1")
    reader = Reader(lab)
    assert await reader.end() == []
    assert [notice.kind for notice in reader.notices] == [Kind.KIND_NO_START]


async def test_following_goes_on_over_starts(lab: Lab) -> None:
    node, work = await lab.started()
    reader = Reader(lab, follow=True)
    sending = Sending(lab, node, (await asked(node)).read)
    sending.send(*lines("first start"))
    await reader.texts(1)
    node.fail(work, "LEASE_LOST")
    sending.send(state=ENDED)
    lab.look()
    await node.take()
    order = await asked(node, 2)
    assert order.work.epoch == 2
    again = Sending(lab, node, order.read)
    again.send(*lines("second start"))
    assert await reader.texts(2) == ["first start", "second start"]
    assert [each.epoch for each in reader.lines] == [1, 2]
    await reader.leave()
    # One that was cut off goes on in the start, and at the line, where it was.
    place = job_log_pb2.JobLogPosition(node="nodes/n1", epoch=1, number=0)
    cut = Reader(lab, after=[place])
    first = await asked(node, 3)
    assert first.work.epoch == 1
    await cut.leave()


async def test_a_start_that_is_over_is_not_waited_for_for_ever(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "INTERNAL")
    reader = Reader(lab, follow=True)
    Sending(lab, node, (await asked(node)).read).send(*lines("one"))
    await reader.texts(1)
    lab.forward(OVER_SECONDS + 1)
    assert await reader.end() == ["one"]


@pytest.mark.attack
async def test_a_node_fills_only_what_it_was_asked_for_with_its_own_ranks(lab: Lab) -> None:
    node, _ = await lab.started()
    reader = Reader(lab, follow=True)
    order = await asked(node)
    for stranger, read in (("n2", order.read), ("n1", "0" * 32), ("n1", "")):
        with lab.work.feeds.receiving(stranger, read) as found:
            assert found is None
    sending = Sending(lab, node, order.read)
    with lab.work.feeds.receiving("n1", order.read) as second:
        assert second is None
    odd = [
        agent.LogLine(number=5, text="x", create_time=Timestamp(seconds=seconds, nanos=nanos))
        for seconds, nanos in ((-1, 0), (1 << 40, 0), (1, -1), (1, 1_000_000_000))
    ]
    for wrong in (
        lines("x", rank=1),
        lines("x", first=0),
        lines("x") * 2,
        *([each] for each in odd),
    ):
        with pytest.raises(InvalidInput):
            sending.send(*wrong)
    # A state that only a newer agent knows is no end.
    sending.send(state=99)
    assert reader.task.done() is False
    await reader.leave()


@pytest.mark.attack
async def test_what_a_node_sends_is_bounded_in_bytes_whatever_it_is(lab: Lab) -> None:
    node, _ = await lab.started()
    reader = Reader(lab, follow=True)
    sending = Sending(lab, node, (await asked(node)).read)

    def held() -> int:
        return sum(line.ByteSize() for line in sending.feed.lines)

    sending.send(*lines("x" * (3 << 20)))
    assert held() <= FEED_BYTES
    for turn in range(40):
        sending.send(*lines(*["\N{SNOWMAN}" * 1000] * 20, first=2 + 20 * turn))
    assert held() <= FEED_BYTES
    await reader.until(lambda: reader.lines and reader.lines[-1].number == 801)
    await reader.leave()


@pytest.mark.attack
async def test_readers_and_what_they_read_are_bounded(lab: Lab) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(MAX_READERS_OF_CALLER):
            held.enter_context(lab.live.seat("users/alice"))
        with pytest.raises(Exhausted), lab.live.seat("users/alice"):
            pass
        held.enter_context(lab.live.seat("users/bob"))
    parts = [Part("w", 1, f"n{number}", number, 1) for number in range(MAX_FEEDS + 1)]
    wake = asyncio.Event()
    with lab.work.feeds.reading(parts[1:], wake):
        with pytest.raises(Exhausted), lab.work.feeds.reading(parts[:1], wake):
            pass
        with lab.work.feeds.reading(parts[1:], asyncio.Event()) as again:
            assert len(again) == MAX_FEEDS
    with lab.work.feeds.reading(parts[:1], wake):
        pass


@pytest.mark.parametrize(
    "wrong",
    [{"ranks": [-1]}, {"epoch": -1}, {"epoch": 7}, {"tail_lines": -1}, {"ranks": [0] * 5000}],
)
async def test_numbers_that_cannot_be_are_refused(lab: Lab, wrong: dict[str, Any]) -> None:
    await lab.started()
    with pytest.raises(InvalidInput):
        await Reader(lab, **wrong).task


async def test_a_job_that_is_not_there_is_not_found(lab: Lab) -> None:
    with pytest.raises(NotFound):
        await Reader(lab).task


async def test_a_deleted_job_ends_its_readers(lab: Lab) -> None:
    node, work = await lab.started()
    reader = Reader(lab, follow=True)
    sending = Sending(lab, node, (await asked(node)).read)
    node.fail(work, "INTERNAL")
    lab.edits.delete(ALICE, rpc.DeleteJobRequest(name=JOB))
    sending.send(state=ENDED)
    with pytest.raises(NotFound):
        await reader.task
