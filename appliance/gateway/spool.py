"""What becomes of calls, on this gateway's disk until it is in the audit chain.

Rules kept here:
* a call is written down before its request goes to a replica, and again when it has ended: a
  process that is killed at any moment loses none, and a call without an end is told as interrupted;
* what was written is made durable in groups, a twentieth of a second later: a power cut takes what
  was written in the last 100 ms at most. When the disk takes longer than a second for that, new
  calls are refused until it has caught up;
* there is room for the end of each call that was begun: a full disk refuses new calls and loses no
  old one;
* entries are numbered from 1 on in each life of the process (its boot), without a gap, and reported
  once they are durable; a report that is repeated counts once;
* a file is deleted when all its entries are in the audit chain: calls that go on are written down
  again at the beginning of the next file;
* after a disk has failed to make something durable nothing more is taken: what it kept is unknown.

Written and read by this user alone: names, times and numbers, never text. There is no signature:
whoever can write here can take the gateway's identity beside it; entries that are missing are
noticed by their numbers (`control.services.usage`).

The attack: kill the gateway in order to have asked unseen. Called by `usage`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable
from appliance.core.files import full_disk_is_exhausted, make_private_dir
from appliance.gateway.frames import Frame, FrameFile, Kind, frames_of

logger = logging.getLogger(__name__)

FILE_BYTES = 4 << 20
SYNC_SECONDS = 0.05
SLOWEST_SECONDS = 1.0
END_BYTES = 1024
"""Room that is kept for the end of a call: names and reasons are bounded, and shorter."""
SUFFIX = ".spool"
INTERRUPTED = "INTERRUPTED"
"""Reason of a call whose gateway ended before it did."""

Usage = routing_service_pb2.Usage
Entry = routing_service_pb2.UsageEntry


@dataclass
class _File:
    """A file, and its newest entry."""

    path: Path
    newest: int = 0


@dataclass
class Boot:
    """What one life of the process has left to report.

    Attributes:
        name: of the boot.
        waiting: entries that were not reported, in their order.
    """

    name: str
    waiting: deque[Entry] = field(default_factory=deque)
    files: list[_File] = field(default_factory=list)

    def reported(self, number: int) -> None:
        """Entries up to this one are in the audit chain: forget them."""
        while self.waiting and self.waiting[0].number <= number:
            self.waiting.popleft()

    def done(self, last: _File | None) -> Iterator[Path]:
        """Files of which everything was reported, but `last`; they are forgotten here."""
        first = self.waiting[0].number if self.waiting else None
        for file in list(self.files):
            if file is not last and (first is None or file.newest < first):
                self.files.remove(file)
                yield file.path


class Spool:
    """Calls and counts of this process, and what those before have left.

    Args:
        folder: made private if it is new.
        file_bytes: size of a file.
        clock: seconds that only rise.

    Raises Exhausted when there is no room for a first file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._file_bytes, self._clock = make_private_dir(folder), file_bytes, clock
        self.boots: list[Boot] = []
        """Those with something to report, the oldest first; the last one is this process."""
        for name, paths in _left(folder).items():
            boot = recovered(name, paths)
            if boot.waiting:
                self.boots.append(boot)
            else:
                _delete(paths)
        self._boot = Boot(secrets.token_hex(8))
        self.boots.append(self._boot)
        self._calls = self._entries = self._durable = self._made = 0
        self._begun: dict[int, bytes] = {}
        """What was written of calls that have not ended."""
        self._dirty: float | None = None
        self._failed = ""
        self._next: FrameFile | None = None
        self._old: list[FrameFile] = []
        with full_disk_is_exhausted(folder):
            self._current, self._file = self._open(self._new_file())
        self._written = asyncio.Event()

    def __len__(self) -> int:
        """Entries that wait to be reported."""
        return sum(len(boot.waiting) for boot in self.boots)

    def check(self) -> None:
        """Raise AuditUnavailable when no call can be begun now."""
        if self._failed:
            raise AuditUnavailable(self._failed)
        if self._dirty is not None and self._clock() - self._dirty > SLOWEST_SECONDS:
            raise AuditUnavailable(
                "the disk of the gateway is too slow to record calls: repeat the request later",
                retry_after=1.0,
            )

    def begin(self, usage: Usage) -> int:
        """A call goes to a replica; its number. Raises AuditUnavailable: then it must not."""
        self.check()
        message = usage.SerializeToString()
        frame = self._begin_frame(self._calls + 1, message)
        if not self._has_room(len(frame)):
            raise AuditUnavailable(
                "the disk of the gateway has no room to record calls: repeat the request later",
                retry_after=5.0,
            )
        self._write(frame)
        self._calls += 1
        self._begun[self._calls] = message
        return self._calls

    def end(self, usage: Usage, call: int = 0) -> None:
        """A call has ended; `call` is what `begin` gave, 0 when it came to no replica."""
        self._add(Kind.END, Entry(usage=usage), usage.SerializeToString(), call)
        self._begun.pop(call, None)

    def count(self, refusals: routing_service_pb2.Refusals) -> int:
        """Calls and connections were refused; the number of the entry."""
        self._add(Kind.REFUSALS, Entry(refusals=refusals), refusals.SerializeToString(), 0)
        return self._entries

    def waits(self, number: int) -> bool:
        """Whether an entry of this process is not in the audit chain yet."""
        waiting = self._boot.waiting
        return bool(waiting) and waiting[0].number <= number

    def batch(self, most: int) -> tuple[str, list[Entry]]:
        """A boot, and what comes next to be reported of it; nothing when nothing can be."""
        for boot in self.boots:
            some = list(itertools.islice(boot.waiting, most))
            if boot is self._boot and not self._failed:
                some = [entry for entry in some if entry.number <= self._durable]
            if some:
                return boot.name, some
        return "", []

    async def reported(self, name: str, number: int) -> None:
        """Entries of a boot are in the audit chain up to this one: delete files without others."""
        over: list[Path] = []
        for boot in [each for each in self.boots if each.name == name]:
            boot.reported(number)
            over += boot.done(self._file if boot is self._boot else None)
            if boot is not self._boot and not boot.waiting:
                self.boots.remove(boot)
        await asyncio.to_thread(_delete, over)

    async def run(self) -> None:
        """Make durable what was written, group by group, until cancelled."""
        while True:
            await self._written.wait()
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()

    async def sync(self) -> None:
        """Make everything durable that was written before this call."""
        self._written.clear()
        began, old, self._old = self._clock(), self._old, []
        entries = self._entries
        try:
            await asyncio.to_thread(self._sync, [*old, self._current])
        except OSError as error:
            self._fail(error)
            return
        for file in old:
            file.close()
        self._durable = entries
        # What was written meanwhile waits since then, at the earliest.
        self._dirty = began if self._written.is_set() else None

    def close(self) -> None:
        """Close the files. What was not reported stays, for the next process."""
        for file in (*self._old, self._current, *([self._next] if self._next else [])):
            file.close()

    def _sync(self, files: list[FrameFile]) -> None:
        """In a thread."""
        for file in files:
            file.sync()
        if self._next is None and self._current.room < self._file_bytes // 2:
            try:
                self._next = self._new_file()
            except OSError as error:
                logger.warning("no room for calls to come: %s", error.strerror)

    def _add(self, kind: Kind, entry: Entry, message: bytes, call: int) -> None:
        entry.number = self._entries + 1
        frame = Frame(kind, entry.number, call, message).packed()
        self._entries = entry.number
        self._boot.waiting.append(entry)
        try:
            self._write(frame)
        except AuditUnavailable as error:
            # It is in memory, and reported from there.
            logger.warning("the end of a call is not on the disk: %s", error)
        self._file.newest = entry.number

    def _begin_frame(self, call: int, message: bytes) -> bytes:
        """It says how many entries there were, so that what follows is not numbered as they are."""
        return Frame(Kind.BEGIN, call, self._entries, message).packed()

    def _has_room(self, size: int) -> bool:
        """Whether a call fits, with the ends of all that were begun."""
        ends = (len(self._begun) + 1) * END_BYTES
        return self._current.room >= size + ends or self._next is not None

    def _write(self, frame: bytes) -> None:
        if self._current.room < len(frame):
            if self._next is None:
                raise AuditUnavailable("there is no room", retry_after=5.0)
            self._old.append(self._current)
            self._current, self._file = self._open(self._next)
            self._next = None
            # Those that go on: what the file before has of them may be deleted.
            begun = [self._begin_frame(call, message) for call, message in self._begun.items()]
            frame = b"".join(begun) + frame
        try:
            self._current.write(frame)
        except OSError as error:
            self._fail(error)
            raise AuditUnavailable(self._failed) from error
        if self._dirty is None:
            self._dirty = self._clock()
        self._written.set()

    def _fail(self, error: OSError) -> None:
        self._failed = (
            f"the disk of the gateway failed ({error.strerror}), so calls cannot be recorded: "
            "repair it, then restart the gateway"
        )
        logger.critical("%s", self._failed)

    def _open(self, file: FrameFile) -> tuple[FrameFile, _File]:
        held = _File(file.path)
        self._boot.files.append(held)
        return file, held

    def _new_file(self) -> FrameFile:
        self._made += 1
        path = self._folder / f"{self._boot.name}-{self._made:06d}{SUFFIX}"
        return FrameFile(path, self._file_bytes)


def _left(folder: Path) -> dict[str, list[Path]]:
    """Files of processes of before by boot, the oldest boot first."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*-*{SUFFIX}"), key=lambda each: each.stat().st_mtime_ns):
        found.setdefault(path.name.partition("-")[0], []).append(path)
    return {name: sorted(paths) for name, paths in found.items()}


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def recovered(name: str, paths: list[Path]) -> Boot:
    """What an ended process has left: its entries, and one for each call that it has not ended.

    The latter are numbered as they would be again: in the order of their calls, after the others.
    """
    boot = Boot(name, files=[_File(path) for path in paths])
    begun: dict[int, bytes] = {}
    number = 0
    for file in boot.files:
        for frame in frames_of(file.path.read_bytes()):
            if frame.kind is Kind.BEGIN:
                begun[frame.number] = frame.message
                number = max(number, frame.call)
                continue
            number = file.newest = frame.number
            begun.pop(frame.call, None)
            entry = Entry(number=frame.number)
            part = entry.usage if frame.kind is Kind.END else entry.refusals
            part.ParseFromString(frame.message)
            boot.waiting.append(entry)
    for call in sorted(begun):
        number += 1
        usage = Usage()
        usage.ParseFromString(begun[call])
        usage.reason = INTERRUPTED
        boot.waiting.append(Entry(number=number, usage=usage))
    boot.files[-1].newest = number
    return boot
