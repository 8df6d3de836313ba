"""Versions are erased: row and key in one transaction, what is left of both by the queue.

Without its key a sealed version is noise, wherever copies of it lie. So deleting one begins with
the key. Rules kept here:
* the row, its wrapped key and the order to do the rest are one transaction;
* the key is in no file of the data directory once the log of writes was emptied after that
  (`Database.empty_log`). A reader holds that back while it reads; it is tried again until it is
  done, also after a kill, and waits for no object store;
* the audit log says `artifact.erased` then, and `artifact.purged` once the bytes are gone from the
  object store; the tombstone says both.

A backup has the key for as long as it is kept. The attack: somebody reads the disk, or an old copy
of the objects, after a version was deleted. Called by `services.data.artifacts` and the queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.control.audit.system import Records
from appliance.control.services.data.artifact_rows import (
    CHECKPOINTS,
    PENDING,
    of_artifact,
    version_name,
)
from appliance.control.services.data.storage_tasks import StorageTasks, Task, TaskKind
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.control.store.objects import ObjectStore
from appliance.core.artifact_kinds import ONCE
from appliance.core.errors import Unavailable

MAX_VERSIONS = 100
"""Of one task."""
TRY_SECONDS = 1.0
"""Between two tries to empty the log of writes: each may hold up who writes."""
_artifact = tables.artifact.c
_version = tables.artifact_version.c
_tombstone = tables.tombstone.c

Gone = tuple[str, str, str]
"""Uid, name and digest of a version that is deleted, without a name if nobody is told of it; of a
project its name alone."""


def erase(
    transaction: Transaction, tasks: StorageTasks, rows: Iterable[Row[Any]], generation: int
) -> None:
    """Delete versions, complete or not, with their keys; their files go soon.

    What has one version only, a series of checkpoints and what came to be with a version that was
    never complete goes with its last version.

    Args:
        transaction: in which they go.
        tasks: the queue.
        rows: of the versions; nothing may use them.
        generation: of the state once this is committed.
    """
    gone: list[Gone] = []
    for row in rows:
        if not transaction.run(delete(tables.artifact_version).where(_version.uid == row.uid)):
            continue
        _delete_empty(transaction, row)
        name = _name_in_records(row)
        gone.append((row.uid, name, row.manifest_digest))
        details = {"uid": row.uid, "name": name} if name else {}
        tasks.add(transaction, TaskKind.DELETE_FOLDER, row.folder, **details)
    order_erasure(transaction, tasks, gone, generation)


def order_erasure(
    transaction: Transaction, tasks: StorageTasks, gone: Sequence[Gone], generation: int
) -> None:
    """Let keys that this transaction deletes be in no file soon."""
    for first in range(0, len(gone), MAX_VERSIONS):
        part = gone[first : first + MAX_VERSIONS]
        versions = [list(each) for each in part]
        tasks.add(
            transaction,
            TaskKind.ERASE_KEYS,
            part[0][0] or part[0][1],
            versions=versions,
            generation=generation,
        )


def _name_in_records(row: Row[Any]) -> str:
    """The name by which the audit log tells of a version; empty for what came to nothing."""
    if row.state == PENDING and row.kind != CHECKPOINTS:
        return ""
    return version_name(row.project, row.kind, row.artifact, row.number)


def _delete_empty(transaction: Transaction, row: Row[Any]) -> None:
    """Delete the artifact of a version that is gone, if it goes with it."""
    left = select(_version.uid).where(*of_artifact(row.project, row.kind, row.artifact))
    if transaction.first(left) is not None:
        return
    this = [
        _artifact.project == row.project,
        _artifact.kind == row.kind,
        _artifact.id == row.artifact,
    ]
    if row.kind not in ONCE | {CHECKPOINTS}:
        if row.state != PENDING:
            return
        this.append(_artifact.origin == (row.job or row.uid))
    transaction.run(delete(tables.artifact).where(*this))


class Erasing:
    """Does what the queue says of deleted versions.

    Args:
        database: the state.
        store: where folders lie.
        records: the audit log.
        clock: the time, aware.
        monotonic: seconds that only rise.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        records: Records,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._store = store
        self._records = records
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._emptied = -1
        """Generation of the state when the log of writes was emptied last."""
        self._next_try = float("-inf")

    def erase_keys(self, task: Task) -> None:
        """Have deleted keys in no file, then say so. Raises Unavailable while a reader is in it."""
        self._empty_log(int(task.details["generation"]))
        for uid, name, digest in task.details["versions"]:
            if uid and name:
                self._records.record("artifact.erased", name, uid=uid, digest=digest)
            elif name:
                self._records.record("project.erased", name)
        uids = [uid for uid, _, _ in task.details["versions"]]
        with self._database.write() as transaction:
            transaction.run(
                update(tables.tombstone)
                .where(_tombstone.uid.in_(uids), _tombstone.erase_time.is_(None))
                .values(erase_time=self._clock())
            )

    def delete_folder(self, task: Task) -> None:
        """Delete a folder whose row is gone; of a version, say so. Raises OSError."""
        self._store.delete(task.subject)
        uid = task.details.get("uid")
        if uid is None:
            return
        self._records.record("artifact.purged", str(task.details["name"]), uid=uid)
        with self._database.write() as transaction:
            transaction.run(
                update(tables.tombstone)
                .where(_tombstone.uid == uid, _tombstone.purge_time.is_(None))
                .values(purge_time=self._clock())
            )

    def _empty_log(self, generation: int) -> None:
        """Empty the log of writes, unless that was done since this generation."""
        with self._lock:
            if self._emptied >= generation:
                return
            now = self._monotonic()
            reached = self._database.generation
            if now >= self._next_try:
                self._next_try = now + TRY_SECONDS
                if self._database.empty_log():
                    self._emptied, self._next_try = reached, now
                    return
            raise Unavailable(
                "somebody reads the state, so the deleted keys are still in its log of writes",
                retry_after=TRY_SECONDS,
            )
