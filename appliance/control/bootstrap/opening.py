"""Open a data directory: what must be in order before the control plane serves anybody.

Checked here, each with one sentence that says what to do:
* the folder is private and no other control plane uses it;
* root key and keyring are files of this user alone, and belong to this appliance;
* the state database is whole, of this version, and of the same appliance as the keyring; rows that
  open something are what the control plane wrote last, unless somebody accepts them. What is not is
  recorded, and the start refused;
* the audit log is whole, signed by this keyring, and not older than what the state has seen; nor is
  the state older than what the log has seen, unless somebody says so (`accept_state`);
* the clock is not before what was recorded last. When it was ahead for a while and is right now,
  whoever may read the keys says so (`accept_clock`), which is recorded.

The attacks: a keyring, state or log swapped for an older or a foreign one; a clock set back to make
ended credentials live again. Called by the composition root and the offline commands.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NoReturn

from appliance.control.audit import witness
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.control.audit.system import SYSTEM
from appliance.control.auth.moments import believed
from appliance.control.bootstrap.presence import Presence
from appliance.control.config import ControlConfig, audit_origin
from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.rows import Finding, RowMacs
from appliance.core.data_directory import KEPT, DataDirectory
from appliance.core.errors import FailedPrecondition, Stale, Tampered
from appliance.core.files import make_private_dir, open_private, read_secret, write_durably
from appliance.crypto.keys import Keyring, RootKey

STATE_TAMPERED = "state.tampered"
MAX_SAID = 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An open data directory. `close` it when the process ends."""

    data: DataDirectory
    keyring: Keyring
    database: Database
    log: AuditLog
    lock: int
    found: Sequence[Finding] = field(default=())
    """Rows that the control plane did not write; some only when they may be accepted."""

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
        check_state: False only to accept a state that is older than the log, or has rows that the
            control plane did not write.

    Raises:
        NotFound: there is no appliance.
        FailedPrecondition: something is missing, open to others, in use or of another version.
        Tampered: keyring, audit log or rows of the state were changed; Stale when log or state is
            an older copy.
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
        found = _protect(data, keyring, root, database, accept=not check_state)
        log = _open_log(data, keyring, database, clock, settings.audit.reserve_bytes)
        try:
            if found and (check_state or not all(finding.is_named for finding in found)):
                _refuse_rows(data, log, found)
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
    return Opened(data, keyring, database, log, lock, found)


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


def _protect(
    data: DataDirectory, keyring: Keyring, root: RootKey, database: Database, *, accept: bool
) -> list[Finding]:
    """Let the database show only rows that the control plane wrote; what it did not write.

    A state of a version without MACs gets them now, once: the keyring remembers it.
    """
    rows = RowMacs(keyring.row_key())
    found = migrate.check(
        database, rows, keyring.cluster_id, signed=keyring.rows_signed, accept=accept
    )
    for finding in found[:MAX_SAID]:
        # Whatever becomes of the record.
        _logger.critical("%s, and not by the control plane", finding)
    if not found and not keyring.rows_signed:
        write_durably(data.keyring, replace(keyring, rows_signed=True).seal(root))
    if found:
        database.load_generation()
    return found


def _refuse_rows(data: DataDirectory, log: AuditLog, found: Sequence[Finding]) -> NoReturn:
    """Record what is in the state that the control plane did not write, and raise Tampered."""
    said = [str(finding) for finding in found[:MAX_SAID]]
    made = {"rows": said, "count": len(found)}
    entry = AuditEntry(
        "event",
        principal=SYSTEM,
        method=STATE_TAMPERED,
        outcome=Tampered.reason,
        details={"made": made},
    )
    newest = next(iter(log.newest()), {})
    # A service that is started again and again says it once.
    if newest.get("method") != STATE_TAMPERED or newest.get("details", {}).get("made") != made:
        log.append(entry).result()
    way_out = "nobody can say which rows are right, so only a backup helps"
    if all(finding.is_named for finding in found):
        way_out = (
            "if you have none, `python -m appliance.control --config control.toml accept-state` "
            "goes on without what could be forged"
        )
    more = f" and {len(found) - MAX_SAID} more" if len(found) > MAX_SAID else ""
    raise Tampered(
        f"{data.state} is not as the control plane left it: {'; '.join(said)}{more}. Somebody else "
        "has written it. Put back state.db and audit of your newest backup, both of the same one; "
        + way_out,
        object=data.state.name,
    )


def _open_log(
    data: DataDirectory,
    keyring: Keyring,
    database: Database,
    clock: Callable[[], datetime],
    reserve_bytes: int,
) -> AuditLog:
    return AuditLog.open(
        data.audit,
        keyring.audit_sign,
        audit_origin(keyring.cluster_id),
        clock,
        known=witness.known(database),
        guard=Presence([data.state, data.keyring]).check,
        generation=lambda: database.generation,
        reserve_bytes=reserve_bytes,
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
