"""Binary files that count, run full or give little at a time; sealed files in memory."""

import errno
import io
from typing import TYPE_CHECKING

from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.sealed_writer import SealedWriter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class CountingFile(io.BytesIO):
    """Knows which parts of it were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        start = self.tell()
        count = super().readinto(buffer)
        self.reads.append((start, count))
        return count

    def read_behind(self, offset: int) -> int:
        """Bytes that were read at or behind an offset."""
        return sum(max(0, start + count - max(start, offset)) for start, count in self.reads)


class SmallPieces(io.BytesIO):
    """Takes and gives at most seven bytes at a time, as an unbuffered file may."""

    def write(self, data: "ReadableBuffer", /) -> int:
        return super().write(memoryview(data)[:7])

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        return super().readinto(memoryview(buffer)[:7])


class FullDisk:
    """Takes a number of bytes, then there is no space left."""

    def __init__(self, space: int) -> None:
        self.space = space
        self.data = bytearray()

    def write(self, data: memoryview, /) -> int:
        if len(self.data) + len(data) > self.space:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += data
        return len(data)


def seal_bytes(data: bytes, key: bytes, place: SealedPlace) -> bytes:
    """A whole sealed file in memory."""
    raw = io.BytesIO()
    with SealedWriter(raw, key, place) as writer:
        writer.write(data)
    return raw.getvalue()


def open_bytes(blob: bytes, key: bytes, place: SealedPlace) -> bytes:
    """The plaintext of a whole sealed file in memory; raises as `SealedReader` does."""
    with SealedReader(io.BytesIO(blob), key, place) as reader:
        return reader.read()
