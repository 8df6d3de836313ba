"""One part on its way in: checked and sealed while it comes, durable when it is answered.

Rules kept here:
* a part is a number and the digest of its content. The same again is answered from its row and not
  written again; another content under a number that is taken is refused;
* the row of a part is written last, once its sealed file is durable under its name (fsync of file
  and folder): what was answered is there after a kill or a power cut;
* no more of a part is held in memory than one message and the ids of its documents;
* whoever began the upload needs the right to what it becomes at every part.

The attack: parts of somebody else's upload, numbers and sizes beyond what was agreed, a content
that is not what its digest says, two contents for one number at the same time. Called by
`services.uploads`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from sqlalchemy import Row, insert, update

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services import documents, model_files, upload_rows
from appliance.control.services.artifacts import Artifacts
from appliance.control.services.upload_folder import UploadFolder
from appliance.control.services.upload_ids import UploadIds
from appliance.control.services.upload_layout import PART_BYTES, PART_DOCUMENTS, Piece
from appliance.control.services.upload_rows import FAILED, OPEN
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput, Unavailable
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.crypto.manifest import FileEntry
from appliance.crypto.sealed import SealedWriter
from appliance.crypto.tensors import is_weights

MOST_DAYS = timedelta(days=30)
"""An upload that takes longer begins anew."""


class Content(Protocol):
    """What one kind of upload does with the bytes of a part."""

    count: int
    """Documents so far."""

    def feed(self, data: bytes) -> None:
        """Take the next message. Raises InvalidInput."""

    def check(self) -> None:
        """All have come. Raises InvalidInput."""


class Text:
    """Documents, each a line of a sealed file."""

    def __init__(self, sealed: SealedWriter, number: int) -> None:
        self._sealed = sealed
        self._number = number
        self.ids: list[str] = []
        self.count = 0

    def feed(self, data: bytes) -> None:
        """Take whole documents."""
        try:
            batch = upload_pb2.DocumentBatch.FromString(data)
        except DecodeError:
            raise InvalidInput(
                "data: is no DocumentBatch; each message of a part holds whole documents",
                fields={"data": "is no DocumentBatch"},
            ) from None
        for document in batch.documents:
            documents.check(document, self.where(self.count))
            self.ids.append(document.id)
            self._sealed.write(documents.line_of(document))
            self.count += 1
        if self.count > PART_DOCUMENTS:
            why = f"holds more than {written(PART_DOCUMENTS)} documents; make several parts of it"
            raise documents.wrong(f"part {self._number}", why)

    def check(self) -> None:
        """A part holds something."""
        if not self.count:
            raise documents.wrong(f"part {self._number}", "holds no document")

    def where(self, place: int) -> str:
        """Where a document is, for a message."""
        return f"parts[{self._number}].documents[{place}]"


class Bytes:
    """A piece of a file of a model. What is small and whole is judged at once."""

    count = 0

    def __init__(self, sealed: SealedWriter, piece: Piece) -> None:
        self._sealed = sealed
        self._piece = piece
        self._size = 0
        self._held = bytearray() if piece.whole and not is_weights(piece.file) else None

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += len(data)
        if self._size > self._piece.size:
            raise self._wrong("more")
        self._sealed.write(data)
        if self._held is not None:
            self._held += data

    def check(self) -> None:
        """A piece has the size that was agreed."""
        if self._size < self._piece.size:
            raise self._wrong("fewer")
        if self._held is not None:
            data = bytes(self._held)
            model_files.check_file(self._piece.file, data)
            if self._piece.file == "config.json":
                model_files.check_config(read_object("config.json", data))

    def _wrong(self, what: str) -> InvalidInput:
        why = f"has {what} than the {written(self._piece.size)} bytes of this piece"
        return documents.wrong(self._piece.file, why)


class Parts:
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
        self._writing: set[tuple[str, int]] = set()

    def expire_time(self, create_time: datetime) -> datetime:
        """When an upload is forgotten that gets a part now."""
        return min(self._clock() + self._keep, create_time + MOST_DAYS)

    def check_room(self, project_bytes: int) -> None:
        """Raise Exhausted when a project has more under way than it may."""
        if project_bytes > self._project_bytes:
            raise Exhausted(
                "uploads of this project that are under way may have "
                f"{written(self._project_bytes)} bytes together: let others end, or abort some "
                "with `appliance upload abort`"
            )

    def begin(self, row: Row[Any], number: int) -> None:
        """A part is being written. Raises Unavailable while another call writes it."""
        with self._lock:
            if (row.uid, number) in self._writing:
                raise Unavailable(
                    f"part {number} is being written by another call: repeat it", retry_after=0.5
                )
            self._writing.add((row.uid, number))

    def end(self, row: Row[Any], number: int) -> None:
        """It is written, or not."""
        with self._lock:
            self._writing.discard((row.uid, number))

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
            self.check_room(upload_rows.open_bytes(transaction, row.project) + size)
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
            self._count(transaction, row, size, count)

    def _count(self, transaction: Transaction, row: Row[Any], size: int, count: int) -> None:
        column = upload_rows.upload
        transaction.run(
            update(tables.upload)
            .where(column.uid == row.uid)
            .values(
                parts=column.parts + 1,
                size_bytes=column.size_bytes + size,
                documents=column.documents + count,
                expire_time=self.expire_time(row.create_time),
            )
        )

    def _check_documents(self, row: Row[Any] | None, count: int) -> None:
        if row is not None and row.documents + count > documents.MOST_DOCUMENTS:
            raise documents.too_many()


class Part:
    """A part that comes in: `add` each later message, `close`, `finish`; `abort` at last."""

    def __init__(  # noqa: PLR0913  # what it is a part of, and what it has to be
        self,
        parts: Parts,
        row: Row[Any],
        folder: UploadFolder,
        first: rpc.UploadPartRequest,
        digest: bytes,
        piece: Piece | None,
    ) -> None:
        self._parts = parts
        self._row = row
        self._folder = folder
        self._number = first.number
        self._expected = digest
        self._digest = hashlib.sha256()
        self._size = 0
        self._noted = self._done = False
        parts.begin(row, first.number)
        try:
            self._writer = folder.writer()
            self._sealed = self._writer.create(folder.file(first.number))
        except BaseException:
            parts.end(row, first.number)
            raise
        self._content: Content = (
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
        self._take(message.data)

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > PART_BYTES:
            raise documents.wrong(
                f"part {self._number}", f"has more than {written(PART_BYTES)} bytes"
            )
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
            self._parts.end(self._row, self._number)

    def _tidy(self) -> None:
        """Its upload may be over meanwhile, and its folder deleted before this file."""
        parts, uid = self._parts, self._row.uid
        with parts.database.read() as state:
            row = upload_rows.by_uid(state, uid)
        if row is None or row.state == FAILED:
            parts.ids.remove(uid)
            parts.artifacts.delete_folders([self._row.folder or self._folder.version.folder])
        elif self._noted:
            parts.ids.forget(self._folder.there(), self._number)


class Known:
    """A part that is there already: what comes is not looked at."""

    def __init__(self, row: Row[Any]) -> None:
        self._row = row

    def add(self, message: rpc.UploadPartRequest) -> None:
        """Nothing."""

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


def check_open(row: Row[Any] | None, known: Row[Any], now: datetime) -> None:
    """Raise FailedPrecondition unless an upload takes parts."""
    name = upload_rows.name_of(known)
    if row is None or now >= row.expire_time:
        raise FailedPrecondition(f"{name} has expired or was aborted: begin another one")
    if row.state != OPEN:
        raise FailedPrecondition(f"{name} was committed and takes no more parts", state=row.state)
