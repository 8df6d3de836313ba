"""The audit log: append-only, chained, signed, durable before anybody goes on.

Rules kept here:
* a record is durable when its future resolves, and only then; whoever waits for it acts afterwards;
* one thread writes; records that arrive while it waits for the disk are made durable together
  (group commit), so that many callers share one fdatasync;
* a signed checkpoint follows after 256 records or one second, and when the log is closed;
* after a failed write or sync nothing is ever appended again by this process: what the kernel did
  with the bytes is unknown, and a second fsync would lie about it. Every append then fails;
* a log is verified when it is opened, against its checkpoints and what the state database saw last:
  the appliance does not go on with a log that somebody changed while it was down.

The attack: acting without a trace by filling the disk or breaking it; changing the log while the
control plane is down. Called by the gate, the usage service and the composition root.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.control.audit import segments
from appliance.control.audit.record import Entry, Prepared, line_of, prepare
from appliance.control.audit.segments import Segments
from appliance.core.errors import AuditUnavailable
from appliance.crypto import chain
from appliance.crypto.chain import Tree, leaf_hash
from appliance.crypto.signing import SignedNote, SigningKey

CHECKPOINT_RECORDS = 256
CHECKPOINT_SECONDS = 1.0
SIGNING_SECONDS = 10.0
LARGEST_BATCH = 1024
LONGEST_QUEUE = 16_384
_logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
_Pending = tuple[Prepared, "Future[int]"]


class AuditLog:
    """An open log. Use `AuditLog.open`; `close` when the process ends."""

    def __init__(  # noqa: PLR0913 - called by `open` alone
        self, files: Segments, tree: Tree, previous: str, key: SigningKey, origin: str, clock: Clock
    ) -> None:
        self._files = files
        self._tree = tree
        self._previous = previous
        self._key = key
        self._origin = origin
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Pending] = deque()
        self._failure: Exception | None = None
        self._closing = False
        self._head = (tree.size, tree.root())
        self._note = b""
        self._covered = -1
        self._wanted = 0
        self._due = 0.0
        self._sign()
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
        segment_bytes: int = segments.SEGMENT_BYTES,
    ) -> AuditLog:
        """Open or begin the log in a folder.

        Args:
            folder: of the log alone.
            key: signs the checkpoints.
            origin: name of the log in its checkpoints, such as `appliance/<cluster id>/audit`.
            clock: now, UTC.
            known: sizes and roots that were seen before, such as by the state database.
            segment_bytes: size at which a new file begins.

        Raises:
            Tampered: the log was changed while it was closed; Stale when it is an older copy.
        """
        files = Segments(folder, segment_bytes=segment_bytes)
        with segments.opened(folder) as streams:
            tree, last = chain.grow(
                streams, files.notes(), key.verify_key, origin, known=known or {}
            )
        return cls(files, tree, last, key, origin, clock)

    def append(self, entry: Entry) -> Future[int]:
        """Record an entry. The future gives its sequence once it is durable.

        It fails with AuditUnavailable when the record cannot be made durable; then whatever it
        announces must not happen. From asyncio: `await asyncio.wrap_future(log.append(entry))`.
        """
        future: Future[int] = Future()
        with self._changed:
            if self._failure is None and not self._closing and len(self._queue) < LONGEST_QUEUE:
                # The clock is read under the lock: times rise as sequences do.
                self._queue.append((prepare(entry, self._clock()), future))
                self._changed.notify_all()
                return future
        future.set_exception(self._refusal())
        return future

    def head(self) -> tuple[int, bytes]:
        """How many records are durable, and the root over them; what the state database notes."""
        return self._head

    @property
    def size(self) -> int:
        """How many records are durable."""
        return self._head[0]

    @property
    def public_key_pem(self) -> bytes:
        """The key that verifies the checkpoints."""
        return self._key.verify_key.pem()

    def checkpoint(self) -> tuple[bytes, int]:
        """A signed checkpoint over all that is durable by now, and the number of records it covers.

        When none can be signed any more it is the newest there is.
        """
        with self._changed:
            self._wanted = self._head[0]
            self._changed.notify_all()
            self._changed.wait_for(self._is_answered, SIGNING_SECONDS)
            return self._note, self._covered

    def lines(self, start: int, stop: int | None = None) -> Iterator[bytes]:
        """Durable records from `start` to before `stop`, as stored, without line ends."""
        size = self.size
        return self._files.lines(max(start, 0), size if stop is None else min(stop, size))

    def newest(self, before: int | None = None) -> Iterator[dict[str, Any]]:
        """Durable records before a sequence, newest first, parsed."""
        end = self.size if before is None else min(before, self.size)
        while end > 0:
            begin = max(0, end - CHECKPOINT_RECORDS)
            for line in reversed(list(self._files.lines(begin, end))):
                yield json.loads(line)
            end = begin

    def close(self) -> None:
        """Make everything appended durable, sign a last checkpoint, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def _refusal(self) -> AuditUnavailable:
        why = self._failure or ("it is closed" if self._closing else "too many records wait")
        return AuditUnavailable(
            f"the audit log cannot take a record ({why}), so nothing was done: free disk space or "
            f"repair the disk, then restart the control plane"
        )

    def _run(self) -> None:
        batch: list[_Pending] = []
        try:
            while (batch := self._take()) or not self._closing:
                if batch:
                    self._commit(batch)
                if self._is_due():
                    self._sign()
            if self._covered < self._tree.size:
                self._sign()
        except Exception as error:
            # Whatever it was: without its thread the log must refuse, not keep callers waiting.
            _logger.exception("the audit log failed and takes no further record")
            self._fail(error, batch)

    def _take(self) -> list[_Pending]:
        """The next batch; empty when a checkpoint is due or the log is being closed."""
        with self._changed:
            waiting = self._covered < self._tree.size
            timeout = max(0.0, self._due - time.monotonic()) if waiting else None
            self._changed.wait_for(
                lambda: self._queue or self._closing or self._wanted > self._covered, timeout
            )
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), LARGEST_BATCH))]
        for _, future in batch:
            # From here on nobody can cancel it. The record of one who left already is kept too.
            future.set_running_or_notify_cancel()
        return batch

    def _commit(self, batch: list[_Pending]) -> None:
        lines, leaves, previous = [], [], self._previous
        for sequence, (record, _) in enumerate(batch, self._tree.size):
            line = line_of(record, sequence, previous)
            leaves.append(leaf_hash(line))
            previous = leaves[-1].hex()
            lines.append(line)
        self._files.append(lines)
        if self._covered == self._tree.size:
            self._due = time.monotonic() + CHECKPOINT_SECONDS
        first = self._tree.size
        for leaf in leaves:
            self._tree.append(leaf)
        self._previous = previous
        self._head = (self._tree.size, self._tree.root())
        for sequence, (_, future) in enumerate(batch, first):
            if not future.cancelled():
                future.set_result(sequence)

    def _is_due(self) -> bool:
        unsigned = self._tree.size - self._covered
        asked = self._wanted > self._covered
        late = unsigned > 0 and time.monotonic() >= self._due
        return asked or late or unsigned >= CHECKPOINT_RECORDS

    def _is_answered(self) -> bool:
        return self._covered >= self._wanted or self._closing or self._failure is not None

    def _sign(self) -> None:
        note = SignedNote(self._origin, *self._head).sign(self._key)
        self._files.append_note(note)
        with self._changed:
            self._note, self._covered = note, self._head[0]
            self._changed.notify_all()

    def _fail(self, error: Exception, batch: list[_Pending]) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()
            waiting = [*batch, *self._queue]
            self._queue.clear()
        for _, future in waiting:
            if not future.done():
                future.set_exception(self._refusal())
