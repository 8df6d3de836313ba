"""What becomes of uploads without anybody waiting: they become versions, fail, or expire.

Rules kept here:
* a commit can be done again at any moment, after a kill too: the parts stay until the version is
  registered, in one transaction with the end of the upload, and the audit log says so first;
* what the store cannot do now is tried again by the queue, and the upload says why; what is wrong
  with the content itself ends it, and so does its owner between two tries, or a month;
* what a locked account has open goes, as nobody else may end it;
* what expires, fails or is aborted goes with everything it wrote: key and rows at once, files by
  the queue.

Called by the storage worker (`commit`), the scheduler (`sweep`, `recover`) and
`services.data.uploads`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.control.audit.system import Records
from appliance.control.auth import grants
from appliance.control.services.data import documents, upload_rows
from appliance.control.services.data.artifacts import Artifacts, Version
from appliance.control.services.data.model_intake import ModelFiles
from appliance.control.services.data.storage_tasks import StorageTasks, Task, TaskKind, sentence_of
from appliance.control.services.data.upload_folder import UploadFolder
from appliance.control.services.data.upload_ids import UploadIds
from appliance.control.services.data.upload_layout import UploadLayout
from appliance.control.services.data.upload_parts import MAX_DAYS
from appliance.control.services.data.upload_rows import (
    COMMITTED,
    COMMITTING,
    FAILED,
    OPEN,
    UNDER_WAY,
)
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.errors import ApplianceError, InvalidInput, LeaseLost, NotFound, Tampered
from appliance.crypto.artifacts import ArtifactWriter, manifest_digest

REMEMBERED = timedelta(days=1)
"""For so long it is said what became of an upload that is over."""
MAX_REMEMBERED = 100
"""Of one owner in a project."""
SWEEP = timedelta(minutes=1)
READ_BYTES = 1 << 20
_BUG = "an error in the control plane, which its log shows"
_upload = upload_rows.upload
_part = upload_rows.part
_version = tables.artifact_version.c
_logger = logging.getLogger(__name__)


class UploadTasks:
    """Commits, drops and forgets uploads."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        tasks: StorageTasks,
        ids: UploadIds,
        records: Records,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._tasks = tasks
        self._ids = ids
        self._records = records
        self._clock = clock
        self._swept: datetime | None = None

    def commit(self, task: Task) -> None:
        """Make a version of an upload. Raises ApplianceError, OSError when that cannot be now."""
        with self._database.read() as state:
            row = upload_rows.by_uid(state, task.subject)
            if row is None or row.state != COMMITTING:
                return
        place = self._artifacts.store.folder(row.project, row.version)
        try:
            with self._database.read() as state:
                folder = UploadFolder.of(state, self._database, self._artifacts, row)
            self._register(row, folder)
        except LeaseLost as error:
            _logger.info("upload %s is over: %s", row.uid, error.message)
        except (InvalidInput, Tampered, NotFound) as error:
            self._fail(row, place, error.message)
        except Exception as error:
            known = isinstance(error, ApplianceError | OSError)
            why = sentence_of(error) if known else f"{_BUG} ({sentence_of(error)})"
            self._say(row, f"{why}; tried again at {self._tasks.next_try(task):%H:%M:%S} UTC")
            raise

    def is_at_work(self, state: Reading, row: Row[Any]) -> bool:
        """Whether a thread makes the version of an upload now."""
        return self._tasks.is_being_done(state, TaskKind.COMMIT_UPLOAD, row.uid)

    def drop(self, transaction: Transaction, row: Row[Any]) -> None:
        """Forget an upload that is no version, and all that was sent."""
        self._drop_parts(transaction, row)
        transaction.run(delete(tables.upload).where(_upload.uid == row.uid))

    def sweep(self) -> None:
        """Once a minute: what has expired goes, and what a locked account has open."""
        now = self._clock()
        if self._swept is not None and abs(now - self._swept) < SWEEP:
            return
        with self._database.read() as state:
            over = self._over(state, now)
        if over:
            with self._database.write() as transaction:
                for row, what in self._over(transaction, now):
                    if self.is_at_work(transaction, row):
                        continue
                    if row.state in UNDER_WAY:
                        name = upload_rows.name_of(row)
                        self._records.note(what, name, "OK", principal=row.creator)
                    self.drop(transaction, row)
        self._swept = now

    def _over(self, state: Reading, now: datetime) -> list[tuple[Row[Any], str]]:
        """The uploads that go now, and what the audit log calls that."""
        hopeless = _upload.create_time <= now - MAX_DAYS - REMEMBERED
        ended = _upload.expire_time <= now, (_upload.state != COMMITTING) | hopeless
        over = [(row, "upload.expired") for row in state.all(select(tables.upload).where(*ended))]
        mine = _upload.state == OPEN, _upload.expire_time > now
        owners = state.all(select(_upload.principal).where(*mine).distinct())
        locked = [row.principal for row in owners if grants.is_locked(state, row.principal)]
        for owner in locked:
            # Nobody else may end them, and their owner cannot.
            rows = state.all(select(tables.upload).where(*mine, _upload.principal == owner))
            over += [(row, "upload.locked") for row in rows]
        return over

    def recover(self) -> None:
        """At start: files of ids that belong to nothing go."""
        with self._database.read() as state:
            rows = state.all(select(_upload.uid).where(_upload.state.in_(UNDER_WAY)))
        self._ids.keep_only({row.uid for row in rows})

    def _register(self, row: Row[Any], folder: UploadFolder) -> None:
        version = folder.version
        writer = self._artifacts.writer(version)
        make = self._model if row.files else self._text
        facts = make(row, folder, writer)
        digest = manifest_digest(writer.finish())
        reader = self._artifacts.verify(version, digest)
        self._artifacts.sign(version, digest)
        origin: dict[str, Any] = {"kind": "import" if row.files else "upload", "inputs": []}
        with self._database.write() as transaction:
            self._artifacts.register(transaction, version, reader, facts, origin)
            self._end(transaction, row, COMMITTED, "", version)
            # What appears is in the audit log before it appears.
            self._records.record(
                "upload.committed",
                upload_rows.name_of(row),
                principal=row.creator,
                version=version.name,
                manifest_digest=digest,
            )

    def _text(
        self, row: Row[Any], folder: UploadFolder, writer: ArtifactWriter
    ) -> Mapping[str, Any]:
        """The parts are the version's files already."""
        twice = self._ids.check(folder.there())
        if twice:
            raise documents.used_before("documents", twice)
        sizes = folder.sizes()
        with self._database.read() as state:
            for part in upload_rows.parts_of(state, row.uid):
                if sizes.get(part.file) != part.sealed_size:
                    raise Tampered(f"part {part.number} is not in the object store as it was")
                writer.adopt([upload_rows.entry_of(part)])
        return {"kind": "text", "documents": row.documents, "tokens": 0}

    def _model(
        self, row: Row[Any], folder: UploadFolder, writer: ArtifactWriter
    ) -> Mapping[str, Any]:
        """The parts are read, checked, and sealed as the files of the version."""
        layout, files = UploadLayout(row.files), ModelFiles(writer)
        try:
            for place, (file, _) in enumerate(row.files):
                for number in layout.numbers(place):
                    folder.check_free()
                    with folder.there().read(number) as part:
                        files.add(file, b"")
                        while data := part.read(READ_BYTES):
                            files.add(file, data)
            return files.close()
        finally:
            files.abort()

    def _fail(self, row: Row[Any], folder: str, why: str) -> None:
        """What came cannot become a version."""
        _logger.warning("upload %s is refused: %s", row.uid, why)
        for each in filter(None, (row.folder, folder)):
            # Before it is said, so that nothing is left then; the queue does what fails here.
            with contextlib.suppress(OSError):
                self._artifacts.store.delete(each)
        with self._database.write() as transaction:
            self._end(transaction, row, FAILED, why, None)
        self._records.note(
            "upload.failed", upload_rows.name_of(row), "INVALID_INPUT", principal=row.creator
        )

    def _say(self, row: Row[Any], why: str) -> None:
        with self._database.write() as transaction:
            mine = _upload.uid == row.uid, _upload.state == COMMITTING
            transaction.run(update(tables.upload).where(*mine).values(message=why))

    def _end(
        self,
        transaction: Transaction,
        row: Row[Any],
        state: str,
        message: str,
        version: Version | None,
    ) -> None:
        """An upload is over; what became of it is said for a while."""
        mine = _upload.uid == row.uid, _upload.state == COMMITTING
        changed = transaction.run(
            update(tables.upload)
            .where(*mine)
            .values(
                state=state,
                message=message,
                version_name=version.name if version is not None else "",
                expire_time=self._clock() + REMEMBERED,
            )
        )
        if changed != 1:
            raise LeaseLost(f"{upload_rows.name_of(row)} is over")
        of_owner = _upload.project == row.project, _upload.principal == row.principal
        over = select(_upload.uid).where(*of_owner, _upload.state.not_in(UNDER_WAY))
        forgotten = over.order_by(_upload.expire_time.desc()).offset(MAX_REMEMBERED)
        for old in transaction.all(forgotten):
            transaction.run(delete(tables.upload).where(_upload.uid == old.uid))
        self._drop_parts(transaction, row)

    def _drop_parts(self, transaction: Transaction, row: Row[Any]) -> None:
        """The parts of an upload go, and the version unless it is complete."""
        pending = select(tables.artifact_version).where(
            _version.uid == row.version, _version.state == "pending"
        )
        self._artifacts.drop(transaction, transaction.all(pending))
        transaction.run(delete(tables.upload_part).where(_part.upload == row.uid))
        if row.folder:
            self._tasks.add(transaction, TaskKind.DELETE_FOLDER, row.folder)
        transaction.after_commit(lambda: self._ids.remove(row.uid))
