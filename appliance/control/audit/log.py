"""The audit log: append-only, chained, signed, durable before anybody goes on.

Rules kept here:
* a record is durable when its future resolves, and only then; whoever waits for it acts afterwards;
* one thread writes; records that arrive while it waits for the disk are made durable together
  (group commit), so that many callers share one fdatasync;
* a signed checkpoint follows after 256 records or one second, and when the log is closed;
* after a failed write or sync nothing that failed is ever synced again: what the kernel did with
  the bytes is unknown, and a second fsync would lie about it;
* a full disk is waited for: the files are cut back to what was durable, that is asked of the disk
  again, and the log goes on by itself when there is room. Meanwhile results and events use a
  reserve, and everything else is refused. Any other failure is final;
* what it wrote is looked at before each write and each second: once somebody else has removed,
  replaced, cut or changed it, nothing is taken any more;
* a log is verified when it is opened, against its newest checkpoint and what the state database saw
  last: the appliance does not go on when its end, which is not closed yet, was changed while it was
  down, or anything is missing; closed segments are verified later (`checking`).

The attack: acting without a trace by filling the disk or breaking it; changing the log while the
control plane is down, or unlinking it while it runs. Called by the gate, the usage service and the
composition root.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.control.audit import refusals
from appliance.control.audit.archive import Archive
from appliance.control.audit.closed import Closed
from appliance.control.audit.growing_file import MIN_RESERVE
from appliance.control.audit.record import AuditEntry, Prepared, prepare, record_at
from appliance.control.audit.segments import Segments
from appliance.control.audit.written import Written
from appliance.core.errors import AuditUnavailable
from appliance.crypto.signing import SigningKey

CHECKPOINT_RECORDS = 256
CHECKPOINT_SECONDS = 1.0
SIGNING_SECONDS = 10.0
MAX_BATCH = 1024
MAX_QUEUE = 16_384
CHECK_SECONDS = 1.0
RESERVED = frozenset({"result", "event"})
"""Kinds of records that say what has happened already: they may use the reserve."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
_Pending = tuple[Prepared, "Future[int]"]


class AuditLog:
    """An open log. Use `AuditLog.open`; `close` when the process ends."""

    def __init__(  # noqa: PLR0913 - called by `open` alone
        self,
        files: Segments,
        written: Written,
        key: SigningKey,
        leaving: Archive,
        clock: Clock,
        guard: Callable[[], None],
    ) -> None:
        self._files = files
        self._written = written
        self._public_key_pem = key.verify_key.pem()
        self.leaving = leaving
        """For segments that leave."""
        self._clock = clock
        self._guard = guard
        self._full = self._torn = False
        self._changed = threading.Condition()
        self._queue: deque[_Pending] = deque()
        self._failure: Exception | None = None
        self._closing = False
        self._note = b""
        self._covered = -1
        self._wanted = 0
        self._due = 0.0
        self._start()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @classmethod
    def open(  # noqa: PLR0913 - what a log is made of
        cls,
        folder: Path,
        key: SigningKey,
        origin: str,
        clock: Clock,
        *,
        known: Mapping[int, bytes] | None = None,
        guard: Callable[[], None] = lambda: None,
        generation: Callable[[], int] = lambda: 0,
        segment_records: int | None = None,
        reserve_bytes: int = MIN_RESERVE,
    ) -> AuditLog:
        """Open or begin the log in a folder.

        Args:
            folder: of the log alone.
            key: signs the checkpoints.
            origin: name of the log in its checkpoints, such as `appliance/<cluster id>/audit`.
            clock: now, UTC.
            known: sizes and roots that were seen before, such as by the state database.
            guard: raises Tampered when something beside the log is gone without which nothing may
                be acknowledged; asked before each write and each second.
            generation: how many writes of the state were committed; each record says it.
            segment_records: how many records a file holds; None: as many as usual.
            reserve_bytes: of room that is kept for a full disk, where there is as much.

        Raises:
            Tampered: the log was changed while it was closed; Stale when it is an older copy.
            Exhausted: there is no room to close the segments of 0.1.0.
        """
        files = Segments(
            folder,
            key.verify_key,
            origin,
            segment_records=segment_records,
            reserve_bytes=reserve_bytes,
        )
        try:
            written = Written(files, key, origin, known or {}, generation)
        except BaseException:
            files.close()
            raise
        return cls(files, written, key, Archive(files.closed, key, origin), clock, guard)

    def append(self, entry: AuditEntry) -> Future[int]:
        """Record an entry. The future gives its sequence once it is durable.

        It fails with AuditUnavailable when the record cannot be made durable; then whatever it
        announces must not happen. From asyncio: `await asyncio.wrap_future(log.append(entry))`.
        """
        future: Future[int] = Future()
        with self._changed:
            if self._takes(entry.kind):
                # The clock is read under the lock: times rise as sequences do.
                self._queue.append((prepare(entry, self._clock()), future))
                self._changed.notify_all()
                return future
            refusal = self._refusal()
        future.set_exception(refusal)
        return future

    @property
    def trouble(self) -> str:
        """Why nothing can be recorded now, as a sentence; empty when all is well."""
        with self._changed:
            return str(self._refusal()) if self._full or self._failure is not None else ""

    def head(self) -> tuple[int, bytes]:
        """How many records are durable, and the root over them; what the state database notes."""
        return self._written.head

    @property
    def size(self) -> int:
        """How many records are durable."""
        return self._written.head[0]

    @property
    def generation(self) -> int:
        """How many writes of the state its records know of."""
        return self._written.generation

    @property
    def public_key_pem(self) -> bytes:
        """The key that verifies the checkpoints."""
        return self._public_key_pem

    def checkpoint(self) -> tuple[bytes, int]:
        """A signed checkpoint over all that is durable by now, and the number of records it covers.

        When none can be signed any more it is the newest there is.
        """
        with self._changed:
            if not self._full:
                self._wanted = self.size
            self._changed.notify_all()
            self._changed.wait_for(self._is_answered, SIGNING_SECONDS)
            return self._note, self._covered

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._files.folder

    @property
    def closed(self) -> Closed:
        """Its closed segments."""
        return self._files.closed

    @property
    def first(self) -> int:
        """The first record that was not archived."""
        return self._files.closed.first

    def lines(self, start: int, stop: int | None = None) -> Iterator[bytes]:
        """Durable records from `start` to before `stop`, as stored, without line ends.

        Raises FailedPrecondition, also later, when one of them was archived.
        """
        size = self.size
        return self._files.lines(max(start, 0), size if stop is None else min(stop, size))

    def newest(self, before: int | None = None) -> Iterator[dict[str, Any]]:
        """Durable records before a sequence, newest first, parsed.

        One that is damaged hides no other: it has the kind `damaged`, and nothing else.
        """
        end = self.size if before is None else min(before, self.size)
        while end > (first := self.first):
            begin = max(first, end - CHECKPOINT_RECORDS)
            lines = list(self._files.lines(begin, end))
            for sequence in range(end - 1, begin - 1, -1):
                yield record_at(lines[sequence - begin], sequence)
            end = begin

    def close(self) -> None:
        """Make everything appended durable, sign a last checkpoint, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def _takes(self, kind: str) -> bool:
        return (
            self._failure is None
            and not self._closing
            and len(self._queue) < MAX_QUEUE
            and (kind in RESERVED or not self._full)
        )

    def _refusal(self) -> AuditUnavailable:
        if self._failure is not None:
            return refusals.final(self._failure)
        if self._full:
            return AuditUnavailable(refusals.FULL)
        return AuditUnavailable(refusals.CLOSED if self._closing else refusals.BUSY)

    def _start(self) -> None:
        """Hold the reserve and sign what there is; a disk that is full is waited for."""
        try:
            self._files.reserve.take()
            self._sign()
        except OSError as error:
            self._full = self._torn = self._is_no_space(error)

    def _run(self) -> None:
        batch: list[_Pending] = []
        try:
            while (batch := self._take()) or not self._closing:
                self._check_untouched()
                if self._full:
                    self._go_on()
                self._work(batch)
            if self._covered < self.size and not self._full:
                self._sign()
        except Exception as error:
            # Whatever it was: without its thread the log must refuse, not keep callers waiting.
            _logger.critical(
                "the audit log failed and takes no further record: %s", error, exc_info=error
            )
            self._fail(error, batch)

    def _check_untouched(self) -> None:
        """Raise Tampered when somebody else touched what this process relies on.

        A disk that is nearly full counts as full before a write fails: here, or in the state
        database, which would find it out only in the middle of a call.
        """
        if not self._torn:
            self._files.check()
        self._guard()
        if not self._full and self._files.reserve.is_needed():
            self._become_full()

    def _work(self, batch: list[_Pending]) -> None:
        """Write what waits and sign what is due. Raises whatever is final."""
        try:
            if self._full:
                batch = self._only_reserved(batch)
            elif self._files.is_full:
                self._signed(self._written.close_segment())
            if batch:
                self._commit(batch)
            if self._is_due() and not self._full:
                self._sign()
        except OSError as error:
            self._torn = self._is_no_space(error)
            self._wait_for_room(batch)

    def _only_reserved(self, batch: list[_Pending]) -> list[_Pending]:
        """What may be written while the disk is full: of what waited before, too.

        Nothing while the bytes of a failed write are not cut off yet: behind them, records would
        look as if somebody else had changed the file.
        """
        happened = [one for one in batch if one[0].members["kind"] in RESERVED and not self._torn]
        self._refuse([one for one in batch if one not in happened])
        return happened

    def _wait_for_room(self, batch: list[_Pending]) -> None:
        """A write failed: refuse what has not happened yet, keep what has in the reserve."""
        self._become_full()
        waiting = [one for one in batch if not one[1].done()]
        happened = [one for one in waiting if one[0].members["kind"] in RESERVED]
        self._refuse([one for one in waiting if one not in happened])
        self._files.reserve.release()
        try:
            self._cut_failed_write()
            if happened:
                self._commit(happened)
        except OSError as error:
            self._torn = self._is_no_space(error)
            self._refuse(happened)

    def _become_full(self) -> None:
        with self._changed:
            first, self._full = not self._full, True
            # A checkpoint is not waited for while none can be made.
            self._wanted = min(self._wanted, self._covered)
            self._changed.notify_all()
        if first:
            _logger.critical("the disk is full: calls cannot be recorded, so they are refused")

    def _go_on(self) -> None:
        """Take records again once there is room for the reserve and for a checkpoint."""
        try:
            self._cut_failed_write()
            self._files.reserve.take()
        except OSError as error:
            self._is_no_space(error)
            return
        try:
            self._sign()
        except OSError as error:
            self._torn = self._is_no_space(error)
            return
        with self._changed:
            self._full = False
        _logger.warning("there is room on the disk again: calls are recorded and answered")

    def _cut_failed_write(self) -> None:
        """Cut off what a failed write has left, before anything else is written."""
        if self._torn:
            self._written.roll_back()
            self._torn = False

    @staticmethod
    def _is_no_space(error: OSError) -> bool:
        """True for a full disk, which is waited for; raises any other error."""
        if error.errno not in _FULL:
            raise error
        return True

    def _take(self) -> list[_Pending]:
        """The next batch; empty when a checkpoint is due or the log is being closed."""
        with self._changed:
            unsigned = self._covered < self.size and not self._full
            due = max(0.0, self._due - time.monotonic()) if unsigned else CHECK_SECONDS
            self._changed.wait_for(
                lambda: self._queue or self._closing or self._wanted > self._covered,
                min(due, CHECK_SECONDS),
            )
            # A batch ends where its segment does.
            most = min(len(self._queue), MAX_BATCH, self._files.room)
            batch = [self._queue.popleft() for _ in range(most)]
        for _, future in batch:
            # From here on nobody can cancel it. The record of one who left already is kept too.
            future.set_running_or_notify_cancel()
        return batch

    def _commit(self, batch: list[_Pending]) -> None:
        first = self._written.size
        self._written.append([record for record, _ in batch])
        if self._covered == first:
            self._due = time.monotonic() + CHECKPOINT_SECONDS
        for sequence, (_, future) in enumerate(batch, first):
            if not future.cancelled():
                future.set_result(sequence)

    def _is_due(self) -> bool:
        unsigned = self.size - self._covered
        asked = self._wanted > self._covered
        late = unsigned > 0 and time.monotonic() >= self._due
        return asked or late or unsigned >= CHECKPOINT_RECORDS

    def _is_answered(self) -> bool:
        return self._covered >= self._wanted or self._closing or self._failure is not None

    def _sign(self) -> None:
        self._signed(self._written.sign())

    def _signed(self, note: bytes) -> None:
        with self._changed:
            self._note, self._covered = note, self.size
            self._changed.notify_all()

    def _fail(self, error: Exception, batch: list[_Pending]) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()
            waiting = [*batch, *self._queue]
            self._queue.clear()
        self._refuse(waiting)

    def _refuse(self, waiting: Sequence[_Pending]) -> None:
        for _, future in waiting:
            if not future.done():
                future.set_exception(self._refusal())
