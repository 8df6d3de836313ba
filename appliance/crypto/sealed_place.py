"""Where a sealed file belongs: the project, object and file name that it is bound to.

A sealed file is `SLE1 | header length (4 bytes, big endian) | header | FLOE stream`. The header is
RFC 8785 JSON `{"file", "object", "project"}`, its SHA-256 the associated data of the stream.

Rule kept here: a place is compared as bytes. The header of a stored file is never parsed, so there
is nothing in it that an attacker could make a reader believe.

Called by `appliance.crypto.sealed_writer`, `sealed_reader` and `artifacts`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import rfc8785

from appliance.core.errors import InvalidInput, Tampered

MAGIC = b"SLE1"
LENGTH_SIZE = 4
MAX_HEADER = 4096


@dataclass(frozen=True)
class SealedPlace:
    """Where a ciphertext belongs.

    The reader supplies the place it expects; a file of another place is refused.
    """

    project: str
    object: str
    file: str

    def __post_init__(self) -> None:
        """Refuse an incomplete place, and names that make the header longer than 4096 bytes."""
        if not (self.project and self.object and self.file) or len(self.header()) > MAX_HEADER:
            raise InvalidInput("A place needs a project, an object and a file, with short names.")

    def __str__(self) -> str:
        """For messages."""
        return f"file {self.file} of object {self.object} in project {self.project}"

    def header(self) -> bytes:
        """RFC 8785 JSON of the place."""
        return rfc8785.dumps({"file": self.file, "object": self.object, "project": self.project})

    def prefix(self) -> bytes:
        """What a sealed file of this place begins with: magic, header length, header."""
        header = self.header()
        return MAGIC + len(header).to_bytes(LENGTH_SIZE, "big") + header

    def aad(self) -> bytes:
        """The associated data of the stream: SHA-256 of the header."""
        return hashlib.sha256(self.header()).digest()

    def tampered(self, why: Tampered | str) -> Tampered:
        """The error that names this place."""
        return Tampered(
            f"The {self} is refused: {why}. Restore it from a backup or make the object again.",
            project=self.project,
            object=self.object,
            file=self.file,
        )
