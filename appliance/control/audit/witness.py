"""The state database and the audit log remember each other.

Rule kept here: every commit of the state stores how long the log was and its root, so an older copy
of the log, put back together with its older checkpoints, contradicts the state.

Called by the composition root: `known` before the log is opened, then
`Database.watch_log(log.head)`.
"""

from __future__ import annotations

from sqlalchemy import select

from appliance.control.store.database import Database
from appliance.control.store.tables import meta


def known(database: Database) -> dict[int, bytes]:
    """The size and root of the log that the last commit saw; empty before the first."""
    with database.read() as state:
        row = state.first(select(meta.c.audit_size, meta.c.audit_root))
    return {row.audit_size: row.audit_root} if row is not None and row.audit_root else {}
