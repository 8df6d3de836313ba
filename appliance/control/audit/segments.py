"""The files of the audit log: segments of lines, and the signed checkpoints beside them.

Rules kept here:
* files only grow; a segment is named after its first record and a new one begins when it is full;
* `append` and `append_note` return when the bytes are durable (fdatasync), and a new file is
  durable in its folder before a record in it counts;
* opening cuts off a torn end: bytes after the last line end, or after a hole of zeros that a power
  cut left. Such bytes were never acknowledged; had they been, the checkpoints would say so;
* reading uses positions kept in memory, so that a page from the middle costs one seek;
* `check` compares the files that are written and the folder with what this process wrote
  (`growing`), and once a second the closed segments too: what it costs does not grow with the log;
* `roll_back` brings them back to that after a failed write, and proves it by the chain.

Called by `appliance.control.audit.log` alone, which writes from one thread.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from appliance.control.audit.growing import GrowingFile, Look, Reserve, expect, look_at
from appliance.core.errors import Tampered
from appliance.core.files import make_private_dir, sync_dir
from appliance.crypto.chain import CHECKPOINTS, LOG_SUFFIX, leaf_hash, notes_of, segment_name

SEGMENT_BYTES = 64 << 20
LOOK_SECONDS = 1.0
"""Time between two looks at the closed segments, which are as many as the log is old."""
RESERVE = "reserve"
RESERVE_BYTES = 4 << 20
_PREVIOUS = re.compile(rb'"previous":"([0-9a-f]{64})"')


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
        self._closed: list[tuple[Path, Look]] = []
        self._looked = -LOOK_SECONDS
        self._size = 0
        self._last: GrowingFile | None = None
        self._repair()
        self._notes = self._open(self.folder / CHECKPOINTS)
        self._home = look_at(self.folder)
        self.reserve = Reserve(self.folder / RESERVE, RESERVE_BYTES)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, given without line ends, and make them durable.

        Raises OSError, after which `roll_back` comes first, or Tampered.
        """
        if self._last is None or self._last.size >= self._segment_bytes:
            self._last = self._begin()
        start = self._last.size
        self._last.append(b"\n".join(lines) + b"\n")
        for line in lines:
            self._starts[-1].append(start)
            start += len(line) + 1
        self._size += len(lines)

    def append_note(self, note: bytes) -> None:
        """Write a signed checkpoint and make it durable. Raises as `append` does."""
        self._notes.append(note + b"\n")

    def check(self) -> None:
        """Raise Tampered when a file is not what was written, or not in its place any more."""
        home = look_at(self.folder)
        if home is None or self._home is None or home.inode != self._home.inode:
            raise Tampered(
                f"the folder {self.folder.name} was removed or replaced while the control plane "
                "used it",
                object=self.folder.name,
            )
        for file in (self._last, self._notes):
            if file is not None:
                file.check()
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            for path, known in self._closed:
                expect(path, known)
            self._looked = now

    def roll_back(self, previous: str) -> None:
        """After a failed write: bring every file back to what was durable, and prove it.

        Args:
            previous: leaf hash of the last durable record, hexadecimal.

        Raises:
            OSError: the disk does not even take this.
            Tampered: what the disk has is not the chain up to `previous`.
        """
        self._notes.roll_back()
        if self._last is not None:
            self._last.roll_back()
            self._prove(self._last.path, previous)

    def _prove(self, path: Path, previous: str) -> None:
        """Follow the links of the open segment, as it is on the disk, to the last record."""
        leaf = b""
        with path.open("rb") as stream:
            for line in stream:
                # The last one: `details` come first and may have a member of this name.
                named = _PREVIOUS.findall(line)
                if not named or (leaf and named[-1] != leaf):
                    raise Tampered(f"{path.name} is not what was written", object=path.name)
                leaf = leaf_hash(line.removesuffix(b"\n")).hex().encode()
        if leaf and leaf.decode() != previous:
            raise Tampered(f"{path.name} does not end as it was written", object=path.name)

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
        for file in (self._last, self._notes):
            if file is not None:
                file.close()

    def _open(self, path: Path) -> GrowingFile:
        file = GrowingFile(path)
        sync_dir(self.folder)
        return file

    def _begin(self) -> GrowingFile:
        """Start a new segment, named after the record that comes next. Raises OSError."""
        path = self.folder / segment_name(self._size)
        file = self._open(path)
        if self._last is not None:
            self._last.close()
            self._closed.append((self._last.path, self._last.known))
        self._first.append(self._size)
        self._paths.append(path)
        self._starts.append(array("Q"))
        return file

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
        for path in paths[:-1]:
            self._closed.append((path, Look.of(path.stat())))
        if paths:
            self._last = self._open(paths[-1])


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
