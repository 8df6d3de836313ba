"""Records of refusals that were counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.control.audit.log import AuditLog
from appliance.control.door.journal import Journal
from appliance.wire.admission import Refused
from tests.control.audit.test_log import KEY, ORIGIN
from tests.fakes.state import StandingClock


@pytest.mark.attack
async def test_who_is_cancelled_while_recording_loses_nothing(tmp_path: Path) -> None:
    """As when the server stops in the moment in which the minute ends."""
    log = AuditLog.open(tmp_path / "audit", KEY, ORIGIN, StandingClock())
    rows = [Refused(f"10.0.0.{n}", "", 1, {"DENIED": 1}, {"unknown": 1}) for n in range(5)]
    with log._changed:  # Nothing becomes durable before the one who waits for it has gone.
        recording = asyncio.create_task(Journal(log).counted(rows))
        await asyncio.sleep(0)
        recording.cancel()
        await asyncio.wait({recording})
    assert recording.cancelled()
    log.close()
    assert {record["source"] for record in log.newest()} == {row.source for row in rows}
