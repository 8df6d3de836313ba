"""What happens to checkpoints in the object store: put on record, kept by a rule, deleted.

Rules kept here:
* a checkpoint is on record after it was seen to be whole and sealed for its epoch; then it is
  signed, and no rank deletes it any more;
* only the control plane deletes what is on record, in this order: its row says so, manifest, files,
  row; so that a kill at any moment leaves something that can be deleted again;
* the rule of retention (`keep_last`, `keep_every`) never takes what a job goes on from, and nothing
  that another job begins with;
* that something is not there says nothing of who has lost it: only what is there and wrong ends a
  job;
* checkpoints are kept for `keep` after their job has ended, however it ended.

Called by the storage worker, by `services.agent.release` (a start takes in what was not reported)
and by the scheduler (`sweep`, which writes rows alone).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from appliance.control.events import Events
from appliance.control.services.data.artifact_rows import PENDING
from appliance.control.services.data.artifacts import CHECKPOINTS, Artifacts, Version
from appliance.control.services.data.storage_tasks import StorageTasks, Task, TaskKind
from appliance.control.services.work import checkpoint_rows, job_events, job_rows
from appliance.control.services.work.checkpoint_folders import CheckpointFolders
from appliance.control.services.work.checkpoint_rows import COMPLETE, point_of
from appliance.control.services.work.runs import Runs
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.checkpoints import CheckpointPoint, superseded
from appliance.core.errors import InvalidInput, NotFound, Tampered
from appliance.core.jobs import LEASED, TERMINAL
from appliance.core.values import given
from appliance.crypto.artifacts import ArtifactReader

SWEEP = timedelta(hours=1)
_job = tables.job.c
_version = tables.artifact_version.c
_checkpoint = tables.checkpoint.c
_logger = logging.getLogger(__name__)


class CheckpointTasks:
    """Puts checkpoints on record and deletes them."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        folders: CheckpointFolders,
        tasks: StorageTasks,
        runs: Runs,
        events: Events,
        clock: Callable[[], datetime],
        keep: timedelta,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._folders = folders
        self._tasks = tasks
        self._runs = runs
        self._events = events
        self._clock = clock
        self._keep = keep
        self._swept: datetime | None = None

    def check(self, task: Task) -> None:
        """Put a checkpoint on record that a node has reported.

        One that is there and is not what was reported ends its job; one that is not there any more
        is left out: its rank has saved newer ones. Raises OSError.
        """
        with self._database.read() as state:
            job = job_rows.by_uid(state, task.subject)
            series = self._series(state, task.subject)
            known = self._known(state, task.subject)
        if job is None or series is None:
            return
        point = CheckpointPoint(int(task.details["epoch"]), int(task.details["step"]))
        older = CheckpointPoint(0, point.step)
        if older in known or (
            not self._folders.is_whole(series, point) and self._folders.is_whole(series, older)
        ):
            point = older  # an agent of 0.1.0
        if point in known:
            self._settle(job, series, point)
            return
        try:
            reader = self._folders.read(series, point, str(task.details["digest"]))
        except (Tampered, NotFound, InvalidInput) as error:
            if not self._folders.is_whole(series, point):
                _logger.info("checkpoint %s of job %s is gone already", point.id, job.uid)
            elif job.epoch == task.details["epoch"] and job.state in LEASED:
                why = f"what node {task.details['node']} reported is refused: {error.message}"
                self._runs.fail(job, error.reason, why)
            return
        self._record(job, series, point, reader)

    def delete(self, task: Task) -> None:
        """Delete the files of a checkpoint that nobody needs, then its row. Raises OSError."""
        point = CheckpointPoint(int(task.details["epoch"]), int(task.details["step"]))
        with self._database.read() as state:
            series = checkpoint_rows.series_row(state, task.subject)
        if series is not None:
            self._folders.delete(series.folder, point)
        with self._database.write() as transaction:
            checkpoint_rows.forget(transaction, task.subject, point)

    def delete_superseded(self, task: Task) -> None:
        """Delete what starts of a job that are over have saved, and what is not on record.

        Raises OSError.
        """
        with self._database.read() as state:
            series = self._series(state, task.subject)
            known = self._known(state, task.subject)
        if series is not None:
            self._folders.delete_unknown(series, int(task.details["before"]), known)

    def to_resume(self, job: Row[Any], series: Version) -> Row[Any] | None:
        """The checkpoint that the start of a job goes on from; None when it begins anew.

        What earlier epochs finished while nobody heard of it is taken in: a node that was cut off
        loses what it did since its last checkpoint, and no more. One that cannot be read is passed
        over, down to the one on record.

        Args:
            job: its row; its epoch is that of the start.
            series: of its checkpoints.

        Raises:
            Tampered, Stale: the one on record is not what was recorded.
        """
        with self._database.read() as state:
            newest = checkpoint_rows.newest(state, job.uid)
            known = self._known(state, job.uid)
        lowest = point_of(newest) if newest is not None else CheckpointPoint(0, 0)
        for point in self._folders.points(series):
            if point in known or not lowest < point < CheckpointPoint(job.epoch, 0):
                continue
            try:
                reader = self._folders.read(series, point)
            except (NotFound, Tampered) as error:
                _logger.warning("a checkpoint that nobody reported is left out: %s", error)
                continue
            self._record(job, series, point, reader)
            with self._database.write() as transaction:
                job_events.goes_on_from(transaction, job.uid, job.epoch, point.step)
                return checkpoint_rows.newest(transaction, job.uid)
        if newest is not None:
            self._folders.read(series, lowest, newest.digest)
        return newest

    def sweep(self) -> None:
        """Once an hour: drop the checkpoints of jobs that ended too long ago."""
        now = self._clock()
        if self._swept is not None and abs(now - self._swept) < SWEEP:
            return
        with self._database.write() as transaction:
            old = transaction.all(
                select(tables.artifact_version)
                .join(tables.job, _job.uid == _version.job)
                .where(
                    _version.state == PENDING,
                    _version.kind == CHECKPOINTS,
                    _job.state.in_(tuple(TERMINAL)),
                    _job.end_time < now - self._keep,
                )
            )
            for series in old:
                job = job_rows.by_uid(transaction, series.job)
                if job is None or self._read_by_others(transaction, job):
                    continue
                transaction.run(delete(tables.checkpoint).where(_checkpoint.job == series.job))
                self._artifacts.drop(transaction, [series])
        self._swept = now

    def _record(
        self, job: Row[Any], series: Version, point: CheckpointPoint, reader: ArtifactReader
    ) -> None:
        """Put a checkpoint on record."""
        self._folders.sign(series, point, reader.digest)
        with self._database.write() as transaction:
            known = self._known(transaction, job.uid)
            if checkpoint_rows.series_row(transaction, job.uid) is None or point in known:
                return
            transaction.run(
                insert(tables.checkpoint).values(
                    job=job.uid,
                    epoch=point.epoch,
                    step=point.step,
                    digest=reader.digest,
                    size_bytes=sum(reader.entry(file).plain_size for file in reader.files()),
                    state=COMPLETE,
                    create_time=self._clock(),
                )
            )
            # It has come further: what failed before does not count any more.
            transaction.run(
                update(tables.job)
                .where(_job.uid == job.uid)
                .values(failures=0, pauses=0, revision=_job.revision + 1)
            )
            transaction.after_commit(lambda: self._events.publish(job_rows.name_of(job)))
        self._settle(job, series, point)

    def _settle(self, job: Row[Any], series: Version, point: CheckpointPoint) -> None:
        """What follows when a checkpoint is on record; doing it again changes nothing.

        Its rank may have been deleting it at that moment: then it is not on record, and nothing
        goes because of it. Else what the job's rule keeps no longer goes, and what earlier starts
        have saved unheard.
        """
        if not self._folders.is_whole(series, point):
            with self._database.write() as transaction:
                checkpoint_rows.forget(transaction, job.uid, point)
            return
        with self._database.write() as transaction:
            fresh = job_rows.by_uid(transaction, job.uid)
            if fresh is None:
                return
            self._apply_rule(transaction, fresh)
            others = self._known(transaction, job.uid) - {point}
            if point.epoch > max((other.epoch for other in others), default=0):
                self._tasks.add(
                    transaction, TaskKind.DELETE_SUPERSEDED, job.uid, before=point.epoch
                )

    def _apply_rule(self, transaction: Transaction, job: Row[Any]) -> None:
        spec, kept = job_rows.spec_of(job), self._read_by_others(transaction, job)
        points = [
            point_of(row)
            for row in checkpoint_rows.of_job(transaction, job.uid)
            if row.state == COMPLETE
        ]
        gone = superseded(points, given(spec, "keep_last"), given(spec, "keep_every"))
        gone = [point for point in gone if point not in kept]
        checkpoint_rows.mark_for_deletion(transaction, self._tasks, job.uid, gone)

    def _read_by_others(self, state: Reading, job: Row[Any]) -> set[CheckpointPoint]:
        """The checkpoints of a job that other jobs begin with, or would when they are resumed."""
        read = job_rows.readers_of(state, job.project, ended_since=self._clock() - self._keep)
        rows = checkpoint_rows.of_job(state, job.uid)
        return {point_of(row) for row in rows if checkpoint_rows.uid_of(row, job.uid) in read}

    def _series(self, state: Reading, uid: str) -> Version | None:
        row = checkpoint_rows.series_row(state, uid)
        return None if row is None else self._artifacts.read(state, row)

    def _known(self, state: Reading, uid: str) -> set[CheckpointPoint]:
        return set(map(point_of, checkpoint_rows.of_job(state, uid)))
