"""What one part of an upload holds, checked and sealed message by message.

Rules kept here:
* no more of a part is held than one message, the ids of its documents, and a small file of a model
  that is judged as a whole;
* how many documents a message has is known before it is parsed.

The attack: a message of a few megabytes that is parsed into millions of empty documents. Called by
`services.data.upload_parts`.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import DecodeError

from appliance.api.data.v1 import upload_pb2
from appliance.control.services.data import documents
from appliance.control.services.data.upload_layout import PART_DOCUMENTS, ModelPiece
from appliance.core import model_config, model_files
from appliance.core.errors import InvalidInput
from appliance.core.model_config import CONFIG
from appliance.core.model_files import is_weights
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.crypto.sealed_writer import SealedWriter

_DOCUMENT = 0x0A
"""Begins a document in an encoded `DocumentBatch`: field 1, with its length."""
_MAX_LENGTH = 5
"""Bytes of a length at most."""


class PartContent(Protocol):
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
        if count_documents(data, PART_DOCUMENTS - self.count) is None:
            raise self._too_many()
        try:
            batch = upload_pb2.DocumentBatch.FromString(data)
        except DecodeError:
            raise _no_batch() from None
        for document in batch.documents:
            documents.check(document, self.where(self.count))
            self.ids.append(document.id)
            self._sealed.write(documents.line_of(document))
            self.count += 1

    def check(self) -> None:
        """A part holds something."""
        if not self.count:
            raise documents.wrong(f"part {self._number}", "holds no document")

    def where(self, place: int) -> str:
        """Where a document is, for a message."""
        return f"parts[{self._number}].documents[{place}]"

    def _too_many(self) -> InvalidInput:
        why = f"holds more than {written(PART_DOCUMENTS)} documents; make several parts of it"
        return documents.wrong(f"part {self._number}", why)


class Bytes:
    """A piece of a file of a model. What is small and whole is judged at once."""

    count = 0

    def __init__(self, sealed: SealedWriter, piece: ModelPiece) -> None:
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
            if self._piece.file == CONFIG:
                model_config.check_config(read_object(CONFIG, data))

    def _wrong(self, what: str) -> InvalidInput:
        why = f"has {what} than the {written(self._piece.size)} bytes of this piece"
        return documents.wrong(self._piece.file, why)


def count_documents(data: bytes, most: int) -> int | None:
    """How many documents an encoded `DocumentBatch` has; None when they are more than `most`.

    Reads the length of each and nothing of its content. Raises InvalidInput when there is anything
    else in it. Pure. Source: https://protobuf.dev/programming-guides/encoding/
    """
    place = count = 0
    while place < len(data):
        if count == most:
            return None
        place = _after_document(data, place)
        count += 1
    if place != len(data):
        raise _no_batch()
    return count


def _after_document(data: bytes, place: int) -> int:
    """Where the document ends that begins at `place`."""
    if data[place] != _DOCUMENT:
        raise _no_batch()
    size = 0
    length = data[place + 1 : place + 1 + _MAX_LENGTH]
    for number, byte in enumerate(length):
        size |= (byte & 0x7F) << 7 * number
        if not byte & 0x80:
            return place + 2 + number + size
    raise _no_batch()


def _no_batch() -> InvalidInput:
    return InvalidInput(
        "data: is no DocumentBatch; each message of a part holds whole documents",
        fields={"data": "is no DocumentBatch"},
    )
