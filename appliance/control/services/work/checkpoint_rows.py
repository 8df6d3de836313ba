"""Rows of checkpoints: find them, show them, and mark those that go.

A checkpoint belongs to its job; its key is that of the job's version of kind `checkpoints` (the
series). Rules kept here:
* the newest checkpoint on record is the one with the highest epoch, and of these the highest step;
* one that goes is DELETING first: nobody goes on from it any more; its row goes after its files.

Called by `services.work.job_rows`, `checkpoints`, `checkpoint_tasks`, `run_reports` and `release`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, select, update

from appliance.api.jobs.v1 import checkpoint_pb2
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.data.artifact_rows import PENDING
from appliance.control.services.data.artifacts import CHECKPOINTS, Version
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind, why_waiting
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.names import Name

COMPLETE = "COMPLETE"
DELETING = "DELETING"
_checkpoint = tables.checkpoint.c
_version = tables.artifact_version.c


def point_of(row: Row[Any]) -> CheckpointPoint:
    """The moment of the job that a row is about."""
    return CheckpointPoint(row.epoch, row.step)


def of_job(state: Reading, uid: str) -> list[Row[Any]]:
    """The rows of a job, newest first, also of those that are being deleted."""
    return state.all(
        select(tables.checkpoint)
        .where(_checkpoint.job == uid)
        .order_by(_checkpoint.epoch.desc(), _checkpoint.step.desc())
    )


def newest(state: Reading, uid: str) -> Row[Any] | None:
    """The row of the checkpoint that a start of a job goes on from; None when there is none."""
    return state.first(
        select(tables.checkpoint)
        .where(_checkpoint.job == uid, _checkpoint.state == COMPLETE)
        .order_by(_checkpoint.epoch.desc(), _checkpoint.step.desc())
        .limit(1)
    )


def by_name(state: Reading, name: Name) -> tuple[Row[Any], Row[Any]]:
    """The row of the job and the row of a checkpoint. Raises NotFound."""
    job, point = tables.job.c, CheckpointPoint.of_id(name["checkpoint"])
    owner = state.first(
        select(tables.job).where(job.project == name["project"], job.id == name["job"])
    )
    if owner is None or point is None:
        raise missing(str(name))
    row = state.first(select(tables.checkpoint).where(*_is(owner.uid, point)))
    if row is None:
        raise missing(str(name))
    return owner, row


def uid_of(row: Row[Any], job: str) -> str:
    """What tells a checkpoint from every other one: the uid of its job, and its id."""
    return f"{job}/{point_of(row).id}"


def by_uid(state: Reading, uid: str) -> tuple[Row[Any], Row[Any]]:
    """The row of the job and the row of a checkpoint, by `uid_of`. Raises NotFound."""
    job_uid, _, identifier = uid.partition("/")
    point = CheckpointPoint.of_id(identifier)
    owner = state.first(select(tables.job).where(tables.job.c.uid == job_uid))
    if owner is None or point is None:
        raise missing(f"checkpoint {uid}")
    row = state.first(select(tables.checkpoint).where(*_is(job_uid, point)))
    if row is None:
        raise missing(names.checkpoint(owner.project, owner.id, point.id))
    return owner, row


def series_row(state: Reading, uid: str) -> Row[Any] | None:
    """The row of the version that holds the key of a job's checkpoints; None when it has none."""
    return state.first(
        select(tables.artifact_version).where(
            _version.job == uid, _version.kind == CHECKPOINTS, _version.state == PENDING
        )
    )


def version_at(series: Version, row: Row[Any]) -> Version:
    """The version, with its key, that a checkpoint of a series is read as."""
    name = point_of(row).name
    return replace(
        series,
        uid=f"{series.uid}/{name}",
        folder=f"{series.folder}/{name}",
        digest=row.digest,
    )


def name_of(job: Row[Any], row: Row[Any]) -> str:
    """Resource name of a checkpoint of a job."""
    return names.checkpoint(job.project, job.id, point_of(row).id)


def resource(state: Reading, job: Row[Any], row: Row[Any]) -> checkpoint_pb2.Checkpoint:
    """The resource of a row."""
    why = ""
    if row.state == DELETING:
        kind, point = TaskKind.DELETE_CHECKPOINT, {"epoch": row.epoch, "step": row.step}
        why = why_waiting(state, kind, job.uid, **point)
    return checkpoint_pb2.Checkpoint(
        name=name_of(job, row),
        state=f"STATE_{row.state}",
        step=row.step,
        epoch=row.epoch,
        size_bytes=row.size_bytes,
        manifest_digest=row.digest,
        create_time=timestamp(row.create_time),
        state_reason=why,
    )


def mark_for_deletion(
    transaction: Transaction, tasks: StorageTasks, uid: str, points: Iterable[CheckpointPoint]
) -> None:
    """Nobody goes on from these checkpoints of a job any more; their files go soon."""
    for point in points:
        transaction.run(update(tables.checkpoint).where(*_is(uid, point)).values(state=DELETING))
        tasks.add(transaction, TaskKind.DELETE_CHECKPOINT, uid, epoch=point.epoch, step=point.step)


def forget(transaction: Transaction, uid: str, point: CheckpointPoint) -> None:
    """The files of a checkpoint are gone, and so is its row."""
    transaction.run(delete(tables.checkpoint).where(*_is(uid, point)))


def _is(uid: str, point: CheckpointPoint) -> tuple[Any, ...]:
    """The conditions that choose one row."""
    return (
        _checkpoint.job == uid,
        _checkpoint.epoch == point.epoch,
        _checkpoint.step == point.step,
    )
