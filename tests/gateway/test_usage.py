"""Reports of what became of calls: by the call, by the count, in order, and never without room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable, InvalidInput, Unavailable
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
        self.refused = ""
        self.numbered = True
        self.requests: list[Request] = []

    @property
    def counted(self) -> list[list[routing_service_pb2.Refusals]]:
        """By request."""
        return [
            [entry.refusals for entry in request.entries if entry.HasField("refusals")]
            for request in self.requests
        ]

    async def take(self, request: Request) -> bool:
        if self.away:
            raise Unavailable("down")
        if self.refused and self.refused == request.boot:
            raise InvalidInput("what is that")
        self.requests.append(request)
        return self.numbered


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
    # The last one says that there is no more.
    assert [each.last for each in audit.requests] == [0, 0, 3]


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
    refusals = Refusals()
    reports = UsageReports(Audit().take, refusals, spool, most=10)
    reports.check_room(9)
    for _ in range(100):
        reports.end(Usage(principal="users/alice", reason="RESOURCE_NOT_FOUND"))
    # Refused calls take half of it; those that find no room are counted.
    assert len(reports) == 5
    reports.check_room(4)
    with pytest.raises(AuditUnavailable):
        reports.check_room(5)
    assert [(row.principal, row.count) for row in refusals.drain()] == [("users/alice", 95)]


async def test_counts_go_out_while_calls_end_all_the_time(spool: Spool) -> None:
    now, audit, refusals = [0.0], Audit(), Refusals()
    reports = UsageReports(audit.take, refusals, spool, clock=lambda: now[0])
    refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
    async with running(reports):
        for _ in range(200):
            reports.end(Usage(), reports.begin(Usage()))
            now[0] += 1.0
            await asyncio.sleep(0.001)
        assert [row.count for rows in audit.counted for row in rows] == [1]


async def test_counts_for_which_there_is_no_room_stay_counted(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, refusals, now = Audit(), Refusals(), [0.0]
    monkeypatch.setattr(spool, "_has_room", lambda _: False)
    reports = UsageReports(audit.take, refusals, spool, clock=lambda: now[0])
    refusals.count("10.0.0.7", "UNAUTHENTICATED", "inference")
    async with running(reports):
        now[0] = COUNT_SECONDS
        await asyncio.sleep(0.1)
        monkeypatch.undo()
        monkeypatch.setattr(usage, "EACH_SECONDS", 0.01)
        now[0] = 3 * COUNT_SECONDS
        await until(lambda: bool(audit.requests))
    assert [row.count for rows in audit.counted for row in rows] == [1]


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
    assert [list(request.in_use) for request in audit.requests[1:]] == [[], []]


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
    request, _ = audit.requests
    assert [(entry.number, entry.usage.request_id) for entry in request.entries] == [
        (1, "a"),
        (2, "b"),
    ]


async def test_a_control_plane_that_knows_no_numbers_has_recorded_nothing(spool: Spool) -> None:
    """One of 0.1.0: it takes the call, and leaves out what it does not know."""
    audit = Audit()
    reports = UsageReports(audit.take, Refusals(), spool, clock=lambda: 0.0)
    audit.numbered = False
    reports.end(Usage(reason="RESOURCE_NOT_FOUND"))
    async with running(reports):
        await until(lambda: len(audit.requests) > 1)
        assert len(reports) == 1
        audit.numbered = True
        await until(lambda: not len(reports))


async def test_what_is_not_understood_stops_no_other(tmp_path: Path) -> None:
    before = Spool(tmp_path / "spool")
    before.begin(Usage(request_id="a"))
    before.close()
    spool, audit = Spool(tmp_path / "spool"), Audit()
    audit.refused = spool.older[0].name
    reports = UsageReports(audit.take, Refusals(), spool, clock=lambda: 0.0)
    async with running(reports):
        reports.end(Usage(request_id="b", reason="RESOURCE_NOT_FOUND"))
        await until(lambda: not len(reports))
    assert [entry.usage.request_id for each in audit.requests for entry in each.entries] == ["b"]
    reports.close()
    # It is still there.
    again = Spool(tmp_path / "spool")
    assert again.left == 1
    again.close()


async def test_a_stop_says_that_there_is_no_more(spool: Spool) -> None:
    audit = Audit()
    reports = UsageReports(audit.take, Refusals(), spool, clock=lambda: 0.0)
    async with running(reports):
        for _ in range(3):
            reports.end(Usage(), reports.begin(Usage()))
    assert [each.last for each in audit.requests] == [0, 3]


async def test_a_spool_that_breaks_ends_the_reporting(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would be durable any more, and nobody would know."""

    async def breaks() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(spool, "run", breaks)
    reports = UsageReports(Audit().take, Refusals(), spool, clock=lambda: 0.0)
    with pytest.raises(RuntimeError, match="broken"):
        await reports.run()
