"""Binds state database and audit log to each other, so that a rollback of either is noticed.

Rules kept here:
* every commit of the state stores how long the log was and its root, so an older copy of the log,
  put back together with its older checkpoints, contradicts the state;
* every record of the log says how many writes of the state were committed, so an older copy of the
  state contradicts the log: a call is answered after its result is recorded.

The attack: an older state put back, in which a token that was revoked lives. Called by
`appliance.control.bootstrap.opening` before the log is opened, and when an older state is accepted.
"""

from __future__ import annotations

from sqlalchemy import select

from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import record_at
from appliance.control.store.database import Database
from appliance.control.store.tables import meta


def known(database: Database) -> dict[int, bytes]:
    """The size and root of the log that the last commit saw; empty before the first."""
    with database.read() as state:
        row = state.first(select(meta.c.audit_size, meta.c.audit_root))
    return {row.audit_size: row.audit_root} if row is not None and row.audit_root else {}


def first_after(log: AuditLog, generation: int) -> int:
    """The first record that knows of more writes of the state than these; the log's size if none.

    Records know of ever more, so only some of them are read.
    """
    low, high = log.first, log.size
    while low < high:
        middle = (low + high) // 2
        (line,) = log.lines(middle, middle + 1)
        if record_at(line, middle).get("generation", 0) > generation:
            high = middle
        else:
            low = middle + 1
    return low
