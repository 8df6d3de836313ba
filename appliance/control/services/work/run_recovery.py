"""At the start of a control plane: take up the jobs that were on nodes, or waited for the store.

Called by the scheduler, before any agent is let in.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select

from appliance.control.events import Events
from appliance.control.services.data.artifact_rows import PENDING
from appliance.control.services.data.artifacts import CHECKPOINTS, Artifacts
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.work import job_rows
from appliance.control.services.work.shares import shares_of
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.jobs import LEASED, TERMINAL, JobState

_job = tables.job.c
_version = tables.artifact_version.c


class RunRecovery:
    """Takes up what another process of this control plane has left."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        tasks: StorageTasks,
        leases: Leases,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._tasks = tasks
        self._leases = leases
        self._events = events
        self._clock = clock

    def restore_leases(self) -> None:
        """Give the nodes of running jobs their whole time to be heard of again.

        Jobs whose every part had ended, which 0.1.0 left running, are registered.
        """
        with self._database.read() as state:
            rows = state.all(select(tables.job).where(_job.state.in_(LEASED)))
        self._ask_again()
        for row in rows:
            self._leases.restore(row.uid, row.epoch, shares_of(row), job_rows.lost_seconds(row))
            if row.placement and all(share.ended for share in shares_of(row)):
                self._leases.release(row.uid, row.epoch)
                with self._database.write() as transaction:
                    job_rows.move(
                        transaction, self._events, row, JobState.REGISTERING, self._clock()
                    )
                    self._tasks.add(transaction, TaskKind.REGISTER, row.uid)

    def _ask_again(self) -> None:
        """Let go on what waits for the store, also what waited when there was no queue yet."""
        kinds = {
            JobState.REGISTERING: TaskKind.REGISTER,
            JobState.PAUSED: TaskKind.RESUME_PAUSED,
        }
        with self._database.write() as transaction:
            for row in transaction.all(select(tables.job).where(_job.state.in_(tuple(kinds)))):
                # One that somebody has paused waits for a person.
                if row.state != JobState.PAUSED or not row.pause:
                    self._tasks.add(transaction, kinds[JobState(row.state)], row.uid)

    def drop_stale_versions(self) -> None:
        """Drop pending versions of jobs that have ended or are gone; no checkpoints."""
        with self._database.write() as transaction:
            rows = transaction.all(
                select(tables.artifact_version)
                .outerjoin(tables.job, _job.uid == _version.job)
                .where(
                    _version.state == PENDING,
                    _version.job.is_not(None),
                    _job.uid.is_(None)
                    | (_job.state.in_(tuple(TERMINAL)) & (_version.kind != CHECKPOINTS)),
                )
            )
            self._artifacts.drop(transaction, rows)
