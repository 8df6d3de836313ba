"""Rows of jobs: read them, show them, change them under the right epoch.

Rules kept here:
* a row changes only from the epoch and the states its writer believes in; whoever is late gets
  LeaseLost, or FailedPrecondition from the state machine, and changes nothing;
* a job is shown with the spec that runs, also one that a release accepted which did not fill the
  defaults in.

Called by `services.jobs` and by the life of jobs (`services.runs`, `services.run_reports`).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import Row, select, update

from appliance.api.jobs.v1 import job_pb2
from appliance.control.events import QUEUE, Events
from appliance.control.services import artifact_rows, job_specs
from appliance.control.services.job_specs import Input
from appliance.control.services.resources import missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import LeaseLost, NotFound
from appliance.core.jobs import JobState, move
from appliance.core.names import Name

_job = tables.job.c


def by_name(state: Reading, name: Name) -> Row[Any]:
    """The row of a job. Raises NotFound."""
    row = state.first(
        select(tables.job).where(_job.project == name["project"], _job.id == name["job"])
    )
    if row is None:
        raise missing(str(name))
    return row


def by_uid(state: Reading, uid: str) -> Row[Any] | None:
    """The row of a job, or None."""
    return state.first(select(tables.job).where(_job.uid == uid))


def name_of(row: Row[Any]) -> str:
    """Resource name of a job."""
    return names.job(row.project, row.id)


def point_of(row: Row[Any]) -> CheckpointPoint:
    """The newest checkpoint of a job that is on record; its step is 0 when there is none."""
    return CheckpointPoint(row.checkpoint_epoch, row.checkpoint_step)


def columns_of(point: CheckpointPoint, digest: str) -> dict[str, object]:
    """The columns that put a checkpoint on record."""
    return {
        "checkpoint_epoch": point.epoch,
        "checkpoint_step": point.step,
        "checkpoint_digest": digest,
    }


def spec_of(row: Row[Any]) -> Message:
    """The message of a job's spec, as it was kept."""
    return json_format.ParseDict(row.spec, job_specs.KINDS[row.kind]())


def inputs_of(state: Reading, row: Row[Any]) -> dict[str, Input]:
    """Facts of what a job reads, by field path. Raises NotFound for what is gone."""
    found: dict[str, Input] = {}
    for path, (name, kind) in job_specs.inputs_of(row.kind, spec_of(row)).items():
        version = artifact_rows.version_row(state, Name.parse(name, kind))
        found[path] = Input(version.kind, version.facts, version.size_bytes)
    return found


def input_versions(state: Reading, row: Row[Any]) -> list[tuple[str, Row[Any]]]:
    """(resource name, row) of every version a job reads. Raises NotFound for what is gone."""
    wanted = dict.fromkeys(job_specs.inputs_of(row.kind, spec_of(row)).values())
    return [
        (name, artifact_rows.version_row(state, Name.parse(name, kind))) for name, kind in wanted
    ]


def change(
    transaction: Transaction,
    events: Events,
    row: Row[Any],
    to: JobState | None = None,
    **values: object,
) -> None:
    """Change a job that is still as `row` says; watchers wake after the commit.

    Args:
        transaction: to change it in.
        events: wakes watchers.
        row: as it was read; its epoch and state must still hold.
        to: the new state, None to stay.
        values: further columns.

    Raises:
        FailedPrecondition: the state machine forbids the move.
        LeaseLost: the row has another epoch or state by now.
    """
    state = row.state if to is None else str(move(JobState(row.state), to))
    changed = transaction.run(
        update(tables.job)
        .where(_job.uid == row.uid, _job.epoch == row.epoch, _job.state == row.state)
        .values(state=state, revision=_job.revision + 1, **values)
    )
    if changed != 1:
        raise LeaseLost(f"{name_of(row)} was changed by somebody else at the same time")
    topics = [name_of(row)] if to is None else [name_of(row), QUEUE]
    transaction.after_commit(lambda: events.publish(*topics))


def resource(state: Reading, row: Row[Any]) -> job_pb2.Job:
    """The resource of a row."""
    job = job_pb2.Job(
        name=name_of(row),
        uid=row.uid,
        state=f"STATE_{row.state}",
        state_reason=row.message,
        epoch=row.epoch,
        nodes=[names.node(share["node"]) for share in row.placement],
        restarts=row.restarts,
        outputs=_outputs(state, row),
        creator=row.creator,
        create_time=timestamp(row.create_time),
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        etag=str(row.revision),
        checkpoint_step=row.checkpoint_step,
    )
    getattr(job, row.kind).CopyFrom(_running_spec(state, row))
    json_format.ParseDict(row.progress, job.progress)
    if row.result:
        json_format.ParseDict(row.result, job.result)
    return job


def _running_spec(state: Reading, row: Row[Any]) -> Message:
    def inputs() -> dict[str, Input]:
        try:
            return inputs_of(state, row)
        except NotFound:
            return {}

    return job_specs.filled(row.kind, spec_of(row), inputs)


def _outputs(state: Reading, row: Row[Any]) -> list[str]:
    if not row.outputs:
        return []
    version = tables.artifact_version.c
    rows = state.all(
        select(tables.artifact_version).where(version.uid.in_(list(row.outputs.values())))
    )
    return sorted(
        artifact_rows.version_name(found.project, found.kind, found.artifact, found.number)
        for found in rows
    )
