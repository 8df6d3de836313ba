"""Jobs that wait for space in the object store: queued again when there is some.

Rules kept here:
* what the last starts began to save and could not finish is deleted first: it may be what fills the
  store;
* there must be room for a whole checkpoint, or a job would go on only to pause again;
* a little is written too, for a quota says nothing before that; little, because whoever else
  writes at this moment needs room as well.

Called by the storage worker.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from sqlalchemy import Row

from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.data.storage_tasks import Task
from appliance.control.services.work import checkpoint_rows, job_rows
from appliance.control.services.work.checkpoint_folders import CheckpointFolders
from appliance.control.services.work.pauses import Pauses, waits_for_space
from appliance.control.store.database import Database, Reading
from appliance.control.store.objects import ObjectStore
from appliance.core.errors import StoreFull
from appliance.core.numbers import written
from appliance.crypto.folder import Folder
from appliance.kinds import kind_of

MIN_BYTES = 64 << 20
PROBE_BYTES = 16 << 20
_CHUNK = 1 << 20
_FILE = "probe"


class PausedJobs:
    """Queues them again."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        folders: CheckpointFolders,
        store: ObjectStore,
        pauses: Pauses,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._folders = folders
        self._store = store
        self._pauses = pauses

    def resume(self, task: Task) -> None:
        """Queue a paused job again. Raises StoreFull, OSError while there is no room."""
        with self._database.read() as state:
            row = job_rows.by_uid(state, task.subject)
            if row is None or not waits_for_space(row):
                return
            need = _need(state, row)
            found = checkpoint_rows.series_row(state, row.uid)
            series = None if found is None else self._artifacts.read(state, found)
        if series is not None:
            self._folders.delete_unfinished(series, row.epoch)
        free = self._store.free_bytes()
        if free is not None and free < need:
            raise StoreFull(
                f"the object store has {written(free)} bytes left, the job needs {written(need)}"
            )
        self._probe(f"{row.project}/probe-{secrets.token_hex(8)}")
        self._pauses.go_on(row.uid)

    def _probe(self, folder: str) -> None:
        """Write a file of random bytes, durably, and delete it."""
        chunk = os.urandom(_CHUNK)
        try:
            new = Folder(self._store.filesystem, self._store.path(folder)).create(_FILE)
            try:
                for _ in range(PROBE_BYTES // _CHUNK):
                    new.write(chunk)
                new.commit()
            except BaseException:
                new.discard()
                raise
        finally:
            self._store.delete(folder)


def _need(state: Reading, row: Row[Any]) -> int:
    """Bytes that the next checkpoint of a job takes, about."""
    newest = checkpoint_rows.newest(state, row.uid)
    saved = newest.size_bytes if newest is not None else 0
    of_one, reckoned = kind_of(row.kind).checkpoint_bytes, 0
    if of_one is not None:
        reckoned = of_one(job_rows.spec_of(row), job_rows.inputs_of(state, row))
    return max(saved, reckoned, MIN_BYTES)
