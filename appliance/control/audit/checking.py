"""Closed segments are read again as a whole, in the background, from the start on and once a day.

A start reads the end of the log alone. What was changed further back is found here, and said: an
`event` record `audit.damaged` that names the record, a CRITICAL line, and a metric until the next
round finds it right again. The control plane goes on: the signed roots prove what was there, so
nothing is hidden by going on, and otherwise one damaged byte of years ago would stop everything.

Rule kept here: between a few hundred records it sleeps, so that calls hardly notice.

The attack: a record of long ago edited, while the control plane is down or up. Run by the
composition root; `AuditMetrics` is registered there too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance.control.audit.log import AuditLog
from appliance.control.audit.system import Records
from appliance.core.errors import Tampered
from appliance.core.files import free_bytes

ROUND_SECONDS = timedelta(days=1).total_seconds()
PAUSE_SECONDS = 0.002
DAMAGED = "audit.damaged"
_logger = logging.getLogger(__name__)


class Checking:
    """Verifies the closed segments of one log, round after round.

    Args:
        log: the log.
        records: where what is found is recorded.
    """

    def __init__(self, log: AuditLog, records: Records) -> None:
        self._log, self._records = log, records
        self._stopped = threading.Event()
        self.damaged: dict[str, str] = {}
        """Segments that are not what was written, and what is wrong with them."""
        self.verified = 0
        """How many records were proved in this round."""

    async def run(self) -> None:
        """Verify for ever, in a thread."""
        try:
            while True:
                try:
                    await asyncio.to_thread(self.verify_all)
                except Exception:
                    # The rest of the control plane does not need it.
                    _logger.exception("closed segments could not be verified; tomorrow again")
                await asyncio.sleep(ROUND_SECONDS)
        finally:
            self._stopped.set()

    def verify_all(self) -> None:
        """One round."""
        closed, self.verified = self._log.closed, 0
        here = {segment.path.name for segment in closed.segments}
        self.damaged = {name: why for name, why in self.damaged.items() if name in here}
        for segment in closed.segments:
            if self._stopped.is_set():
                return
            name = segment.path.name
            try:
                closed.verify(segment, self._pause)
            except Exception as error:  # noqa: BLE001 - it is said
                # Whatever is wrong with one: the others are verified.
                # One that was archived meanwhile is not missed.
                if segment in closed.segments:
                    self._say(name, error)
            else:
                self.damaged.pop(name, None)
                self.verified += segment.end.size - segment.first

    def _pause(self) -> None:
        if not self._stopped.is_set():
            time.sleep(PAUSE_SECONDS)

    def _say(self, name: str, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            # That closes the log.
            return
        known = error if isinstance(error, Tampered) else Tampered(f"it cannot be read: {error}")
        if self.damaged.get(name) == known.message:
            return
        self.damaged[name] = known.message
        _logger.critical(
            "%s of the audit log is damaged: %s. Keep a copy of the data directory and find out "
            "who did it; then stop the control plane, put the file back as it was, and start",
            name,
            known.message,
        )
        record = known.metadata.get("record", "")
        self._records.note(DAMAGED, "", known.reason, segment=name, record=record)


class AuditMetrics(Collector):
    """How far the log reaches, what of it was proved, and what room there is."""

    def __init__(self, log: AuditLog, checking: Checking) -> None:
        self._log, self._checking = log, checking

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges; read when somebody asks."""
        folder = self._log.folder
        room = free_bytes(folder) if folder.exists() else 0
        for name, text, value in (
            ("appliance_audit_records", "Records that were ever written.", self._log.size),
            (
                "appliance_audit_first_record",
                "The first record that was not archived.",
                self._log.first,
            ),
            (
                "appliance_audit_verified_records",
                "Closed records proved in this round.",
                self._checking.verified,
            ),
            (
                "appliance_audit_damaged_segments",
                "Segments not as written.",
                len(self._checking.damaged),
            ),
            (
                "appliance_audit_free_bytes",
                "Room on the disk of the log.",
                room,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)
