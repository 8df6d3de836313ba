"""An audit log of tests: its key and name, how it is filled, and what is proved of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.cli.audit_folder import AuditParts
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.crypto.chain import CHECKPOINTS, Verified
from appliance.crypto.signing import SigningKey, VerifyKey
from tests.fakes.state import StandingClock

KEY = SigningKey(b"\x07" * 32)
ORIGIN = "appliance/lab/audit"
ENTRY = AuditEntry("intent", principal="users/alice", method="/x.Jobs/CreateJob")


def opened(folder: Path, **more: Any) -> AuditLog:
    """The log in a folder; `more` are keywords of `AuditLog.open`."""
    return AuditLog.open(folder, KEY, ORIGIN, StandingClock(), **more)


def fill(folder: Path, count: int, **more: Any) -> None:
    """Add so many records to the log in a folder."""
    log = opened(folder, **more)
    for future in [log.append(ENTRY) for _ in range(count)]:
        future.result(10)
    log.close()


def verified(
    *folders: Path, older: bytes | None = None, key: VerifyKey = KEY.verify_key
) -> Verified:
    """What `appliance audit verify` proves of archives and, when it has checkpoints, a log."""
    parts = AuditParts()
    for folder in folders:
        add = parts.add_folder if (folder / CHECKPOINTS).exists() else parts.add_archive
        add(folder)
    return parts.verify(key, older)[0]
