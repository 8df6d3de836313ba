"""Cut documents and the files of a model into the parts of an upload.

What makes parts is deterministic: the same files give the same parts, so that a command that
remembers nothing can go on with an upload that another one began. Memory: one part of documents
while it is made; of a model nothing, its files are read once for the digest and once to be sent.

Called by the command; `appliance.client.part_upload` sends them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.data.v1 import upload_pb2
from appliance.core.errors import FailedPrecondition, InvalidInput

MESSAGE_BYTES = 1 << 20
"""Of a message; one that holds a single large document may have 3 MiB more."""
TEXT_PART_BYTES = 4 << 20
PART_DOCUMENTS = 20_000
"""As many as the control plane takes in one part."""


@dataclass(frozen=True)
class OutgoingPart:
    """One part.

    Attributes:
        number: from 0 on.
        digest: SHA-256 of its content.
        size: bytes of its content.
        pieces: gives the content, message by message, each time it is called.
    """

    number: int
    digest: bytes
    size: int
    pieces: Callable[[], Iterable[bytes]]


def text_parts(documents: Iterable[data.Document]) -> Iterator[OutgoingPart]:
    """Documents as parts of at most 4 MiB; a larger document has one of its own."""
    number, batch = 0, _Batch()
    for document in documents:
        content = upload_pb2.DocumentBatch(documents=[document]).SerializeToString()
        if batch.is_full(len(content)):
            yield batch.part(number)
            number, batch = number + 1, _Batch()
        batch.add(content)
    if batch.count:
        yield batch.part(number)


class _Batch:
    """Documents of one part."""

    def __init__(self) -> None:
        self.count = 0
        self._size = 0
        self._pieces: list[bytes] = []
        self._last = bytearray()
        self._digest = hashlib.sha256()

    def is_full(self, more: int) -> bool:
        """Whether so many more bytes are for the next part."""
        over = self._size + more > TEXT_PART_BYTES
        return bool(self.count) and (over or self.count == PART_DOCUMENTS)

    def add(self, content: bytes) -> None:
        """Take a document."""
        if self._last and len(self._last) + len(content) > MESSAGE_BYTES:
            self._end_piece()
        self._last += content
        self._size += len(content)
        self.count += 1

    def part(self, number: int) -> OutgoingPart:
        """All of it; nothing is held here after that."""
        self._end_piece()
        pieces, self._pieces = self._pieces, []
        return OutgoingPart(number, self._digest.digest(), self._size, lambda: pieces)

    def _end_piece(self) -> None:
        self._digest.update(self._last)
        self._pieces.append(bytes(self._last))
        self._last = bytearray()


def check_same(folder: Path, upload: upload_pb2.Upload) -> None:
    """Raise FailedPrecondition when files are not those with which an upload was begun."""
    for each in upload.files:
        path = folder / each.file
        size = path.stat().st_size if path.is_file() else -1
        if size != each.size_bytes:
            found = f"{size:,} bytes" if size >= 0 else "missing"
            raise FailedPrecondition(
                f"{path} had {each.size_bytes:,} bytes when the upload was begun and is now {found}"
                ": put it back, or import again without --resume"
            )


def model_parts(folder: Path, upload: upload_pb2.Upload) -> Iterator[OutgoingPart]:
    """The files of a model as the parts that the control plane expects.

    Args:
        folder: of the model.
        upload: says which files, in which order, and the bytes of a part.

    Raises:
        InvalidInput: a file cannot be read.
        FailedPrecondition: one has changed since the upload was begun.
    """
    check_same(folder, upload)
    number = 0
    for each in upload.files:
        for start in range(0, max(each.size_bytes, 1), upload.part_bytes):
            size = min(upload.part_bytes, each.size_bytes - start)
            yield _model_part(number, folder / each.file, start, size)
            number += 1


def _model_part(number: int, path: Path, start: int, size: int) -> OutgoingPart:
    def pieces() -> Iterator[bytes]:
        left = size
        try:
            with path.open("rb") as file:
                file.seek(start)
                while left and (piece := file.read(min(left, MESSAGE_BYTES))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be read ({error.strerror}): make it readable."
            ) from error

    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    return OutgoingPart(number, digest.digest(), size, pieces)
