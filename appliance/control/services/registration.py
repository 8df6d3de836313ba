"""Jobs whose ranks are done: what they made is verified, signed and registered.

A job that is REGISTERING has work of hours behind it. Rules kept here:
* what was made is never thrown away because the storage, the disk or the audit log could not take a
  byte now: that is tried again, less and less often, until it succeeds or somebody cancels the job;
* only what is wrong with an output itself ends the job: it was changed, or is not what its slot
  holds;
* a job has succeeded when every output was read back, verified and signed; then all outputs appear
  and the job ends in one transaction, and the audit log says which. Doing it again after a kill at
  any moment changes nothing but the time it takes;
* the object store is read and written in threads of its own: no call, no heartbeat and no pass of
  the scheduler waits for it;
* facts of outputs are read from the sealed files, not taken from a report.

Called by the composition root, which runs one for each appliance.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.control.audit.system import Records
from appliance.control.events import QUEUE, Events
from appliance.control.services import job_rows, job_specs, outputs
from appliance.control.services.artifacts import Artifacts, Version
from appliance.control.services.runs import Runs, pending
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import (
    ApplianceError,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    Tampered,
)
from appliance.core.jobs import JobState
from appliance.crypto.artifacts import ArtifactReader

PASS_SECONDS = 1.0
MAX_PAUSE = timedelta(minutes=1)
FIRST_PAUSE = timedelta(seconds=1)
_WRONG = (Tampered, InvalidInput, FailedPrecondition, NotFound)
"""Errors of an output itself; doing it again would not help."""
_job = tables.job.c
_logger = logging.getLogger(__name__)

Registered = tuple[Version, ArtifactReader, dict[str, Any]]


class Registration:
    """Registers what jobs have made."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        runs: Runs,
        events: Events,
        records: Records,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._runs = runs
        self._events = events
        self._records = records
        self._clock = clock
        self._tries: dict[str, int] = {}

    async def run(self, pool: Executor) -> None:
        """Pass after pass: when something changed, and every second."""
        loop = asyncio.get_running_loop()
        with self._events.watch(QUEUE) as watch:
            while True:
                try:
                    await loop.run_in_executor(pool, self.run_pass)
                except Exception:
                    # Whatever it was, the next pass reads everything anew.
                    _logger.exception("a pass of the registration failed; the next one follows")
                await watch.wait(PASS_SECONDS)

    def run_pass(self) -> None:
        """Register what is due."""
        for row in self._due():
            try:
                self._register(row)
            except LeaseLost as error:
                _logger.info("job %s is not registered any more: %s", row.uid, error.message)
            except _WRONG as error:
                _logger.warning("an output of job %s is refused: %s", row.uid, error.message)
                self._runs.fail(row, error.reason, f"an output is refused: {error.message}")
            except (ApplianceError, OSError) as error:
                self._try_again(row, error)
            else:
                self._tries.pop(row.uid, None)

    def _due(self) -> list[Row[Any]]:
        now = self._clock()
        with self._database.read() as state:
            return state.all(
                select(tables.job)
                .where(
                    _job.state == JobState.REGISTERING,
                    _job.retry_time.is_(None)
                    | (_job.retry_time <= now)
                    # What a clock that was ahead has dated waits for nothing.
                    | (_job.retry_time > now + MAX_PAUSE),
                )
                .order_by(_job.uid)
            )

    def _register(self, row: Row[Any]) -> None:
        """Verify, sign and register every output of a job; then it has succeeded."""
        made = self._made(row)
        with self._database.write() as transaction:
            for version, reader, facts in made.values():
                self._artifacts.register(transaction, version, reader, facts)
            self._runs.end_in(
                transaction,
                row,
                JobState.SUCCEEDED,
                message="",
                retry_time=None,
                outputs={slot: version.uid for slot, (version, _, _) in made.items()},
                end_time=self._clock(),
            )
            # What appears is in the audit log before it appears.
            versions = {version.name: version.digest for version, _, _ in made.values()}
            self._records.record("job.succeeded", job_rows.name_of(row), outputs=versions)

    def _made(self, row: Row[Any]) -> dict[str, Registered]:
        """Every output, verified and signed, by slot."""
        spec = job_rows.spec_of(row)
        with self._database.read() as state:
            rows = {found.kind: found for found in pending(state, row.uid)}
            found = {kind: self._artifacts.read(state, each) for kind, each in rows.items()}
        made: dict[str, Registered] = {}
        for slot in job_specs.outputs_of(row.kind, spec):
            version = found.get(slot)
            if version is None or not version.digest:
                raise FailedPrecondition(f"the job ended well, but made no {slot}")
            try:
                reader = self._artifacts.verify(version, version.digest, epoch=row.epoch)
            except LeaseLost as error:
                # Another epoch wrote it: here that is no question of time.
                raise Tampered(error.message, object=version.uid) from error
            facts = outputs.facts_of(slot, reader, row.kind, spec)
            self._artifacts.sign(version, version.digest)
            made[slot] = (version, reader, facts)
        return made

    def _try_again(self, row: Row[Any], error: ApplianceError | OSError) -> None:
        """Say why it has not worked yet, and when it is tried again."""
        tries = self._tries[row.uid] = self._tries.get(row.uid, 0) + 1
        at = self._clock() + min(FIRST_PAUSE * 2 ** min(tries - 1, 10), MAX_PAUSE)
        why = error.message if isinstance(error, ApplianceError) else str(error.strerror)
        _logger.warning("job %s cannot be registered yet: %s", row.uid, why)
        with self._database.write() as transaction:
            job_rows.change(
                transaction,
                self._events,
                row,
                retry_time=at,
                message=f"done, and to be registered as soon as that works: {why}; tried again at"
                f" {at:%H:%M:%S} UTC",
            )
