"""How reports of nodes are taken in together, and when."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from appliance.control.rpc.arrivals import (
    CALM_SECONDS,
    MAX_BYTES,
    MAX_STEPS,
    MAX_URGENT,
    Arrivals,
    Report,
    ReportTurn,
)
from tests.fakes.loop import jumping

CALM = rpc.ReportRequest(job_progress=rpc.JobProgress())
URGENT = rpc.ReportRequest(job_ended=rpc.JobEnded())


class Taken:
    """What was taken in, and when."""

    def __init__(self) -> None:
        self.lots: list[tuple[float, int]] = []

    async def __call__(self, lot: Sequence[Report]) -> None:
        self.lots.append((asyncio.get_running_loop().time(), len(lot)))

    async def all_of(self, turn: ReportTurn, arrivals: Arrivals[rpc.ReportRequest]) -> None:
        while await arrivals.some():
            await turn.take(arrivals, self)


async def flood(reports: Sequence[rpc.ReportRequest], apart: float, streams: int = 1) -> Taken:
    """Each of some streams of one node says all of these."""
    turn, taken = ReportTurn(), Taken()

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
    taken = jumping(flood([CALM, URGENT] * 1000, 0.005))
    assert len(taken.lots) <= 110
    assert sum(count for _, count in taken.lots) == 2000


@pytest.mark.attack
def test_of_very_much_that_is_urgent_some_is_taken_in_at_a_time() -> None:
    taken = jumping(flood([CALM, URGENT] * 1000, 0))
    assert max(count for _, count in taken.lots) <= 2 * MAX_URGENT + 1
    assert sum(count for _, count in taken.lots) == 2000
    times = [time for time, _ in taken.lots]
    assert min(after - time for time, after in itertools.pairwise(times)) > 0.099


@pytest.mark.attack
def test_of_very_many_steps_some_are_taken_in_at_a_time() -> None:
    steps = [job_pb2.JobMetric(step=step) for step in range(256)]
    report = rpc.ReportRequest(job_progress=rpc.JobProgress(measured=steps))
    taken = jumping(flood([report] * 500, 0))
    assert max(count for _, count in taken.lots) == MAX_STEPS // 256
    assert sum(count for _, count in taken.lots) == 500


@pytest.mark.attack
@pytest.mark.parametrize("report", [CALM, URGENT])
def test_work_that_takes_long_is_followed_by_a_pause_as_long(report: rpc.ReportRequest) -> None:
    spans: list[tuple[float, float]] = []

    async def slow(lot: Sequence[Report]) -> None:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3)
        spans.append((began, asyncio.get_running_loop().time()))

    async def story() -> None:
        turn, arrivals = ReportTurn(), Arrivals[rpc.ReportRequest]()
        for _ in range(3):
            await arrivals.put(report)
            await turn.take(arrivals, slow)

    jumping(story())
    assert len(spans) == 3
    assert all(after[0] - span[1] >= 3 for span, after in itertools.pairwise(spans))


def test_what_is_urgent_does_not_wait_for_what_is_not_on_another_stream() -> None:
    async def story() -> list[tuple[float, int]]:
        turn, taken = ReportTurn(), Taken()
        calm, urgent = Arrivals[rpc.ReportRequest](), Arrivals[rpc.ReportRequest]()
        tasks = [asyncio.create_task(taken.all_of(turn, each)) for each in (calm, urgent)]
        await calm.put(CALM)
        await asyncio.sleep(0.25)
        await calm.put(CALM)
        await asyncio.sleep(0.25)
        await urgent.put(URGENT)
        await asyncio.sleep(5)
        for each in (calm, urgent):
            each.end()
        await asyncio.gather(*tasks)
        return taken.lots

    assert jumping(story()) == [(0.0, 1), (0.5, 1), (1.5, 1)]


def test_the_first_and_what_is_urgent_do_not_wait() -> None:
    async def story() -> list[tuple[float, int]]:
        turn, taken, arrivals = ReportTurn(), Taken(), Arrivals[rpc.ReportRequest]()
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
    large = rpc.ReportRequest(job_progress=rpc.JobProgress(event="x" * (MAX_BYTES // 4)))

    async def story() -> int:
        arrivals, put = Arrivals[rpc.ReportRequest](), 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while True:
                    await arrivals.put(large)
                    put += 1
        return put

    assert jumping(story()) == 4
