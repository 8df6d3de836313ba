"""What becomes of calls, on this gateway's disk until it is in the audit chain.

Rules kept here:
* a call is written down before its request goes to a replica, and again when it has ended: a
  process that is killed at any moment loses none, and a call without an end is told as interrupted;
* a call has its number from its beginning, in each life of the process (its boot) from 1 on; so a
  report that is repeated counts once, whoever sends it, and a number that is missing is missed;
* what was written is made durable in groups, a twentieth of a second later: a power cut takes what
  was written in the last 100 ms, on a slow disk in the last second. When the disk takes longer than
  that, new calls are refused until it has caught up;
* there is room for the end of each call that was begun, and nothing else takes it: a full disk
  refuses new calls and loses no old one;
* a file is deleted when everything that it alone holds is in the audit chain: calls that go on are
  written down again at the beginning of the next file;
* after a disk has failed nothing more is written: what it kept is unknown. What ends is reported
  from memory.

Written and read by this user alone: names, times and numbers, never text. There is no signature:
whoever can write here can take the gateway's identity beside it; entries that are missing are
noticed by their numbers (`control.services.serving.usage`).

The attack: kill the gateway in order to have asked unseen. Called by `usage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable, FailedPrecondition
from appliance.core.files import make_private_dir, open_private
from appliance.gateway.boots import (
    Boot,
    Entry,
    HeldFile,
    Usage,
    delete,
    file_name,
    left_in,
    recovered,
)
from appliance.gateway.frames import Frame, FrameFile, FrameKind

logger = logging.getLogger(__name__)

FILE_BYTES = 4 << 20
SYNC_SECONDS = 0.05
LOOK_SECONDS = 0.5
"""Time between two looks for room, when there was none."""
SLOWEST_SECONDS = 1.0
END_BYTES = 1024
"""Room that is kept for the end of a call: names and reasons are bounded, and shorter."""
LOCK = "lock"


class Spool:
    """Calls and counts of this process, and what those before have left.

    Args:
        folder: made private if it is new; used by one process at a time.
        file_bytes: size of a file.
        clock: seconds that only rise.

    Raises FailedPrecondition when another process uses the folder, OSError when it cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._file_bytes, self._clock = make_private_dir(folder), file_bytes, clock
        self._lock = _locked(folder)
        self.older: list[Boot] = []
        """Processes of before with something to report, the oldest first."""
        left, self._before = left_in(folder)
        for name, paths in left.items():
            boot = recovered(name, paths)
            if boot.newest:
                self.older.append(boot)
            else:
                delete(boot.files)
        self._boot = Boot(secrets.token_hex(8))
        self._begun: dict[int, bytes] = {}
        """What was written of calls that have not ended."""
        self._made = 0
        self._cramped = False
        self._dirty: float | None = None
        self._failed = ""
        self._current: FrameFile | None = None
        self._next: FrameFile | None = None
        self._old: list[FrameFile] = []
        self._wanted = asyncio.Event()
        self._syncing = asyncio.Lock()
        self._make_next()
        self._go_on()

    def __len__(self) -> int:
        """Entries of this process that wait to be reported."""
        return len(self._boot.waiting)

    @property
    def left(self) -> int:
        """Entries of processes of before that wait."""
        return sum(len(boot.waiting) for boot in self.older)

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
        number, message = self._boot.newest + 1, usage.SerializeToString()
        frame = Frame(FrameKind.BEGIN, number, message).packed()
        if not self._has_room(len(frame) + END_BYTES):
            raise AuditUnavailable(
                "the disk of the gateway has no room to record calls: repeat the request later",
                retry_after=5.0,
            )
        self._write(number, frame)
        self._boot.newest = number
        self._begun[number] = message
        return number

    def end(self, usage: Usage, call: int) -> None:
        """A call has ended; `call` is what `begin` gave."""
        del self._begun[call]
        self._boot.waiting[call] = Entry(number=call, usage=usage)
        frame = Frame(FrameKind.END, call, usage.SerializeToString()).packed()
        try:
            self._write(call, frame)
        except AuditUnavailable as error:
            logger.warning("the end of a call is not on the disk, but will be told: %s", error)

    def add(self, entry: Entry) -> bool:
        """Something else that is told once, such as a refused call; False when there is no room."""
        number = self._boot.newest + 1
        usage = entry.HasField("usage")
        message = (entry.usage if usage else entry.refusals).SerializeToString()
        frame = Frame(FrameKind.END if usage else FrameKind.REFUSALS, number, message).packed()
        if self._failed or not self._has_room(len(frame)):
            return False
        try:
            self._write(number, frame)
        except AuditUnavailable:
            return False
        self._boot.newest = entry.number = number
        self._boot.waiting[number] = entry
        return True

    @property
    def has_ample_room(self) -> bool:
        """Whether there is room for some hundred entries."""
        return not self._failed and self._has_room(64 * END_BYTES)

    def waits(self, number: int) -> bool:
        """Whether an entry of this process is not in the audit chain yet."""
        return number in self._boot.waiting

    def batch(self, most: int) -> routing_service_pb2.ReportUsageRequest | None:
        """What is to be reported next; None when there is nothing."""
        boot = self.older[0] if self.older else self._boot
        entries = list(itertools.islice(boot.waiting.values(), most))
        if not entries and boot is self._boot:
            return None
        request = routing_service_pb2.ReportUsageRequest(boot=boot.name, entries=entries)
        if boot is not self._boot and len(entries) == len(boot.waiting):
            request.last = boot.newest
        return request

    def last_batch(self) -> routing_service_pb2.ReportUsageRequest | None:
        """What says that this process has no more to tell; None when it has, or never had."""
        if not self._boot.newest or self._boot.waiting or self._begun or self.older:
            return None
        return routing_service_pb2.ReportUsageRequest(boot=self._boot.name, last=self._boot.newest)

    async def reported(self, request: routing_service_pb2.ReportUsageRequest) -> None:
        """A batch is in the audit chain: forget it, and delete files that hold nothing more."""
        over: list[HeldFile] = []
        for boot in [boot for boot in (*self.older, self._boot) if boot.name == request.boot]:
            boot.reported(entry.number for entry in request.entries)
            if request.last:
                # It has told everything.
                over += boot.files
                boot.files = []
            else:
                over += boot.over(self._boot.files[-1:])
            self.older = [each for each in self.older if each is not boot or boot.files]
        await asyncio.to_thread(delete, over)

    def set_aside(self, request: routing_service_pb2.ReportUsageRequest) -> None:
        """Report a boot no more in this process: the control plane does not understand it."""
        self.older = [boot for boot in self.older if boot.name != request.boot]

    async def run(self) -> None:
        """Make durable what was written, group by group, and room for more, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if self._lacks_room else None):
                    await self._wanted.wait()
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()

    async def sync(self) -> None:
        """Make everything durable that was written before this call, and room for more."""
        async with self._syncing:
            self._wanted.clear()
            if self._failed:
                return
            began, old = self._clock(), list(self._old)
            carried = [(file, set(file.carried)) for file in self._boot.files]
            files = [*old, *([self._current] if self._current else [])]
            work = asyncio.ensure_future(asyncio.to_thread(self._sync, files))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                # The thread goes on: nobody may close its files before it has ended.
                await asyncio.gather(work, return_exceptions=True)
                raise
            except OSError as error:
                self._fail(error)
                return
            for file in old:
                self._old.remove(file)
                file.close()
            self._carry_over(carried)
            # What was written meanwhile waits since then, at the earliest.
            self._dirty = began if self._wanted.is_set() else None
            self._go_on()

    def close(self) -> None:
        """Close the files. What was not reported stays, for the next process."""
        for file in (*self._old, self._current, self._next):
            if file is not None:
                file.close()
        if self._next is not None:
            delete([HeldFile(self._next.path)])
        os.close(self._lock)

    @property
    def _lacks_room(self) -> bool:
        return self._next is None and (
            self._current is None or self._current.room < self._file_bytes // 2
        )

    def _sync(self, files: list[FrameFile]) -> None:
        """In a thread."""
        for file in files:
            file.sync()
        if self._lacks_room:
            self._make_next()

    def _make_next(self) -> None:
        name = file_name(self._before, self._boot.name, self._made + 1)
        try:
            self._next = FrameFile(self._folder / name, self._file_bytes)
        except OSError as error:
            if not self._cramped:
                logger.warning("no room for calls to come: %s", error.strerror)
            self._cramped = True
        else:
            self._made += 1
            self._cramped = False

    def _go_on(self) -> None:
        """Take the next file when there is no other."""
        if self._current is None and self._next is not None:
            self._current, self._next = self._next, None
            self._boot.files.append(HeldFile(self._current.path))

    def _carry_over(self, carried: list[tuple[HeldFile, set[int]]]) -> None:
        """What calls have in files before one that is durable now is not needed any more."""
        before: list[HeldFile] = []
        for file, calls in carried:
            for earlier in before:
                earlier.pending -= calls
            file.carried -= calls
            before.append(file)

    def _has_room(self, size: int) -> bool:
        """Whether so much fits, and the ends of all that were begun."""
        if self._current is None:
            return False
        ends = len(self._begun) * END_BYTES
        return self._current.room >= size + ends or self._next is not None

    def _write(self, number: int, frame: bytes) -> None:
        file = None if self._failed else self._file_for(len(frame))
        if file is None:
            raise AuditUnavailable(self._failed or "there is no room")
        # Those that go on: what the files before have of them may be deleted, later.
        carried = {} if file.used else dict(self._begun)
        begun = [Frame(FrameKind.BEGIN, *each).packed() for each in carried.items()]
        try:
            file.write(b"".join([*begun, frame]))
        except OSError as error:
            self._fail(error)
            raise AuditUnavailable(self._failed) from error
        held = self._boot.files[-1]
        held.pending |= {number, *carried}
        held.carried |= carried.keys()
        if self._dirty is None:
            self._dirty = self._clock()
        self._wanted.set()

    def _file_for(self, size: int) -> FrameFile | None:
        """The current file, or the next one when it is full; None when there is none."""
        if self._current is not None and self._current.room < size and self._next is not None:
            self._old.append(self._current)
            self._current = None
            self._go_on()
        current = self._current
        return current if current is not None and current.room >= size else None

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            self._failed = (
                f"the disk of the gateway failed ({error.strerror}), so calls cannot be recorded: "
                "repair it, then restart the gateway"
            )
            logger.critical("%s", self._failed)


def _locked(folder: Path) -> int:
    descriptor = open_private(folder / LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FailedPrecondition(
            f"another gateway uses {folder}: stop it first, or give each a `state` of its own",
            path=folder,
        ) from error
    return descriptor
