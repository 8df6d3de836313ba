"""What one part of an upload holds, checked and sealed message by message.

Rule kept here: no more of a part is held than one message, the ids of its documents, and a small
file of a model that is judged as a whole.

Called by `services.upload_parts`.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import DecodeError

from appliance.api.data.v1 import upload_pb2
from appliance.control.services import documents, model_files
from appliance.control.services.upload_layout import PART_DOCUMENTS, Piece
from appliance.core.errors import InvalidInput
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.crypto.sealed import SealedWriter
from appliance.crypto.tensors import is_weights


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
