"""Open a data directory: what must be in order before the control plane serves anybody.

Checked here, each with one sentence that says what to do:
* the folder is private and no other control plane uses it;
* root key and keyring are files of this user alone, and belong to this appliance;
* the state database is whole, of this version, and of the same appliance as the keyring;
* the audit log is whole, signed by this keyring, and not older than what the state has seen; nor is
  the state older than what the log has seen, unless somebody says so (`accept_state`);
* the clock is not before what was recorded last. When it was ahead for a while and is right now,
  whoever may read the keys says so (`accept_clock`), which is recorded.

The attacks: a keyring, state or log swapped for an older or a foreign one; a clock set back to make
ended credentials live again. Called by the composition root and the offline commands.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from appliance.control.audit import witness
from appliance.control.audit.log import AuditLog
from appliance.control.auth.moments import believed
from appliance.control.config import ControlConfig, audit_origin
from appliance.control.presence import Presence
from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.core.data_directory import KEPT, DataDirectory
from appliance.core.errors import FailedPrecondition, Stale
from appliance.core.files import make_private_dir, open_private, read_secret
from appliance.crypto.keys import Keyring, RootKey


@dataclass(frozen=True)
class Opened:
    """An open data directory. `close` it when the process ends."""

    data: DataDirectory
    keyring: Keyring
    database: Database
    log: AuditLog
    lock: int

    def close(self) -> None:
        """Sign the last checkpoint, close everything, let others use the folder."""
        self.log.close()
        self.database.close()
        os.close(self.lock)


def open_data(
    settings: ControlConfig,
    clock: Callable[[], datetime],
    *,
    check_clock: bool = True,
    check_state: bool = True,
) -> Opened:
    """Check and open the data directory of a configuration.

    Args:
        settings: where it is.
        clock: the time, aware.
        check_clock: False only to set right what a wrong clock has written.
        check_state: False only to accept a state that is older than the log.

    Raises:
        NotFound: there is no appliance.
        FailedPrecondition: something is missing, open to others, in use or of another version.
        Tampered: keyring or audit log were changed; Stale when log or state is an older copy.
    """
    data = DataDirectory(settings.data)
    data.check_complete(KEPT)
    make_private_dir(data.path)
    lock = _lock(data)
    try:
        root = RootKey.read(data.root_key)
        keyring = Keyring.open(read_secret(data.keyring), root, settings.cluster_id)
        database = Database(data.state)
    except BaseException:
        os.close(lock)
        raise
    try:
        log = _open_log(data, keyring, database, clock)
        try:
            if check_clock:
                _check_clock(database, log, clock())
            if check_state:
                _check_state(data, database, log)
        except BaseException:
            log.close()
            raise
    except BaseException:
        database.close()
        os.close(lock)
        raise
    database.watch_log(log.head)
    return Opened(data, keyring, database, log, lock)


def _lock(data: DataDirectory) -> int:
    make_private_dir(data.run)
    descriptor = open_private(data.run / "control.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FailedPrecondition(
            f"another control plane uses {data.path}: stop it first", path=data.path
        ) from error
    return descriptor


def _open_log(
    data: DataDirectory,
    keyring: Keyring,
    database: Database,
    clock: Callable[[], datetime],
) -> AuditLog:
    found = migrate.check(database)
    if found != keyring.cluster_id:
        raise FailedPrecondition(
            f"{data.state} belongs to appliance {found}, the keyring to {keyring.cluster_id}: "
            "restore both from the same backup"
        )
    database.load_generation()
    return AuditLog.open(
        data.audit,
        keyring.audit_sign,
        audit_origin(keyring.cluster_id),
        clock,
        known=witness.known(database),
        guard=Presence([data.state, data.keyring]).check,
        generation=lambda: database.generation,
    )


def offline() -> dict[str, str]:
    """Who works on a data directory with the control plane stopped: no caller of it.

    For the details of what is recorded; the record's principal is empty.
    """
    return {"by": f"offline, uid {os.getuid()}"}


def last_moment(database: Database, log: AuditLog) -> datetime:
    """When the appliance was made, or its newest record, whichever is later."""
    with database.read() as state:
        latest: datetime = state.value(
            tables.meta.select().with_only_columns(tables.meta.c.create_time)
        )
    for record in log.newest():
        latest = max(latest, datetime.fromisoformat(record["time"]))
        break
    return latest


def _check_state(data: DataDirectory, database: Database, log: AuditLog) -> None:
    seen = log.generation
    if database.generation < seen:
        raise Stale(
            f"{data.state} is older than the audit log: it has {database.generation} changes, and "
            f"the log has seen {seen}. What was taken away since, such as a token, would be back. "
            "Put back the newest state.db; if this is the newest there is, run `python -m "
            "appliance.control --config control.toml accept-state` first",
            object=data.state.name,
        )


def _check_clock(database: Database, log: AuditLog, now: datetime) -> None:
    latest = last_moment(database, log)
    if not believed(latest, now):
        raise FailedPrecondition(
            f"the clock says {now:%Y-%m-%d %H:%M:%S}Z, but the last record is of "
            f"{latest:%Y-%m-%d %H:%M:%S}Z: set the clock right, then start again. If it is right "
            "now and was ahead before, run `python -m appliance.control --config control.toml "
            "accept-clock` first"
        )
