"""Documents on their way into a sealed dataset version: checked one by one, each a line of JSON.

A version has files `part-00000.jsonl`, ..., each line one document as `{"id", "text", "source"}`.
Rules kept here:
* a document has an id that no other document of the upload has; sizes are limited;
* text goes from memory into a sealed file, never into a file in clear, a log or an error message.

The attack: an id with control characters that splits a line, an upload of one endless document.
Called by `services.data.upload_parts` and, for uploads in one stream, by `services.data.datasets`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence

from appliance.api.data.v1.dataset_service_pb2 import Document
from appliance.control.store.document_ids import DocumentIds
from appliance.core.errors import Exhausted, InvalidInput
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.crypto.artifacts import ArtifactWriter
from appliance.crypto.sealed_writer import SealedWriter

PART_BYTES = 64 << 20
MAX_TEXT = 3 << 20
MAX_ID = 256
MAX_SOURCE = 1024
MAX_DOCUMENTS = 10_000_000


def part_file(number: int) -> str:
    """Name of a file of a version of text."""
    return f"part-{number:05d}.jsonl"


def line_of(document: Document) -> bytes:
    """A document as it is stored."""
    value = {"id": document.id, "text": document.text, "source": document.source}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def check(document: Document, where: str) -> None:
    """Raise InvalidInput for a document that is refused.

    Args:
        document: to be judged by itself.
        where: it is, in the request.
    """
    identifier = document.id
    if not 0 < len(identifier) <= MAX_ID or not identifier.isprintable():
        raise wrong(f"{where}.id", f"must be 1 to {MAX_ID} printable characters")
    size = len(document.text.encode())
    if size > MAX_TEXT:
        raise wrong(
            f"{where}.text",
            f"of {shown(identifier)} has {written(size)} bytes; split it, "
            f"{written(MAX_TEXT)} are allowed",
        )
    if len(document.source) > MAX_SOURCE:
        raise wrong(f"{where}.source", f"is longer than {MAX_SOURCE} characters")


def used_before(where: str, identifier: str) -> InvalidInput:
    """The refusal of an id that another document of the upload has."""
    return wrong(f"{where}.id", f"{shown(identifier)} was used before in this upload")


def too_many() -> Exhausted:
    """The refusal of an upload with too many documents."""
    return Exhausted(f"an upload holds at most {written(MAX_DOCUMENTS)} documents; make two of it")


class Documents:
    """Writes the documents of one upload that comes in one stream, in files of about 64 MiB.

    Args:
        writer: of the version.
        part_bytes: plaintext after which the next file begins.
    """

    def __init__(self, writer: ArtifactWriter, *, part_bytes: int = PART_BYTES) -> None:
        self._writer = writer
        self._part_bytes = part_bytes
        self._part: SealedWriter | None = None
        self._parts = 0
        self._written = 0
        self._ids = DocumentIds(None, secrets.token_bytes(32))
        self._digest = hashlib.sha256()
        self.count = 0
        """Documents so far."""

    @property
    def digest(self) -> str:
        """SHA-256 over all documents in their order, hex: what a repeat is compared by."""
        return self._digest.hexdigest()

    def add(self, documents: Sequence[Document]) -> None:
        """Check and write documents.

        Raises:
            InvalidInput: one is refused, and with it the upload.
            Exhausted: there are too many, or no space is left.
        """
        if self.count + len(documents) > MAX_DOCUMENTS:
            raise too_many()
        for place, document in enumerate(documents, self.count):
            check(document, f"documents[{place}]")
        taken = self._ids.add(self.count, [document.id for document in documents])
        if taken is not None:
            raise used_before(f"documents[{self.count + taken}]", documents[taken].id)
        for document in documents:
            self._write(line_of(document))
        self.count += len(documents)

    def close(self) -> None:
        """End the last part. Raises InvalidInput when there was no document."""
        if not self.count:
            raise InvalidInput(
                "the upload holds no document: send at least one", fields={"documents": "is empty"}
            )
        if self._part is not None:
            self._part.close()
            self._part = None

    def abort(self) -> None:
        """Drop the part that is open, and what is only needed meanwhile."""
        self._ids.close()
        if self._part is not None:
            self._part.abort()
            self._part = None

    def _write(self, line: bytes) -> None:
        self._digest.update(line)
        if self._part is not None and self._written + len(line) > self._part_bytes:
            self._part.close()
            self._part = None
        if self._part is None:
            self._part = self._writer.create(part_file(self._parts))
            self._parts += 1
            self._written = 0
        self._part.write(line)
        self._written += len(line)


def wrong(field: str, why: str) -> InvalidInput:
    """The refusal of a field."""
    return InvalidInput(f"{field} {why}.", fields={field: why})
