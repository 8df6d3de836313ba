"""Audit records of what the appliance does by itself: a job ends, an artifact appears.

Nobody calls when a job has ended, so no call's result says what it made. Rules kept here:
* such a record has the kind `event`, the principal of the control plane, and as its method what
  happened, such as `job.succeeded`;
* what appears is recorded before it appears (`record`, last in the transaction); what ends, and an
  alarm, cannot wait for a disk, so they are not held up when the record fails (`note`): the process
  log says so, and it is recorded as soon as the log takes it, with how late that is.

The attack: filling the disk before doing something of which an alarm would tell once. Called by the
services that act without a caller; the composition root runs it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.core.errors import AuditUnavailable

SYSTEM = "control"
LATE_SECONDS = 1.0
"""So often it is tried to record what could not be when it happened."""
MAX_LATE = 1000
"""Of these, those that wait; what comes then is in the process log alone."""
_logger = logging.getLogger(__name__)


class Records(Protocol):
    """What services need of `SystemRecords`."""

    def check(self) -> None:
        """Raise AuditUnavailable when nothing can be recorded now: before long work for nothing."""

    def record(self, what: str, resource: str, **made: object) -> None:
        """Record what is about to appear. Raises AuditUnavailable: then it must not."""

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        """Record what has ended; later, when that cannot be done now."""


class _Note(NamedTuple):
    """One that could not be recorded when it happened."""

    since: float
    what: str
    resource: str
    outcome: str
    made: dict[str, object]


class SystemRecords:
    """Writes them into the log of this appliance.

    Args:
        log: the audit log.
        monotonic: seconds that only rise.
    """

    def __init__(self, log: AuditLog, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._late: deque[_Note] = deque()

    async def run(self) -> None:
        """Record what could not be recorded at its time. Until cancelled."""
        while True:
            await asyncio.sleep(LATE_SECONDS)
            if self._late:
                await asyncio.to_thread(self.catch_up)

    def catch_up(self) -> None:
        """Record what waits, oldest first, until the log takes no more; from one thread."""
        while self._late:
            note = self._late[0]
            late = round(self._monotonic() - note.since)
            try:
                self._append(
                    note.what, note.resource, note.outcome, {**note.made, "late_seconds": late}
                )
            except AuditUnavailable:
                return
            self._late.popleft()

    def check(self) -> None:
        """Raise AuditUnavailable when nothing can be recorded now."""
        if self._log.trouble:
            raise AuditUnavailable(self._log.trouble)

    def record(self, what: str, resource: str, **made: object) -> None:
        """Record what is about to appear. Raises AuditUnavailable: then it must not."""
        self._append(what, resource, "OK", made)

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        """Record what has ended; when that fails, the process log says it, and it waits."""
        try:
            self._append(what, resource, outcome, made)
        except AuditUnavailable as error:
            _logger.critical("%s of %s could not be recorded: %s", what, resource, error.message)
            with self._lock:
                if len(self._late) < MAX_LATE:
                    self._late.append(_Note(self._monotonic(), what, resource, outcome, made))

    def _append(self, what: str, resource: str, outcome: str, made: dict[str, object]) -> None:
        details = {"made": made} if made else {}
        self._log.append(
            AuditEntry(
                "event",
                principal=SYSTEM,
                method=what,
                resource=resource,
                outcome=outcome,
                details=details,
            )
        ).result()
