"""Rows that somebody else wrote into the running state are said once, and looked for now and then.

Such a row is refused wherever it is read. Here it is told: a CRITICAL line, an `event` record
`state.tampered` that names the row, and a metric that stays until the next start, which is refused
until the state is right again. Rows that nobody asks for, and those that were taken away, are found
by reading all of them every ten minutes.

The attack: `state.db` written while the control plane runs. Run by the composition root, where
`RowMetrics` is registered too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance.control.audit.system import Records
from appliance.control.bootstrap.opening import STATE_TAMPERED
from appliance.control.store.database import Database
from appliance.core.errors import Tampered

ROUND_SECONDS = 600.0
SAY_SECONDS = 1.0
PAUSE_SECONDS = 0.002
_logger = logging.getLogger(__name__)


class RowChecks:
    """Tells what was found in the state, and looks for more.

    Args:
        database: the state.
        records: where it is recorded.
    """

    def __init__(self, database: Database, records: Records) -> None:
        self._database, self._records = database, records
        self._said: set[str] = set()
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        # The start has just read everything.
        next_round = loop.time() + ROUND_SECONDS
        try:
            while True:
                await asyncio.sleep(SAY_SECONDS)
                if loop.time() >= next_round:
                    next_round = loop.time() + ROUND_SECONDS
                    await asyncio.to_thread(self.check_all_rows)
                if self._database.found:
                    await asyncio.to_thread(self.report_findings)
        finally:
            self._stopped.set()

    def check_all_rows(self) -> None:
        """Read every covered row once."""
        try:
            self._database.check_rows(self._pause)
        except Exception:
            # The rest of the control plane does not need it.
            _logger.exception("the rows of the state could not be read; in ten minutes again")

    def report_findings(self) -> None:
        """Tell what was found since the last time."""
        for finding in list(self._database.found.values()):
            if finding.row in self._said:
                continue
            self._said.add(finding.row)
            _logger.critical(
                "%s in state.db by somebody else; it is refused wherever it is read. Find out who "
                "can write the data directory; the next start will not go on with it",
                finding,
            )
            made = {"row": finding.shown, "change": finding.change}
            self._records.note(STATE_TAMPERED, "", Tampered.reason, **made)

    def _pause(self) -> None:
        if not self._stopped.is_set():
            time.sleep(PAUSE_SECONDS)


class RowMetrics(Collector):
    """How many rows were found that somebody else has written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge; read when somebody asks."""
        yield GaugeMetricFamily(
            "appliance_state_forged_rows",
            "Rows of the state that somebody else wrote or took away, since the start.",
            value=len(self._database.found),
        )
