"""Audit records of what the appliance does by itself: a job ends, an artifact appears.

Nobody calls when a job has ended, so no call's result says what it made. Rules kept here:
* such a record has the kind `event`, the principal of the control plane, and as its method what
  happened, such as `job.succeeded`;
* what appears is recorded before it appears (`record`, last in the transaction); what ends cannot
  wait for a disk, so it ends also when the record fails, and the process log says so (`note`).

Called by the services that act without a caller.
"""

from __future__ import annotations

import logging
from typing import Protocol

from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import Entry
from appliance.core.errors import AuditUnavailable

SYSTEM = "control"
_logger = logging.getLogger(__name__)


class Records(Protocol):
    """What services need of `SystemRecords`."""

    def check(self) -> None:
        """Raise AuditUnavailable when nothing can be recorded now: before long work for nothing."""

    def record(self, what: str, resource: str, **made: object) -> None:
        """Record what is about to appear. Raises AuditUnavailable: then it must not."""

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        """Record what has ended."""


class SystemRecords:
    """Writes them into the log of this appliance."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def check(self) -> None:
        """Raise AuditUnavailable when nothing can be recorded now."""
        if self._log.trouble:
            raise AuditUnavailable(self._log.trouble)

    def record(self, what: str, resource: str, **made: object) -> None:
        """Record what is about to appear. Raises AuditUnavailable: then it must not."""
        self._append(what, resource, "OK", made)

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        """Record what has ended; when that fails, the process log says it."""
        try:
            self._append(what, resource, outcome, made)
        except AuditUnavailable as error:
            _logger.critical("%s of %s could not be recorded: %s", what, resource, error.message)

    def _append(self, what: str, resource: str, outcome: str, made: dict[str, object]) -> None:
        details = {"made": made} if made else {}
        self._log.append(
            Entry(
                "event",
                principal=SYSTEM,
                method=what,
                resource=resource,
                outcome=outcome,
                details=details,
            )
        ).result()
