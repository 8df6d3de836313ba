"""Reports of what became of calls: by the call, by the count, in order, and never without room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable, Unavailable
from appliance.gateway import usage
from appliance.gateway.spool import Spool
from appliance.gateway.usage import COUNT_SECONDS, Usage, UsageReports
from appliance.wire.admission import Refusals
from tests.fakes.gateway import until

Request = routing_service_pb2.ReportUsageRequest


class Audit:
    """Where reports go, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.requests: list[Request] = []

    @property
    def counted(self) -> list[list[routing_service_pb2.Refusals]]:
        """By request."""
        return [
            [entry.refusals for entry in request.entries if entry.HasField("refusals")]
            for request in self.requests
        ]

    async def take(self, request: Request) -> None:
        if self.away:
            raise Unavailable("down")
        self.requests.append(request)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "EACH_SECONDS", 0.01)
    monkeypatch.setattr(usage, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


@contextlib.asynccontextmanager
async def running(reports: UsageReports) -> AsyncIterator[None]:
    task = asyncio.create_task(reports.run())
    try:
        yield
    finally:
        reports.stop()
        async with asyncio.timeout(5):
            await task


async def test_counts_go_out_once_a_minute_and_one_row_for_each_source(spool: Spool) -> None:
    now, audit, refusals = [0.0], Audit(), Refusals()
    reports = UsageReports(audit.take, refusals, spool, clock=lambda: now[0])
    for _ in range(1000):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "/v1/models")
    refusals.count("10.0.0.8", "CONNECTIONS", "connection")
    async with running(reports):
        reports.end(Usage(request_id="a", principal="users/alice"))
        await until(lambda: len(audit.requests) == 1)
        assert audit.counted[0] == []
        now[0] = COUNT_SECONDS
        await until(lambda: len(audit.requests) == 2)
        rows = audit.counted[1]
        assert [(row.source, row.count, dict(row.methods)) for row in rows] == [
            ("10.0.0.7", 1000, {"/v1/models": 1000}),
            ("10.0.0.8", 1, {"connection": 1}),
        ]
    assert len(audit.requests) == 2


@pytest.mark.attack
async def test_counts_go_on_while_they_cannot_be_reported(spool: Spool) -> None:
    now, audit, refusals = [0.0], Audit(), Refusals()
    reports = UsageReports(audit.take, refusals, spool, clock=lambda: now[0])
    audit.away = True
    async with running(reports):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
        now[0] = COUNT_SECONDS
        await until(lambda: refusals._rows == {})
        for _ in range(5):
            refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
        now[0] = 3 * COUNT_SECONDS
        audit.away = False
        await until(lambda: len(audit.requests) >= 1)
    assert [row.count for rows in audit.counted for row in rows] == [1, 5]


async def test_a_stop_reports_what_was_counted_since(spool: Spool) -> None:
    audit, refusals = Audit(), Refusals()
    async with running(UsageReports(audit.take, refusals, spool, clock=lambda: 0.0)):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
    assert [row.count for rows in audit.counted for row in rows] == [1]


@pytest.mark.attack
async def test_nobody_is_served_when_there_is_no_room_for_the_record(spool: Spool) -> None:
    reports = UsageReports(Audit().take, Refusals(), spool, most=10)
    reports.check_room(9)
    for _ in range(100):
        reports.end(Usage(principal="users/alice"))
    assert len(reports) == 10
    with pytest.raises(AuditUnavailable):
        reports.check_room(0)


async def test_whose_calls_are_in_work_is_said_once_a_minute(spool: Spool) -> None:
    now, audit = [0.0], Audit()
    reports = UsageReports(audit.take, Refusals(), spool, clock=lambda: now[0])
    async with running(reports):
        calls = [reports.begin(Usage(credential=each)) for each in ("s1", "s2", "s1")]
        await asyncio.sleep(0.1)
        assert audit.requests == []
        now[0] = COUNT_SECONDS
        await until(lambda: len(audit.requests) == 1)
        assert list(audit.requests[0].in_use) == ["s1", "s2"]
        for call in calls:
            reports.end(Usage(), call)
        now[0] = 2 * COUNT_SECONDS
        await until(lambda: not len(reports))
    assert [list(request.in_use) for request in audit.requests[1:]] == [[]]


async def test_a_batch_is_repeated_until_it_is_taken_and_then_forgotten(spool: Spool) -> None:
    audit = Audit()
    reports = UsageReports(audit.take, Refusals(), spool, clock=lambda: 0.0)
    audit.away = True
    async with running(reports):
        call = reports.begin(Usage(request_id="a"))
        reports.end(Usage(request_id="a", completion_tokens=3), call)
        reports.end(Usage(request_id="b", reason="RESOURCE_NOT_FOUND"))
        await asyncio.sleep(0.2)
        assert len(reports) == 2
        audit.away = False
        await until(lambda: not len(reports))
    (request,) = audit.requests
    assert [(entry.number, entry.usage.request_id) for entry in request.entries] == [
        (1, "a"),
        (2, "b"),
    ]
