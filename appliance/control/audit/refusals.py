"""Why the audit log takes no record, as sentences; without paths of the server. Called by `log`."""

from __future__ import annotations

from appliance.core.errors import AuditUnavailable, Tampered

FULL = (
    "the disk of the control plane is full, so the audit log cannot take a record and nothing was "
    "done: free some space there; it goes on by itself"
)
_NOT_NOW = "the audit log takes no record now ({}), so nothing was done: repeat it later"
CLOSED = _NOT_NOW.format("it is closed")
BUSY = _NOT_NOW.format("too many records wait")


def final(failure: Exception) -> AuditUnavailable:
    """What is said of a failure that only a restart ends."""
    if isinstance(failure, Tampered):
        return AuditUnavailable(
            f"the audit log is closed, so nothing was done ({failure.message}): keep the data "
            "directory as it is, find out who did it, then start the control plane again"
        )
    why = failure.strerror if isinstance(failure, OSError) else type(failure).__name__
    return AuditUnavailable(
        f"the audit log cannot take a record ({why}), so nothing was done: repair the disk, then "
        "restart the control plane"
    )
