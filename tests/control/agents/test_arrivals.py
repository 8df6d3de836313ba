"""How reports of nodes are taken in together, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.rpc.arrivals import CALM_SECONDS, MOST_BYTES, Arrivals, Report, Turn
from tests.fakes.loop import jumping

CALM = rpc.ReportRequest(job_progress=rpc.JobProgress())
URGENT = rpc.ReportRequest(job_ended=rpc.JobEnded())


class Taken:
    """What was taken in, and when."""

    def __init__(self) -> None:
        self.lots: list[tuple[float, int]] = []

    async def __call__(self, lot: Sequence[Report]) -> None:
        self.lots.append((asyncio.get_running_loop().time(), len(lot)))

    async def all_of(self, turn: Turn, arrivals: Arrivals[rpc.ReportRequest]) -> None:
        while await arrivals.some():
            await turn.take(arrivals, self)


async def flood(reports: Sequence[rpc.ReportRequest], apart: float, streams: int = 1) -> Taken:
    """Each of some streams of one node says all of these."""
    turn, taken = Turn(), Taken()

    async def say(arrivals: Arrivals[rpc.ReportRequest]) -> None:
        for report in reports:
            await arrivals.put(report)
            await asyncio.sleep(apart)
        arrivals.end()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            arrivals = Arrivals[rpc.ReportRequest]()
            tasks.create_task(say(arrivals))
            tasks.create_task(taken.all_of(turn, arrivals))
    return taken


@pytest.mark.attack
@pytest.mark.parametrize("streams", [1, 8])
def test_progress_is_taken_in_once_a_second_however_much_there_is(streams: int) -> None:
    taken = jumping(flood([CALM] * 3000, 0.01, streams))
    assert sum(count for _, count in taken.lots) == 3000 * streams
    # What the ends of the streams hurry along comes on top.
    assert len(taken.lots) <= 30 / CALM_SECONDS + 1 + streams


@pytest.mark.attack
def test_what_is_urgent_is_taken_in_ten_times_a_second_at_most() -> None:
    taken = jumping(flood([CALM, URGENT] * 1000, 0.001))
    assert len(taken.lots) <= 22
    assert sum(count for _, count in taken.lots) == 2000


def test_the_first_and_what_is_urgent_do_not_wait() -> None:
    async def story() -> list[tuple[float, int]]:
        turn, taken, arrivals = Turn(), Taken(), Arrivals[rpc.ReportRequest]()
        task = asyncio.create_task(taken.all_of(turn, arrivals))
        await arrivals.put(CALM)
        await asyncio.sleep(0.5)
        await arrivals.put(CALM)
        await arrivals.put(URGENT)
        await asyncio.sleep(0.25)
        await arrivals.put(CALM)
        await asyncio.sleep(5)
        arrivals.end()
        await task
        return taken.lots

    assert jumping(story()) == [(0.0, 1), (0.5, 2), (1.5, 1)]


@pytest.mark.attack
def test_a_stream_is_not_read_further_than_some_bytes() -> None:
    large = rpc.ReportRequest(job_progress=rpc.JobProgress(event="x" * (MOST_BYTES // 4)))

    async def story() -> int:
        arrivals, put = Arrivals[rpc.ReportRequest](), 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while True:
                    await arrivals.put(large)
                    put += 1
        return put

    assert jumping(story()) == 4
