"""Jobs that wait for devices, in their order.

Called by the scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from appliance.control.services.work import job_rows
from appliance.control.services.work.runs import MAX_PAUSE, WRONG, Runs
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import ApplianceError
from appliance.core.jobs import JobState
from appliance.core.placement import Demand
from appliance.kinds import kind_of

_job = tables.job.c
_logger = logging.getLogger(__name__)


class JobQueue:
    """Reads the rows of queued jobs: they are the queue."""

    def __init__(self, database: Database, runs: Runs, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._runs = runs
        self._clock = clock

    def waiting(self) -> list[tuple[Row[Any], Demand]]:
        """Jobs that wait for devices, oldest first, and what each needs.

        Not those whose pause after a failure is not over. One whose inputs are gone fails here.
        """
        now = self._clock()
        with self._database.read() as state:
            rows = state.all(
                select(tables.job)
                .where(
                    _job.state == JobState.QUEUED,
                    _job.retry_time.is_(None)
                    | (_job.retry_time <= now)
                    # What a clock that was ahead has dated waits for nothing.
                    | (_job.retry_time > now + MAX_PAUSE),
                )
                # And comes first, or newer jobs pass it for ever.
                .order_by(_job.create_time <= now, _job.create_time, _job.uid)
            )
        found: list[tuple[Row[Any], Demand]] = []
        for row in rows:
            try:
                with self._database.read() as state:
                    inputs = job_rows.inputs_of(state, row)
                need = kind_of(row.kind).demand(job_rows.spec_of(row), inputs)
                found.append((row, replace(need, kind=row.kind)))
            except WRONG as error:
                self._runs.fail(row, error.reason, f"it cannot start any more: {error.message}")
            except ApplianceError as error:
                _logger.warning("job %s cannot be looked at now: %s", row.uid, error.message)
        return found
