"""Reads the log of one work from its files, also while it is written (`node.logs`).

Rules kept here:
* a line is known by its number, so what is read twice, or again after a cut, is told once, and what
  is missing shows as a gap;
* of what waits the newest `max_bytes` are enough: whoever reads more slowly than a work writes
  misses lines, and never holds up the work;
* the newer of the two files becomes the older one at any moment.

Blocks on the disk; called by `node.log_reads`, in its threads.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.node.logs import TIME

CHUNK_BYTES = 1 << 16
_HEAD = re.compile(rb"(\d{1,18}) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (-|\d{1,9}) ")


@dataclass(frozen=True)
class Line:
    """One line; without a time when an agent of release 0.1.0 has written it."""

    number: int
    rank: int | None
    time: datetime | None
    text: str


class LogFiles:
    """Reads the lines of one work, oldest first.

    Args:
        folder: of the run.
        after: number of the newest line that is known already.
        max_bytes: of lines that are worth reading.
    """

    def __init__(self, folder: Path, after: int, max_bytes: int) -> None:
        self._newer, self._older = folder / "log", folder / "log.1"
        self._newest = after
        self._max_bytes = max_bytes
        self._file: io.FileIO | None = None
        self._rest = b""
        self._skips = False

    def read(self) -> tuple[list[Line], bool]:
        """Some lines that were not read before, and whether more wait.

        Raises FileNotFoundError when there is no log (any more), OSError.
        """
        if self._file is None or self._is_far_behind(self._file):
            self._begin()
        data = self._next()
        lines, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        found = lines.split(b"\n") if newline else []
        if self._skips and found:
            # It began inside a line.
            self._skips = False
            del found[0]
        fresh = []
        for each in found:
            line = self._line(each)
            if line.number > self._newest:
                self._newest = line.number
                fresh.append(line)
        return fresh, bool(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> io.FileIO:
        """Open the file in which the newest `max_bytes` begin, there."""
        size = self._newer.stat().st_size
        path, back = self._newer, self._max_bytes
        if size < self._max_bytes:
            with contextlib.suppress(FileNotFoundError):
                size, path = self._older.stat().st_size, self._older
                back = self._max_bytes - self._newer.stat().st_size
        file, place = self._open(path), max(0, size - back)
        file.seek(place)
        self._skips = place > 0
        return file

    def _next(self) -> bytes:
        """The next bytes; none when all was read."""
        file = self._file
        if file is None:
            raise FileNotFoundError(self._newer)
        if data := file.read(CHUNK_BYTES):
            return data
        mine = os.fstat(file.fileno()).st_ino
        if self._newer.stat().st_ino == mine:
            return b""
        if data := file.read(CHUNK_BYTES):  # written before it became the older one
            return data
        with contextlib.suppress(FileNotFoundError):
            if self._older.stat().st_ino == mine:
                return self._open(self._newer).read(CHUNK_BYTES)
        return self._begin().read(CHUNK_BYTES)

    def _is_far_behind(self, file: io.FileIO) -> bool:
        return os.fstat(file.fileno()).st_size - file.tell() > self._max_bytes

    def _open(self, path: Path) -> io.FileIO:
        self.close()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = io.FileIO(os.open(path, flags), "r")
        self._rest, self._skips = b"", False
        return self._file

    def _line(self, line: bytes) -> Line:
        head = _HEAD.match(line)
        moment = _moment(head[2].decode()) if head else None
        if head is None or moment is None:
            # Of an agent of release 0.1.0, or what a full disk took half of.
            return Line(self._newest + 1, None, None, line.decode(errors="replace"))
        rank = None if head[3] == b"-" else int(head[3])
        return Line(int(head[1]), rank, moment, line[head.end() :].decode(errors="replace"))


def _moment(text: str) -> datetime | None:
    """The time of a head; None for one that is none, which a work has written itself."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
