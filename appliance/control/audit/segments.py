"""The files of the audit log: the segment that grows, its signed checkpoints, and closed segments.

Rules kept here:
* files only grow; a segment is named after its first record. It is closed at 65,536 records
  (`closed`), and then the file of checkpoints begins anew with the one over all of them: what a
  start reads is one segment and its checkpoints, however old the log is;
* `append` and `append_note` return when the bytes are durable (fdatasync), and a new file is
  durable in its folder before a record in it counts;
* opening cuts off a torn end: bytes after the last line end, or after a hole of zeros that a power
  cut left. Such bytes were never acknowledged; had they been, the checkpoints would say so;
* reading uses positions kept in memory, so that a page from the middle costs one seek;
* `check` compares the files that are written and the folder with what this process wrote
  (`growing_file`), and once a second some closed segments too: its cost does not grow with the log;
* `roll_back` brings them back to that after a failed write, and proves it by the chain.

Called by `appliance.control.audit.log` alone, which writes from one thread.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance.control.audit.closed import (
    Closed,
    files_of,
    first_of,
    line_starts,
    write,
)
from appliance.control.audit.growing_file import MIN_RESERVE, GrowingFile, Reserve, file_identity
from appliance.core.errors import Tampered
from appliance.core.files import make_private_dir, named_streams, sync_dir
from appliance.crypto import chain
from appliance.crypto.chain import CHECKPOINTS, Grown, segment_name
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.proofs import notes_of, size_of
from appliance.crypto.signing import VerifyKey

SEGMENT_RECORDS = 1 << 16
LOOK_SECONDS = 1.0
"""Time between two looks at closed segments."""
RESERVE = "reserve"
_PREVIOUS = re.compile(rb'"previous":"([0-9a-f]{64})"')


class _OpenPart(NamedTuple):
    """The segment that grows, as readers in other threads take it: all of it, or the next one."""

    first: int
    starts: array[int]
    path: Path | None


class Segments:
    """The open files of one log.

    Args:
        folder: made private if it is new.
        key: of the checkpoints.
        origin: name of the log in its checkpoints.
        segment_records: a segment that has so many gets no further line; None: 65,536.
        reserve_bytes: of room that is kept for a full disk, where there is as much.

    Raises Tampered when what is closed is not complete, or not what was signed.
    """

    def __init__(
        self,
        folder: Path,
        key: VerifyKey,
        origin: str,
        *,
        segment_records: int | None = None,
        reserve_bytes: int = MIN_RESERVE,
    ) -> None:
        self.folder = make_private_dir(folder)
        self._key, self._origin = key, origin
        self._segment_records = SEGMENT_RECORDS if segment_records is None else segment_records
        for left in folder.glob(".*.tmp"):
            left.unlink()
        self.closed = Closed(folder, key, origin)
        end = self.closed.end.size
        self._unclosed = [path for path in files_of(folder) if first_of(path) >= end]
        """One, or as many as 0.1.0 has left."""
        self._open_part = _OpenPart(end, array("Q"), None)
        self._looked = -LOOK_SECONDS
        self._last: GrowingFile | None = None
        self._repair()
        self._notes = self._open(self.folder / CHECKPOINTS)
        self._home = file_identity(self.folder)
        self.reserve = Reserve(self.folder / RESERVE, reserve_bytes, MIN_RESERVE)

    @property
    def is_full(self) -> bool:
        """Whether the open segment is to be closed before another record."""
        return len(self._open_part.starts) >= self._segment_records

    @property
    def room(self) -> int:
        """How many records come before the next closing, when a full segment is closed first."""
        return self._segment_records - (0 if self.is_full else len(self._open_part.starts))

    def verified(self, known: Mapping[int, bytes]) -> Grown:
        """The log to go on with.

        Args:
            known: sizes and roots that were seen before by somebody else.

        Raises Tampered, with the name of the first bad record, or Stale.
        """
        closed, roots = self.closed, dict[int, bytes]()
        for size, root in known.items():
            if size >= closed.end.size:
                roots[size] = root
            elif closed.root_at(size) not in {root, None}:
                self._verify_segment_of(size)
                raise chain.another_log(size, self._origin)
        base, notes = closed.end, self.notes()
        newest = max(notes, key=size_of, default=None)
        if newest is None or size_of(newest) <= base.size:
            # Nothing that is signed follows: the next record is linked to the last one there.
            self._verify_segment_of(base.size - 1)
        tail = [(path.name, path) for path in self._unclosed]
        try:
            return chain.grow(
                *(named_streams(tail), newest, self._key, self._origin),
                known=roots,
                base=base,
                previous=closed.last_leaf(),
            )
        except Tampered:
            chain.verify(named_streams(tail), notes, self._key, self._origin, base=base)
            raise

    def _verify_segment_of(self, record: int) -> None:
        segment = self.closed.segment_of(record)
        if segment is not None:
            self.closed.verify(segment)

    def close_older(self, grown: Grown, sign: Callable[[Tree], bytes]) -> None:
        """Close segments that another follows, as a log of 0.1.0 has them when it is opened first.

        Args:
            grown: what the verification of `tail` found.
            sign: makes the checkpoint of a tree.

        Raises OSError; what is closed by then stays closed.
        """
        ends, notes = grown.ends[:-1], self.notes() if len(grown.ends) > 1 else []
        for end in ends:
            self.closed.add(self._unclosed[0], end, notes, sign(end))
            del self._unclosed[0]
        if ends:
            self._begin_notes(self.closed.end.size)

    def close_segment(self, tree: Tree, note: bytes) -> None:
        """Close the open segment.

        Args:
            tree: of all records.
            note: the signed checkpoint over it.

        Raises OSError; then the segment is open, or it is closed but for the checkpoints of before.
        """
        if self._last is None or not self._open_part.starts:
            return
        self.append_note(note)
        self.closed.add(self._last.path, tree, self.notes(), note)
        self._last.close()
        self._last = None
        self._unclosed.clear()
        self._open_part = _OpenPart(tree.size, array("Q"), None)
        self._begin_notes(tree.size)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, given without line ends, and make them durable.

        Raises OSError, after which `roll_back` comes first, or Tampered.
        """
        if self._last is None:
            self._last = self._begin()
        start = self._last.size
        self._last.append(b"\n".join(lines) + b"\n")
        for line in lines:
            self._open_part.starts.append(start)
            start += len(line) + 1

    def append_note(self, note: bytes) -> None:
        """Write a signed checkpoint and make it durable. Raises as `append` does."""
        self._notes.append(note + b"\n")

    def check(self) -> None:
        """Raise Tampered when a file is not what was written, or not in its place any more."""
        home = file_identity(self.folder)
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
            self.closed.check_some()
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
        """The signed checkpoints of the open segment, oldest first."""
        return notes_of((self.folder / CHECKPOINTS).read_bytes())

    def lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Lines of the records `start` to before `stop`, all of them here, without line ends."""
        first, starts, path = self._open_part
        yield from self.closed.lines(start, min(stop, first))
        start = max(start, first)
        if start < stop and path is not None:
            with path.open("rb") as stream:
                stream.seek(starts[start - first])
                for _ in range(start, stop):
                    yield stream.readline().rstrip(b"\n")

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
        first = self._open_part.first
        path = self.folder / segment_name(first)
        file = self._open(path)
        self._unclosed.append(path)
        self._open_part = _OpenPart(first, array("Q"), path)
        return file

    def _begin_notes(self, size: int) -> None:
        """Keep only checkpoints from this size on: earlier ones stand in proofs. Raises OSError."""
        kept = [note for note in self.notes() if size_of(note) >= size]
        path = self.folder / CHECKPOINTS
        try:
            write(path, b"".join(note + b"\n" for note in kept))
        finally:
            # Also when it is in its place, and not known to be durable there.
            found = file_identity(path)
            if found is not None and found.inode != self._notes.known.inode:
                new = GrowingFile(path)
                self._notes.close()
                self._notes = new

    def _repair(self) -> None:
        """Cut torn ends off, note where each line begins, go on in the newest segment."""
        notes = self.folder / CHECKPOINTS
        if notes.exists():
            _cut(notes, sum(len(note) + 1 for note in notes_of(notes.read_bytes())))
        if not self._unclosed:
            return
        path = self._unclosed[-1]
        data = path.read_bytes()
        hole = data.find(b"\0")
        whole = data.rfind(b"\n", 0, hole if hole >= 0 else None) + 1
        _cut(path, whole)
        self._open_part = _OpenPart(first_of(path), line_starts(data[:whole]), path)
        self._last = self._open(path)


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        with path.open("r+b") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())
