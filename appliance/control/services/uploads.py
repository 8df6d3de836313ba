"""Documents on their way into a sealed dataset version: checked one by one, written in parts.

A version has files `part-00000.jsonl` of about 64 MiB, each line one document as
`{"id", "text", "source"}`. Rules kept here:
* a document has an id that no other document of the upload has; sizes are limited;
* text goes from memory into a sealed file, never into a file in clear, a log or an error message.

The attack: an id with control characters that splits a line, an upload of one endless document.
Called by `services.datasets`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from appliance.api.data.v1.dataset_service_pb2 import Document
from appliance.core.errors import Exhausted, InvalidInput
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.crypto.artifacts import ArtifactWriter
from appliance.crypto.sealed import SealedWriter

PART_BYTES = 64 << 20
LARGEST_TEXT = 3 << 20
LONGEST_ID = 256
LONGEST_SOURCE = 1024
MOST_DOCUMENTS = 10_000_000
_ID_DIGEST = 16


class Documents:
    """Writes the documents of one upload.

    Args:
        writer: of the version.
        part_bytes: plaintext after which the next part begins.
    """

    def __init__(self, writer: ArtifactWriter, *, part_bytes: int = PART_BYTES) -> None:
        self._writer = writer
        self._part_bytes = part_bytes
        self._part: SealedWriter | None = None
        self._parts = 0
        self._written = 0
        self._seen: set[bytes] = set()
        self._digest = hashlib.sha256()

    @property
    def count(self) -> int:
        """Documents so far."""
        return len(self._seen)

    @property
    def digest(self) -> str:
        """SHA-256 over all documents in their order, hex: what a repeat is compared by."""
        return self._digest.hexdigest()

    def add(self, documents: Iterable[Document]) -> None:
        """Check and write documents.

        Raises:
            InvalidInput: one is refused, and with it the upload.
            Exhausted: there are too many, or no space is left.
        """
        for document in documents:
            self._check(document)
            line = json.dumps(
                {"id": document.id, "text": document.text, "source": document.source},
                ensure_ascii=False,
            ).encode()
            self._write(line + b"\n")

    def close(self) -> None:
        """End the last part. Raises InvalidInput when there was no document."""
        if not self._seen:
            raise InvalidInput(
                "the upload holds no document: send at least one", fields={"documents": "is empty"}
            )
        if self._part is not None:
            self._part.close()
            self._part = None

    def abort(self) -> None:
        """Drop the part that is open."""
        if self._part is not None:
            self._part.abort()
            self._part = None

    def _check(self, document: Document) -> None:
        where = f"documents[{self.count}]"
        identifier = document.id
        if not 0 < len(identifier) <= LONGEST_ID or not identifier.isprintable():
            raise _wrong(f"{where}.id", f"must be 1 to {LONGEST_ID} printable characters")
        size = len(document.text.encode())
        if size > LARGEST_TEXT:
            raise _wrong(
                f"{where}.text",
                f"of {shown(identifier)} has {written(size)} bytes; split it, "
                f"{written(LARGEST_TEXT)} are allowed",
            )
        if len(document.source) > LONGEST_SOURCE:
            raise _wrong(f"{where}.source", f"is longer than {LONGEST_SOURCE} characters")
        if self.count >= MOST_DOCUMENTS:
            raise Exhausted(
                f"an upload holds at most {written(MOST_DOCUMENTS)} documents; make two of it"
            )
        digest = hashlib.blake2b(identifier.encode(), digest_size=_ID_DIGEST).digest()
        if digest in self._seen:
            raise _wrong(f"{where}.id", f"{shown(identifier)} was used before in this upload")
        self._seen.add(digest)

    def _write(self, line: bytes) -> None:
        self._digest.update(line)
        if self._part is not None and self._written + len(line) > self._part_bytes:
            self._part.close()
            self._part = None
        if self._part is None:
            self._part = self._writer.create(f"part-{self._parts:05d}.jsonl")
            self._parts += 1
            self._written = 0
        self._part.write(line)
        self._written += len(line)


def _wrong(field: str, why: str) -> InvalidInput:
    return InvalidInput(f"{field} {why}.", fields={field: why})
