"""Reports of what became of calls: by the call, by the count, in order, and never without room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable, Unavailable
from appliance.gateway import usage
from appliance.gateway.usage import COUNT_SECONDS, Usage, UsageReports
from appliance.wire.admission import Refusals
from tests.fakes.gateway import until

Request = routing_service_pb2.ReportUsageRequest


class Audit:
    """Where reports go, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.requests: list[Request] = []

    async def take(self, request: Request) -> None:
        if self.away:
            raise Unavailable("down")
        self.requests.append(request)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "EACH_SECONDS", 0.01)
    monkeypatch.setattr(usage, "PAUSE_SECONDS", 0.01)


@contextlib.asynccontextmanager
async def running(reports: UsageReports) -> AsyncIterator[None]:
    task = asyncio.create_task(reports.run())
    try:
        yield
    finally:
        reports.stop()
        async with asyncio.timeout(5):
            await task


async def test_counts_go_out_once_a_minute_and_one_row_for_each_source() -> None:
    now, audit, refusals = [0.0], Audit(), Refusals()
    reports = UsageReports(audit.take, refusals, clock=lambda: now[0])
    for _ in range(1000):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "/v1/models")
    refusals.count("10.0.0.8", "CONNECTIONS", "connection")
    async with running(reports):
        reports.add(Usage(request_id="a", principal="users/alice"))
        await until(lambda: len(audit.requests) == 1)
        assert len(audit.requests[0].refusals) == 0
        now[0] = COUNT_SECONDS
        await until(lambda: len(audit.requests) == 2)
        rows = audit.requests[1].refusals
        assert [(row.source, row.count, dict(row.methods)) for row in rows] == [
            ("10.0.0.7", 1000, {"/v1/models": 1000}),
            ("10.0.0.8", 1, {"connection": 1}),
        ]
    assert len(audit.requests) == 2


@pytest.mark.attack
async def test_counts_go_on_while_they_cannot_be_reported() -> None:
    now, audit, refusals = [0.0], Audit(), Refusals()
    reports = UsageReports(audit.take, refusals, clock=lambda: now[0])
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
    assert [row.count for request in audit.requests for row in request.refusals] == [1, 5]


async def test_a_stop_reports_what_was_counted_since() -> None:
    audit, refusals = Audit(), Refusals()
    async with running(UsageReports(audit.take, refusals, clock=lambda: 0.0)):
        refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
    assert [row.count for request in audit.requests for row in request.refusals] == [1]


@pytest.mark.attack
async def test_nobody_is_served_when_there_is_no_room_for_the_record() -> None:
    reports = UsageReports(Audit().take, Refusals(), most=10)
    reports.check_room(9)
    for _ in range(100):
        reports.add(Usage(principal="users/alice"))
    assert len(reports) == 10
    with pytest.raises(AuditUnavailable):
        reports.check_room(0)
