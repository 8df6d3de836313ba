"""One part on its way in: checked and sealed while it comes, durable when it is answered.

Rules kept here:
* a part is a number and the digest of its content. The same again is answered from its row and not
  written again; another content under a number that is taken is refused;
* the row of a part is written last, once its sealed file is durable under its name (fsync of file
  and folder): what was answered is there after a kill or a power cut;
* one call at a time writes a part, and looks whether it is there only then; while one is written
  nobody commits, and while one commits none begins: what is named is what is there, and no file
  comes to it afterwards;
* whoever began the upload needs the right to what it becomes at every part.

The attack: parts of somebody else's upload, numbers and sizes beyond what was agreed, a content
that is not what its digest says, two contents for one number at the same time. Called by
`services.data.uploads`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, insert, update

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.data import documents, upload_rows
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.data.upload_content import Bytes, PartContent, Text
from appliance.control.services.data.upload_folder import UploadFolder
from appliance.control.services.data.upload_ids import UploadIds
from appliance.control.services.data.upload_layout import PART_BYTES, ModelPiece
from appliance.control.services.data.upload_rows import FAILED, OPEN
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput, Unavailable
from appliance.core.numbers import written
from appliance.crypto.manifest import FileEntry

MAX_DAYS = timedelta(days=30)
"""An upload that takes longer begins anew."""


class UploadParts:
    """Takes in parts; knows which are being written.

    Args:
        database: the state.
        artifacts: keys and folders.
        ids: of documents.
        project_bytes: most bytes under way in one project.
        keep: how long an upload is kept after its newest part.
        clock: the time, aware.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        ids: UploadIds,
        project_bytes: int,
        keep: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self.database = database
        self.artifacts = artifacts
        self.ids = ids
        self._project_bytes = project_bytes
        self._keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._writing: dict[tuple[str, int], object] = {}
        self._closing: set[str] = set()

    def expire_time(self, create_time: datetime) -> datetime:
        """When an upload is forgotten that gets a part now."""
        return min(self._clock() + self._keep, create_time + MAX_DAYS)

    def check_room(self, project_bytes: int) -> None:
        """Raise Exhausted when a project has more under way than it may."""
        if project_bytes > self._project_bytes:
            raise Exhausted(
                "uploads of this project that are under way may have "
                f"{written(self._project_bytes)} bytes together: let others end, or abort some "
                "with `appliance upload abort`"
            )

    def begin(self, row: Row[Any], number: int) -> Callable[[], None]:
        """A part is being written; what is returned says that it is not any more.

        Whether it is there already is looked up after this. Raises Unavailable while another call
        writes it or commits the upload.
        """
        key, mine = (row.uid, number), object()
        with self._lock:
            if key in self._writing:
                raise Unavailable(
                    f"part {number} is being written by another call: repeat it", retry_after=0.5
                )
            if row.uid in self._closing:
                name = upload_rows.name_of(row)
                raise Unavailable(f"{name} is being committed: repeat it", retry_after=0.5)
            self._writing[key] = mine

        def end() -> None:
            with self._lock:
                if self._writing.get(key) is mine:
                    del self._writing[key]

        return end

    @contextlib.contextmanager
    def none_written(self, row: Row[Any]) -> Iterator[None]:
        """While an upload is committed. Raises Unavailable while a part of it is being written."""
        with self._lock:
            busy = sorted(number for uid, number in self._writing if uid == row.uid)
            if busy or row.uid in self._closing:
                what = f"part {busy[0]} is being written" if busy else "another call commits it"
                raise Unavailable(
                    f"{upload_rows.name_of(row)} cannot be committed now, {what}: repeat it",
                    retry_after=0.5,
                )
            self._closing.add(row.uid)
        try:
            yield
        finally:
            with self._lock:
                self._closing.discard(row.uid)

    def record(
        self, row: Row[Any], number: int, digest: bytes, sizes: tuple[int, int], entry: FileEntry
    ) -> None:
        """A part is there from here on.

        Args:
            row: of the upload, as it was.
            number: of the part.
            digest: of its content.
            sizes: bytes of its content, and its documents.
            entry: its sealed file.

        Raises FailedPrecondition when the upload takes no more, Exhausted.
        """
        size, count = sizes
        with self.database.write() as transaction:
            fresh = upload_rows.by_uid(transaction, row.uid)
            check_open(fresh, row, self._clock())
            self._check_documents(fresh, count)
            self.check_room(upload_rows.open_bytes(transaction, row.project) + entry.sealed_size)
            transaction.run(
                insert(tables.upload_part).values(
                    upload=row.uid,
                    number=number,
                    digest=digest,
                    size_bytes=size,
                    documents=count,
                    file=entry.file,
                    plain_size=entry.plain_size,
                    sealed_size=entry.sealed_size,
                    tag=entry.tag,
                )
            )
            self._count(transaction, row, entry.sealed_size, count)

    def _count(self, transaction: Transaction, row: Row[Any], stored: int, count: int) -> None:
        # What a text takes on disk may be six times what was sent: JSON writes \0 as \u0000.
        column = upload_rows.upload
        transaction.run(
            update(tables.upload)
            .where(column.uid == row.uid)
            .values(
                parts=column.parts + 1,
                size_bytes=column.size_bytes + stored,
                documents=column.documents + count,
                expire_time=self.expire_time(row.create_time),
            )
        )

    def _check_documents(self, row: Row[Any] | None, count: int) -> None:
        if row is not None and row.documents + count > documents.MAX_DOCUMENTS:
            raise documents.too_many()


class IncomingPart:
    """A part that comes in: `add` each later message, `close`, `finish`; `abort` at last.

    Args:
        parts: it is one of.
        row: of its upload.
        folder: where it goes.
        first: its first message.
        digest: of all its content.
        piece: of a model, that it is; None for documents.
        end: from `UploadParts.begin`.
    """

    def __init__(  # noqa: PLR0913  # what it is a part of, and what it has to be
        self,
        parts: UploadParts,
        row: Row[Any],
        folder: UploadFolder,
        first: rpc.UploadPartRequest,
        digest: bytes,
        piece: ModelPiece | None,
        end: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._row = row
        self._folder = folder
        self._number = first.number
        self._expected = digest
        self._end = end
        self._digest = hashlib.sha256()
        self._size = 0
        self._noted = self._done = False
        self._writer = folder.writer()
        self._sealed = self._writer.create(documents.part_file(first.number))
        self._content: PartContent = (
            Text(self._sealed, first.number) if piece is None else Bytes(self._sealed, piece)
        )
        try:
            self._take(first.data)
        except BaseException:
            self.abort()
            raise

    def add(self, message: rpc.UploadPartRequest) -> None:
        """Take a later message. Raises InvalidInput."""
        if message.name or message.number or message.sha256:
            raise InvalidInput("only the first message of a part names it")
        check_later(message, self._number)
        self._take(message.data)

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        check_size(self._size, self._number)
        self._folder.check_free()
        self._digest.update(data)
        self._content.feed(data)

    def close(self) -> None:
        """All has come: check and seal it. Raises InvalidInput."""
        if self._digest.digest() != self._expected:
            raise documents.wrong(
                "sha256", f"is not that of what came as part {self._number}; send it again"
            )
        self._content.check()
        if isinstance(self._content, Text):
            self._noted = True
            there = self._folder.there()
            taken = self._parts.ids.add(there, self._number, self._content.ids)
            if taken is not None:
                self._noted = False
                where = self._content.where(taken)
                raise documents.used_before(where, self._content.ids[taken])
        try:
            self._sealed.close()
        except FileNotFoundError:
            name = upload_rows.name_of(self._row)
            raise FailedPrecondition(f"{name} has expired or was aborted meanwhile") from None

    def finish(self) -> upload_pb2.UploadedPart:
        """It is there. Raises FailedPrecondition when the upload takes no more."""
        (entry,) = self._writer.entries()
        sizes = (self._size, self._content.count)
        self._parts.record(self._row, self._number, self._expected, sizes, entry)
        self._done = True
        return answer(self._number, self._expected, self._size)

    def abort(self) -> None:
        """Leave nothing, unless it is there."""
        try:
            if not self._done:
                self._sealed.abort()
                self._tidy()
        finally:
            self._done = True
            self._end()

    def _tidy(self) -> None:
        """Its upload may be over meanwhile, and its folder deleted before this file."""
        parts, uid = self._parts, self._row.uid
        try:
            with parts.database.read() as state:
                row = upload_rows.by_uid(state, uid)
                there = upload_rows.part_of(state, uid, self._number) is not None
        except BaseException:
            parts.ids.compare_at_next_use(uid)
            raise
        if row is None or row.state == FAILED:
            parts.ids.remove(uid)
            parts.artifacts.delete_folders([self._row.folder or self._folder.version.folder])
        elif row.state == OPEN and not there:
            if self._noted:
                parts.ids.forget(self._folder.there(), self._number)
            # It may have its name already, and nobody else writes this part.
            self._folder.remove(self._number)


class KnownPart:
    """A part that is there already: what comes is not looked at, as long as it ends."""

    def __init__(self, row: Row[Any], first: rpc.UploadPartRequest) -> None:
        self._row = row
        self._size = len(first.data)

    def add(self, message: rpc.UploadPartRequest) -> None:
        """Count it. Raises InvalidInput for more than a part may have."""
        check_later(message, self._row.number)
        self._size += len(message.data)
        check_size(self._size, self._row.number)

    def close(self) -> None:
        """Nothing."""

    def finish(self) -> upload_pb2.UploadedPart:
        """The answer of the first time."""
        return answer(self._row.number, self._row.digest, self._row.size_bytes)

    def abort(self) -> None:
        """Nothing."""


def answer(number: int, digest: bytes, size: int) -> upload_pb2.UploadedPart:
    """The resource of a part."""
    return upload_pb2.UploadedPart(number=number, sha256=digest.hex(), size_bytes=size)


def check_later(message: rpc.UploadPartRequest, number: int) -> None:
    """Raise InvalidInput for a later message that brings nothing: a part of them never ends."""
    if not message.data:
        raise documents.wrong(f"part {number}", "has an empty message; leave that out")


def check_size(size: int, number: int) -> None:
    """Raise InvalidInput for a part that is too large."""
    if size > PART_BYTES:
        raise documents.wrong(f"part {number}", f"has more than {written(PART_BYTES)} bytes")


def check_open(row: Row[Any] | None, known: Row[Any], now: datetime) -> None:
    """Raise FailedPrecondition unless an upload takes parts."""
    name = upload_rows.name_of(known)
    if row is None or now >= row.expire_time:
        raise FailedPrecondition(f"{name} has expired or was aborted: begin another one")
    if row.state != OPEN:
        raise FailedPrecondition(f"{name} was committed and takes no more parts", state=row.state)
