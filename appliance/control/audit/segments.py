"""The files of the audit log: segments of lines, and the signed checkpoints beside them.

Rules kept here:
* files only grow; a segment is named after its first record and a new one begins when it is full;
* `append` and `append_note` return when the bytes are durable (fdatasync), and a new file is
  durable in its folder before a record in it counts;
* opening cuts off a torn end: bytes after the last line end, or after a hole of zeros that a power
  cut left. Such bytes were never acknowledged; had they been, the checkpoints would say so;
* reading uses positions kept in memory, so that a page from the middle costs one seek.

Called by `appliance.control.audit.log` alone, which writes from one thread.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from appliance.core.files import make_private_dir, sync_dir
from appliance.crypto.chain import CHECKPOINTS, LOG_SUFFIX, notes_of, segment_name

SEGMENT_BYTES = 64 << 20
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def files_of(folder: Path) -> list[Path]:
    """The segments in a folder, in the order of their records."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(LOG_SUFFIX))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Iterator[tuple[str, BinaryIO]]]:
    """The segments of a folder as `chain.verify` takes them."""

    def each() -> Iterator[tuple[str, BinaryIO]]:
        for path in files_of(folder):
            stream = stack.enter_context(path.open("rb"))
            yield path.name, stream
            stream.close()

    with contextlib.ExitStack() as stack:
        yield each()


class Segments:
    """The open files of one log.

    Args:
        folder: made private if it is new.
        segment_bytes: a segment that has reached this size gets no further line.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = make_private_dir(folder)
        self._segment_bytes = segment_bytes
        self._first: list[int] = []
        self._paths: list[Path] = []
        self._starts: list[array[int]] = []
        self._size = 0
        self._bytes = 0
        self._descriptor = -1
        self._repair()
        self._notes = self._open(self.folder / CHECKPOINTS)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, given without line ends, and make them durable. Raises OSError."""
        if self._descriptor < 0 or self._bytes >= self._segment_bytes:
            self._begin()
        self._write(self._descriptor, b"\n".join(lines) + b"\n")
        for line in lines:
            self._starts[-1].append(self._bytes)
            self._bytes += len(line) + 1
        self._size += len(lines)

    def append_note(self, note: bytes) -> None:
        """Write a signed checkpoint and make it durable. Raises OSError."""
        self._write(self._notes, note + b"\n")

    def notes(self) -> list[bytes]:
        """Every signed checkpoint, oldest first."""
        return notes_of((self.folder / CHECKPOINTS).read_bytes())

    def lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Lines of the records `start` to before `stop`, without line ends."""
        while start < stop:
            index = bisect.bisect_right(self._first, start) - 1
            starts = self._starts[index]
            count = min(stop - self._first[index], len(starts))
            with self._paths[index].open("rb") as stream:
                stream.seek(starts[start - self._first[index]])
                while start < self._first[index] + count:
                    yield stream.readline().rstrip(b"\n")
                    start += 1

    def close(self) -> None:
        """Close the files. Everything appended is durable already."""
        for descriptor in (self._descriptor, self._notes):
            if descriptor >= 0:
                os.close(descriptor)

    def _write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fdatasync(descriptor)

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, _APPEND, 0o600)
        sync_dir(self.folder)
        return descriptor

    def _begin(self) -> None:
        """Start a new segment, named after the record that comes next."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        path = self.folder / segment_name(self._size)
        self._descriptor = self._open(path)
        self._first.append(self._size)
        self._paths.append(path)
        self._starts.append(array("Q"))
        self._bytes = 0

    def _repair(self) -> None:
        """Cut torn ends off, note where each line begins, go on in the newest segment."""
        paths = files_of(self.folder)
        notes = self.folder / CHECKPOINTS
        if notes.exists():
            _cut(notes, sum(len(note) + 1 for note in notes_of(notes.read_bytes())))
        for path in paths:
            data = path.read_bytes()
            if path is paths[-1]:
                hole = data.find(b"\0")
                whole = data.rfind(b"\n", 0, hole if hole >= 0 else None) + 1
                _cut(path, whole)
                data = data[:whole]
            self._first.append(self._size)
            self._paths.append(path)
            self._starts.append(_line_starts(data))
            self._size += len(self._starts[-1])
            self._bytes = len(data)
        if paths:
            self._descriptor = self._open(paths[-1])


def _line_starts(data: bytes) -> array[int]:
    starts = array("Q")
    position = 0
    while position < len(data):
        starts.append(position)
        position = data.find(b"\n", position) + 1 or len(data)
    return starts


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        with path.open("r+b") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())
