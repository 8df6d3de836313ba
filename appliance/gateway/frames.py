"""The file of a spool: frames that only follow each other, read up to the first that is not whole.

A frame is its length, the CRC-32 of what follows, its kind, its number and a message. A file is
made as long as it will be at once, so that a full disk is met before a call begins and not when it
has ended; behind the last frame there are zeros.

Rule kept here: what is read is exactly what was written, up to the first frame that a power cut or
a full disk left incomplete; such a frame was never counted on.

Pure but for the file. Called by `spool`.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from appliance.core.files import open_private, sync_dir

_LENGTHS = struct.Struct(">II")
_HEAD = struct.Struct(">BQ")


class FrameKind(IntEnum):
    """What a frame says."""

    BEGIN = 1
    """A call goes to a replica."""
    END = 2
    """A call has ended."""
    REFUSALS = 3
    """What was refused and counted."""


class Frame(NamedTuple):
    """One frame."""

    kind: FrameKind
    number: int
    message: bytes

    def packed(self) -> bytes:
        """As it stands in a file."""
        body = _HEAD.pack(self.kind, self.number) + self.message
        return _LENGTHS.pack(len(body), zlib.crc32(body)) + body


def frames_of(data: bytes) -> Iterator[Frame]:
    """The whole frames at the beginning of a file."""
    place = 0
    while place + _LENGTHS.size <= len(data):
        length, checksum = _LENGTHS.unpack_from(data, place)
        place += _LENGTHS.size
        body = data[place : place + length]
        known = len(body) == length >= _HEAD.size and zlib.crc32(body) == checksum
        if not known or body[0] not in set(FrameKind):
            return
        kind, number = _HEAD.unpack_from(body)
        yield Frame(FrameKind(kind), number, body[_HEAD.size :])
        place += length


def length_of(data: bytes) -> int:
    """How many bytes the whole frames at the beginning of a file take."""
    return sum(_LENGTHS.size + _HEAD.size + len(frame.message) for frame in frames_of(data))


class FrameFile:
    """An open file of frames.

    Args:
        path: of the file, which must be new.
        size: bytes to make room for.

    Raises OSError when there is no such room; then nothing is left.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.used = 0
        self._descriptor = open_private(path, os.O_WRONLY | os.O_EXCL)
        try:
            os.posix_fallocate(self._descriptor, 0, size)
            os.fsync(self._descriptor)
            sync_dir(path.parent)
        except BaseException:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self.size - self.used

    def write(self, data: bytes) -> None:
        """Write frames; they survive this process at once, and the machine after `sync`.

        Raises OSError; what was written of them is written over by the next.
        """
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], self.used + done)
        self.used += len(data)

    def sync(self) -> None:
        """Make all frames durable. Raises OSError."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
