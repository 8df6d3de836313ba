"""What gateways say of calls is recorded once, however often they say it, and gaps are noticed."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.audit.log import AuditLog
from appliance.control.auth import tokens
from appliance.control.auth.sessions import COMPLETE, LIFETIME
from appliance.control.auth.tokens import TokenKind
from appliance.control.services.common.caller import Caller
from appliance.control.services.serving import usage
from appliance.control.services.serving.usage import MISSING
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import AuditUnavailable, InvalidInput, Unavailable
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.lab import Lab

GATEWAY = Caller(principal=Principal(PrincipalKind.GATEWAY, "gateway-1"))
OTHER = Caller(principal=Principal(PrincipalKind.GATEWAY, "gateway-2"))
BOOT, LATER = "0a" * 8, "0b" * 8


def report(lab: Lab, *numbers: int, boot: str = BOOT, who: Caller = GATEWAY) -> None:
    entries = [
        rpc.UsageEntry(number=number, usage=rpc.Usage(request_id=f"r-{number}"))
        for number in numbers
    ]
    lab.usage.report(who, rpc.ReportUsageRequest(boot=boot, entries=entries))


def recorded(lab: Lab, kind: str = "inference") -> list[dict[str, Any]]:
    found = [record for record in lab.base.opened.log.newest() if record["kind"] == kind]
    return found[::-1]


def numbers(lab: Lab) -> list[tuple[str, str, int]]:
    return [
        (each["details"]["gateway"], each["details"]["boot"], each["details"]["number"])
        for each in recorded(lab)
    ]


def test_a_report_that_is_repeated_counts_once(lab: Lab) -> None:
    for some in ((1, 2), (1, 2), (1, 2, 3), (2, 3, 4)):
        report(lab, *some)
    report(lab, 1, boot=LATER)
    report(lab, 1, who=OTHER)
    assert numbers(lab) == [
        *(("gateway-1", BOOT, number) for number in range(1, 5)),
        ("gateway-1", LATER, 1),
        ("gateway-2", BOOT, 1),
    ]
    assert [each["request_id"] for each in recorded(lab)][:4] == ["r-1", "r-2", "r-3", "r-4"]


@pytest.mark.parametrize("noted", [True, False])
def test_it_counts_once_also_across_restarts(lab: Lab, *, noted: bool) -> None:
    """Noted or not: what was recorded is in the records."""
    report(lab, 1, 2)
    report(lab, 1, boot=LATER)
    if noted:
        lab.usage.note()
    report(lab, 3)
    lab.restart()
    report(lab, 1, 2, 3, 4)
    report(lab, 1, boot=LATER)
    lab.usage.note()
    lab.restart()
    report(lab, 4)
    assert [each[1:] for each in numbers(lab)] == [
        *((BOOT, 1), (BOOT, 2), (LATER, 1), (BOOT, 3), (BOOT, 4)),
    ]


def test_what_is_noted_while_a_report_is_recorded_is_read_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are in the log, and nobody knows yet that they are: then it all ends."""
    report(lab, 1)
    real = AuditLog.append

    def append(log: AuditLog, entry: Any) -> Any:
        future = real(log, entry)
        if entry.kind == "inference":
            future.result(10)
            lab.usage.note()
        return future

    monkeypatch.setattr(AuditLog, "append", append)
    monkeypatch.setattr(usage, "READ_AGAIN", 0)
    report(lab, 2)
    monkeypatch.undo()
    lab.restart()
    report(lab, 2, 3)
    assert [each[2] for each in numbers(lab)] == [1, 2, 3]


def test_what_a_boot_had_recorded_before_is_noted_while_it_reports_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(lab, 1)
    real = AuditLog.append

    def append(log: AuditLog, entry: Any) -> Any:
        # The report of number 2 holds its boot just now; 1 is before what a start reads.
        lab.usage.note()
        return real(log, entry)

    with monkeypatch.context() as patched:
        patched.setattr(AuditLog, "append", append)
        report(lab, 2)
    lab.restart()
    report(lab, 1, 2, 3)
    assert [each[2] for each in numbers(lab)] == [1, 2, 3]


def test_who_notes_at_the_same_time_writes_nothing_older(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is slow to write; what another notes meanwhile comes after it."""
    report(lab, 1)
    real, second = Database.write, threading.Thread(target=lab.usage.note)

    def write(database: Database) -> Any:
        if threading.current_thread() is not second and not second.ident:
            report(lab, 2)
            second.start()
            second.join(0.3)
        return real(database)

    with monkeypatch.context() as patched:
        patched.setattr(Database, "write", write)
        lab.usage.note()
        second.join()
    # Another reports, so it is noted again how far the log reaches.
    report(lab, 1, who=OTHER)
    lab.usage.note()
    lab.restart()
    report(lab, 1, 2, 3)
    assert [each[2] for each in numbers(lab) if each[0] == "gateway-1"] == [1, 2, 3]


@pytest.mark.parametrize("late", [False, True])
def test_what_is_noted_while_a_report_waits_for_the_disk_forgets_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    report(lab, 1)
    lab.usage.note()
    real = AuditLog._commit

    def commit(log: AuditLog, batch: Any) -> None:
        # In the middle of the report; when it is late, it has given up by then.
        if late:
            time.sleep(0.3)
        lab.usage.note()
        real(log, batch)

    with monkeypatch.context() as patched:
        patched.setattr(AuditLog, "_commit", commit)
        patched.setattr(usage, "DURABLE_SECONDS", 0.05 if late else 10.0)
        if late:
            with pytest.raises(Unavailable):
                report(lab, 2, 3)
            lab.base.opened.log.append(usage.AuditEntry("event")).result(10)
        else:
            report(lab, 2, 3)
    # Others report, so it is noted again how far the log reaches.
    report(lab, 1, who=OTHER)
    lab.usage.note()
    lab.restart()
    report(lab, 2, 3)
    close(lab, 3)
    mine = [each[2] for each in numbers(lab) if each[0] == "gateway-1"]
    assert (mine, missing(lab)) == ([1, 2, 3], [])


def test_an_end_that_was_said_is_known_after_a_restart(lab: Lab) -> None:
    report(lab, 1, 2)
    close(lab, 2)
    lab.restart()
    report(lab, 1, boot=LATER)
    assert missing(lab) == []


def test_what_is_missing_is_recorded_later_when_it_cannot_be_now(lab: Lab) -> None:
    report(lab, 2)
    log = lab.base.opened.log
    log._failure = OSError(5, "injected")
    with pytest.raises(AuditUnavailable):
        close(lab, 2)
    log._failure = None
    close(lab, 2)
    assert missing(lab) == [("gateways/gateway-1", {"boot": BOOT, "first": 1, "last": 1})]


def test_a_start_reads_no_more_than_some_records(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    report(lab, 1)
    lab.usage.note()
    noted = lab.usage._noted
    for _ in range(5):
        lab.base.opened.log.append(usage.AuditEntry("event")).result(10)
    lab.usage.note()
    assert lab.usage._noted == noted
    monkeypatch.setattr(usage, "READ_AGAIN", 5)
    lab.usage.note()
    assert lab.usage._noted == lab.base.opened.log.size == noted + 5


def missing(lab: Lab) -> list[tuple[str, dict[str, Any]]]:
    return [
        (each["resource"], each["details"]["made"])
        for each in recorded(lab, "event")
        if each["method"] == MISSING
    ]


def close(lab: Lab, last: int, *, boot: str = BOOT) -> None:
    lab.usage.report(GATEWAY, rpc.ReportUsageRequest(boot=boot, last=last))


@pytest.mark.attack
def test_numbers_that_are_missing_at_the_end_are_recorded_once(lab: Lab) -> None:
    """Somebody deleted files of the gateway's spool; calls end in any order."""
    report(lab, 2, 1, 7)
    report(lab, 8, 4)
    assert missing(lab) == []
    for _ in range(2):
        close(lab, 10)
    lab.usage.note()
    lab.restart()
    close(lab, 10)
    assert missing(lab) == [
        ("gateways/gateway-1", {"boot": BOOT, "first": first, "last": last})
        for first, last in ((3, 3), (5, 6), (9, 10))
    ]
    # A boot that said its end has no other after it.
    report(lab, 1, boot=LATER)
    assert len(missing(lab)) == 3
    assert sorted(each[2] for each in numbers(lab)) == [1, 1, 2, 4, 7, 8]


@pytest.mark.attack
def test_a_boot_that_never_said_its_end_is_recorded_when_another_begins(lab: Lab) -> None:
    """Its spool is gone with whatever was in it."""
    report(lab, 1, 2)
    report(lab, 1, who=OTHER)
    assert missing(lab) == []
    report(lab, 1, boot=LATER)
    report(lab, 2, boot=LATER)
    assert missing(lab) == [("gateways/gateway-1", {"boot": BOOT, "after": 2})]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("boot", "some"),
    [(BOOT, (0, 1)), (BOOT, (1, 1)), (BOOT, (1 << 60,)), ("../../x", (1,)), ("A" * 16, (1,))],
)
def test_what_has_no_place_is_refused(lab: Lab, boot: str, some: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="each a number of its own"):
        report(lab, *some, boot=boot)
    with pytest.raises(InvalidInput, match="at most 1000"):
        report(lab, *range(1, 1002))
    assert recorded(lab) == []


def test_of_a_report_that_half_failed_the_other_half_comes_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, real = lab.base.opened.log, AuditLog.append

    def append(self: AuditLog, entry: Any) -> Any:
        log._full = entry.request_id in {"r-2", "r-4"}
        return real(self, entry)

    monkeypatch.setattr(AuditLog, "append", append)
    with pytest.raises(AuditUnavailable):
        report(lab, 1, 2, 3, 4)
    monkeypatch.undo()
    log._full = False
    assert [each[2] for each in numbers(lab)] == [1, 3]
    lab.usage.note()
    lab.restart()
    for _ in range(2):
        report(lab, 1, 2, 3, 4)
    assert [each[2] for each in numbers(lab)] == [1, 3, 2, 4]


def test_what_is_on_its_way_to_the_disk_is_waited_for_and_not_written_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "DURABLE_SECONDS", 0.05)
    real, waiting = AuditLog._commit, threading.Event()

    def commit(self: AuditLog, batch: Any) -> None:
        waiting.wait(10)
        real(self, batch)

    monkeypatch.setattr(AuditLog, "_commit", commit)
    for _ in range(3):
        with pytest.raises(Unavailable, match="slow"):
            report(lab, 1, 2)
    waiting.set()
    monkeypatch.setattr(usage, "DURABLE_SECONDS", 10.0)
    report(lab, 1, 2, 3)
    assert [each[2] for each in numbers(lab)] == [1, 2, 3]


def test_refusals_are_numbered_too(lab: Lab) -> None:
    row = rpc.Refusals(source="10.0.0.7", count=3, reasons={"UNAUTHENTICATED": 3})
    entries = [rpc.UsageEntry(number=1, refusals=row), rpc.UsageEntry(number=2)]
    for _ in range(2):
        lab.usage.report(GATEWAY, rpc.ReportUsageRequest(boot=BOOT, entries=entries))
    (denied,) = recorded(lab, "denied")
    assert (denied["source"], denied["details"]["count"], denied["details"]["number"]) == (
        "10.0.0.7",
        3,
        1,
    )
    assert [each[2] for each in numbers(lab)] == [2]


def test_what_could_not_be_recorded_is_recorded_when_it_comes_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = lab.base.opened.log
    monkeypatch.setattr(log, "_full", True)
    with pytest.raises(AuditUnavailable):
        report(lab, 1, 2)
    monkeypatch.setattr(log, "_full", False)
    report(lab, 1, 2)
    assert [each[2] for each in numbers(lab)] == [1, 2]


def test_a_session_that_is_used_through_a_gateway_alone_lives(lab: Lab) -> None:
    """T31: it ended after half an hour, with the answers that it was getting."""
    with lab.database.write() as transaction:
        ids = [
            tokens.parse(
                lab.people.sessions.open(transaction, "alice", COMPLETE, LIFETIME, "test"),
                TokenKind.SESSION,
            ).id
            for _ in range(3)
        ]
    asking, at_work, idle = ids
    for _ in range(5):
        lab.forward(20 * 60, served=False)
        entry = rpc.UsageEntry(usage=rpc.Usage(credential=asking))
        entry.number = len(recorded(lab)) + 1
        request = rpc.ReportUsageRequest(boot=BOOT, entries=[entry], in_use=[at_work, "nobody", ""])
        lab.usage.report(GATEWAY, request)
    assert {row.id for row in lab.people.sessions.of("alice")} == {asking, at_work}
    # What has ended does not live again.
    lab.usage.report(GATEWAY, rpc.ReportUsageRequest(in_use=[idle]))
    assert {row.id for row in lab.people.sessions.of("alice")} == {asking, at_work}
    assert recorded(lab)[-1]["details"]["credential"] == asking


def test_boots_of_long_ago_are_forgotten(lab: Lab) -> None:
    report(lab, 1)
    lab.usage.note()
    lab.forward(usage.KEPT.total_seconds() + 1, served=False)
    report(lab, 1, boot=LATER)
    lab.usage.note()
    with lab.database.read() as state:
        assert [row.boot for row in state.all(tables.usage_boot.select())] == [LATER]
