"""Events of the appliance itself: those that the log cannot take at their time are not lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.control.audit import log as module
from appliance.control.audit import system
from appliance.control.audit.disk_space import LOW, DiskSpaceWatch
from appliance.control.audit.log import AuditLog
from appliance.control.audit.system import SystemRecords
from tests.fakes.audit import opened, verified
from tests.fakes.disk import filled, small_disk


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look each 10 ms, so that a test waits for what happens and not for a second."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def events(log: AuditLog) -> list[tuple[str, object]]:
    """What was recorded, oldest first."""
    found = [record for record in log.newest() if record["kind"] == "event"]
    return [(each["method"], each["details"]["made"]) for each in reversed(found)]


@pytest.mark.attack
@pytest.mark.parametrize("has_reserve", [True, False])
def test_that_the_disk_is_low_is_recorded_although_it_is_full_already(
    tmp_path: Path, *, has_reserve: bool
) -> None:
    seconds = [100.0]
    with small_disk(tmp_path / "disk", 24) as disk:
        folder = disk / "audit"
        log = opened(folder)
        if not has_reserve:
            log.close()
            (folder / "reserve").unlink()
        with filled(disk):
            if not has_reserve:
                log = opened(folder)
            records = SystemRecords(log, lambda: seconds[0])
            room = DiskSpaceWatch(folder, 1 << 20, records)
            room.check()
            there = [(LOW, {"free_bytes": 0})] if has_reserve else []
            assert events(log) == there
            seconds[0] += 90
            room.check()
            records.catch_up()
            assert events(log) == there
        wait_until(lambda: not log.trouble, "the log to go on")
        records.catch_up()
        records.catch_up()
        late = [(LOW, {"free_bytes": 0, "late_seconds": 90})]
        assert events(log) == (there or late)
        log.close()
        assert verified(folder).size == 1


def test_so_many_events_wait_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(system, "MAX_LATE", 2)
    log = opened(tmp_path / "audit")
    records = SystemRecords(log, lambda: 0.0)
    with monkeypatch.context() as busy:
        busy.setattr(module, "MAX_QUEUE", 0)
        for number in range(3):
            records.note("job.failed", f"jobs/{number}", "LOST")
        records.catch_up()
    assert "job.failed of jobs/2 could not be recorded" in caplog.text
    assert events(log) == []
    records.note("job.failed", "jobs/3", "LOST")
    records.catch_up()
    found = [record["resource"] for record in log.newest()]
    assert found == ["jobs/1", "jobs/0", "jobs/3"]
    log.close()
