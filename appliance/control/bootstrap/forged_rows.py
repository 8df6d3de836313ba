"""What is done about rows that somebody else wrote, when the state is accepted all the same.

Nobody can say what such a row was before. So what lets somebody in goes, people and applications
are locked, machines are evicted, and work ends: somebody with the right to do so opens each of them
again, and that is recorded. Keys and versions of artifacts are left: they open for the row they
were made for and no other. What was taken away, and tables in which older rows were put back, are
taken as they are, and named. When not even that can be said, nothing is accepted.

Called by `appliance.control.bootstrap.rescuing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Table, and_, select

from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.store import tables
from appliance.control.store.database import Transaction
from appliance.control.store.row_macs import KEYS, name_of, table_of
from appliance.control.store.rows import ADDED, CHANGED, Finding
from appliance.core.jobs import TERMINAL, JobState

Where = ColumnElement[bool]
Close = Callable[[Transaction, Table, Where, datetime], None]


def closed(found: Iterable[Finding]) -> Iterator[str]:
    """What `close` does about each of these, for a person and for the record."""
    for finding in _written(found):
        if table_of(finding.row) in CLOSING:
            yield f"{finding.shown}: {CLOSING[table_of(finding.row)][0]}"


def close(transaction: Transaction, found: Sequence[Finding], now: datetime) -> None:
    """Close what somebody else wrote.

    Args:
        transaction: one that sees every row.
        found: what is not as the control plane wrote it.
        now: aware time.
    """
    names = {finding.row for finding in _written(found)}
    for name, (_, action) in CLOSING.items():
        table = tables.metadata.tables[name]
        key = [table.c[column] for column in KEYS[name]]
        # Nothing but the key: what else was written may be no value at all.
        for row in transaction.all(select(*key)):
            if name_of(name, row) in names:
                this = and_(*(column == value for column, value in zip(key, row, strict=True)))
                action(transaction, table, this, now)


def _written(found: Iterable[Finding]) -> Iterator[Finding]:
    return (finding for finding in found if finding.change in {ADDED, CHANGED})


def _delete(transaction: Transaction, table: Table, this: Where, _now: datetime) -> None:
    transaction.run(table.delete().where(this))


def _lock(transaction: Transaction, table: Table, this: Where, _now: datetime) -> None:
    transaction.run(table.update().where(this).values(locked=True))


def _lock_owner(transaction: Transaction, table: Table, this: Where, _now: datetime) -> None:
    owner, user = transaction.value(select(table.c.user).where(this)), tables.user
    transaction.run(user.update().where(user.c.id == owner).values(locked=True))


def _forbid(transaction: Transaction, table: Table, this: Where, _now: datetime) -> None:
    transaction.run(table.update().where(this).values(allow_downloads=False))


def _evict(transaction: Transaction, table: Table, this: Where, _now: datetime) -> None:
    transaction.run(table.update().where(this).values(state=EVICTED))


def _end(transaction: Transaction, table: Table, this: Where, now: datetime) -> None:
    values = {"state": JobState.CANCELLED, "message": "its row was forged", "end_time": now}
    going_on = table.c.state.not_in(TERMINAL)
    transaction.run(table.update().where(this, going_on).values(values))


CLOSING: dict[str, tuple[str, Close]] = {
    "binding": ("deleted", _delete),
    "session": ("deleted", _delete),
    "device": ("deleted", _delete),
    "token": ("deleted", _delete),
    "recovery_code": ("deleted", _delete),
    "join_token": ("deleted", _delete),
    "user": ("locked", _lock),
    "service_account": ("locked", _lock),
    "totp": ("its user is locked", _lock_owner),
    "project": ("its downloads are forbidden", _forbid),
    "node": ("evicted", _evict),
    "gateway": ("evicted", _evict),
    "job": ("cancelled", _end),
    "endpoint": ("deleted", _delete),
    "replica": ("deleted", _delete),
    "storage_task": ("deleted", _delete),
    "attempt": ("deleted", _delete),
    "upload": ("deleted", _delete),
    "tombstone": ("deleted", _delete),
}
