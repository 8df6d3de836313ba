"""Rows of jobs: read them, show them, change them under the right epoch.

Rules kept here:
* what a job reads is bound by uid when it is accepted, and read by that: another thing of the same
  name is never what an old job reads;
* a row changes only from the epoch and the states its writer believes in; whoever is late gets
  LeaseLost, or FailedPrecondition from the state machine, and changes nothing;
* a job is shown with the spec that runs, also one that a release accepted which did not fill the
  defaults in.

Called by `services.work.jobs` and by the life of jobs (`services.work.runs`,
`services.work.run_reports`).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import ColumnElement, Row, or_, select, update

from appliance.api.jobs.v1 import job_pb2
from appliance.control.events import QUEUE, Events
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.common.updates import etag_of
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.storage_tasks import TaskKind, why_waiting
from appliance.control.services.work import checkpoint_rows, job_events, pause_rows
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import artifact_kinds, jobs, names
from appliance.core.errors import FailedPrecondition, LeaseLost, NotFound
from appliance.core.jobs import TERMINAL, JobState
from appliance.core.names import Name
from appliance.kinds import kind_of
from appliance.kinds.kind import CHECKPOINT, Input, Kind

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


def spec_of(row: Row[Any]) -> Message:
    """The message of a job's spec, as it was kept."""
    return json_format.ParseDict(row.spec, kind_of(row.kind).spec())


def lost_seconds(row: Row[Any]) -> float | None:
    """How long the nodes of a job may be silent; None: as the site says; infinity: for ever."""
    on_lost = json_format.ParseDict(row.on_lost, job_pb2.OnLost())
    match on_lost.WhichOneof("policy"):
        case "wait":
            return math.inf
        case "replace_after_seconds":
            return float(on_lost.replace_after_seconds)
    return None


def bound(state: Reading, kind: Kind, spec: Message) -> dict[str, str]:
    """What a spec reads: resource name -> what that is now, for the column `inputs`.

    Raises NotFound for what is not there.
    """
    read = kind.inputs_of(spec).values()
    return {name: uid_of(state, Name.parse(name, pattern)) for name, pattern in read}


def uid_of(state: Reading, name: Name) -> str:
    """What a name of a version or of a checkpoint means now, as jobs keep it. Raises NotFound."""
    if name.kind != CHECKPOINT:
        return str(artifact_rows.version_row(state, name).uid)
    job, row = checkpoint_rows.by_name(state, name)
    return checkpoint_rows.uid_of(row, job.uid)


def inputs_of(state: Reading, row: Row[Any]) -> dict[str, Input]:
    """Facts of what a job reads, by field path. Raises NotFound for what is gone."""
    found: dict[str, Input] = {}
    for path, name in _reads(state, row).items():
        try:
            found[path] = input_of(state, name.kind, of_input(row, str(name)))
        except NotFound as error:
            raise NotFound(f"{name}, which it reads, was deleted", name=str(name)) from error
    return found


def of_input(row: Row[Any], name: str) -> str:
    """What an input of a job is bound to; raises NotFound when nobody knows any more."""
    if name not in row.inputs:
        raise missing(name)
    return str(row.inputs[name])


def _reads(state: Reading, row: Row[Any]) -> dict[str, Name]:
    """Field path -> name of what a start of a job reads.

    A job that has a checkpoint of its own does not read the one that it began with any more.
    """
    kind = kind_of(row.kind)
    found = kind.inputs_of(spec_of(row))
    if kind.beginning in found and checkpoint_rows.newest(state, row.uid) is not None:
        del found[kind.beginning]
    return {path: Name.parse(name, pattern) for path, (name, pattern) in found.items()}


def begins(state: Reading, row: Row[Any]) -> str:
    """What the next start of a job does, for a person: `goes on from step 350`."""
    newest = checkpoint_rows.newest(state, row.uid)
    if newest is not None:
        return f"goes on from step {newest.step}"
    kind = kind_of(row.kind)
    if kind.beginning in kind.inputs_of(spec_of(row)):
        return "goes on from the checkpoint that it began with"
    return "begins anew"


def input_of(state: Reading, kind: str, uid: str) -> Input:
    """Facts of a version or of a checkpoint.

    Args:
        state: to read.
        kind: of its name.
        uid: as jobs keep it.

    Raises NotFound when it is gone, or is being deleted.
    """
    if kind != CHECKPOINT:
        version = artifact_rows.version_of_uid(state, uid)
        holds = artifact_kinds.kind_of(version.kind, version.facts)
        return Input(holds, version.facts, version.size_bytes)
    job, row = checkpoint_rows.by_uid(state, uid)
    if row.state != checkpoint_rows.COMPLETE:
        raise missing(checkpoint_rows.name_of(job, row))
    facts = {
        "step": row.step,
        "kind": job.kind,
        "spec": job.spec,
        "ended": job.state in TERMINAL,
        "inputs": _facts_read(state, job),
    }
    return Input(CHECKPOINT, facts, row.size_bytes)


def _facts_read(state: Reading, job: Row[Any]) -> dict[str, Any]:
    """Path -> facts of the versions that a job reads, as far as they are still there."""
    found: dict[str, Any] = {}
    for path, (name, kind) in kind_of(job.kind).inputs_of(spec_of(job)).items():
        if kind != CHECKPOINT:
            with contextlib.suppress(NotFound):
                uid = of_input(job, name)
                found[path] = artifact_rows.version_of_uid(state, uid).facts
    return found


def digest_of(state: Reading, kind: str, uid: str) -> str:
    """The digest on record of a version or of a checkpoint, by its uid. Raises NotFound."""
    if kind == CHECKPOINT:
        return str(checkpoint_rows.by_uid(state, uid)[1].digest)
    return str(artifact_rows.version_of_uid(state, uid).manifest_digest)


def read_by(state: Reading, row: Row[Any]) -> list[tuple[Name, str]]:
    """Everything that a start of a job reads, each once: name and uid. Raises NotFound."""
    read = dict.fromkeys(_reads(state, row).values())
    return [(name, of_input(row, str(name))) for name in read]


def uids_read(state: Reading, row: Row[Any]) -> list[str]:
    """The uids of what a start of a job reads, as far as they are known."""
    names_read = map(str, _reads(state, row).values())
    return [row.inputs[name] for name in names_read if name in row.inputs]


def check_inputs(state: Reading, row: Row[Any]) -> None:
    """Raise FailedPrecondition naming what a job reads that was deleted since it was accepted."""
    gone = []
    for name in dict.fromkeys(_reads(state, row).values()):
        try:
            input_of(state, name.kind, of_input(row, str(name)))
        except NotFound:
            gone.append(str(name))
    if gone:
        raise FailedPrecondition(
            f"{name_of(row)} reads {', '.join(gone)}, which was deleted since the job was "
            "accepted; another version of that name is not what it began with. Create another job",
            inputs=", ".join(gone),
        )


def readers_of(state: Reading, project: str, ended_since: datetime | None = None) -> dict[str, str]:
    """What jobs of a project read: uid, as jobs keep it -> name of such a job.

    Args:
        state: to read.
        project: its id.
        ended_since: also of jobs that have ended since then without success, and may be resumed;
            None: of jobs that have not ended.
    """
    chosen: list[ColumnElement[bool]] = [_job.state.not_in(tuple(TERMINAL))]
    if ended_since is not None:
        chosen.append((_job.state != JobState.SUCCEEDED) & (_job.end_time >= ended_since))
    rows = state.all(select(tables.job).where(_job.project == project, or_(*chosen)))
    return {uid: name_of(row) for row in rows for uid in uids_read(state, row)}


def change(transaction: Transaction, events: Events, row: Row[Any], **values: Any) -> None:
    """Change a job that is still as `row` says, in its state; watchers wake after the commit.

    Args:
        transaction: to change it in.
        events: wakes watchers.
        row: as it was read; its epoch and state must still hold.
        values: of columns.

    Raises:
        LeaseLost: the row has another epoch or state by now.
    """
    _write(transaction, row, row.state, values)
    transaction.after_commit(lambda: events.publish(name_of(row)))


def move(  # noqa: PLR0913  # what is written, and what is said of it
    transaction: Transaction,
    events: Events,
    row: Row[Any],
    to: JobState,
    now: datetime,
    *,
    by: str = "",
    **values: Any,
) -> None:
    """Move a job that is still as `row` says to another state, which its history says.

    Args:
        transaction: to change it in.
        events: wakes watchers.
        row: as it was read; its epoch and state must still hold.
        to: the new state.
        now: the time.
        by: name of whoever did it; empty when the appliance did.
        values: of columns.

    Raises:
        FailedPrecondition: the state machine forbids the move.
        LeaseLost: the row has another epoch or state by now.
    """
    before = JobState(row.state)
    _write(transaction, row, str(jobs.move(before, to)), values)
    kind = job_events.kind_of_move(before, to)
    epoch = int(str(values.get("epoch", row.epoch)))
    job_events.note(
        transaction, row.uid, kind, epoch, now, _said(transaction, row, kind, by, values)
    )
    transaction.after_commit(lambda: events.publish(name_of(row), QUEUE))


def _write(
    transaction: Transaction, row: Row[Any], state: str, values: Mapping[str, object]
) -> None:
    changed = transaction.run(
        update(tables.job)
        .where(_job.uid == row.uid, _job.epoch == row.epoch, _job.state == row.state)
        .values(state=state, revision=_job.revision + 1, **values)
    )
    if changed != 1:
        raise LeaseLost(f"{name_of(row)} was changed by somebody else at the same time")


def _said(
    state: Reading, row: Row[Any], kind: str, by: str, values: Mapping[str, Any]
) -> job_events.Said:
    """What the event of a move says."""
    if kind == job_events.STARTED:
        newest = checkpoint_rows.newest(state, row.uid)
        return job_events.Said(
            begins(state, row),
            by,
            shares=values["placement"],
            checkpoint_step=0 if newest is None else newest.step,
        )
    outputs = _names_of(state, values.get("outputs", {}))
    return job_events.Said(str(values.get("message", "")), by, outputs=outputs)


def etag(row: Row[Any]) -> str:
    """Of what callers can change, and of its end. That it comes further is no change."""
    return etag_of(row.uid, json.dumps(row.on_lost, sort_keys=True), str(row.end_time))


def resource(state: Reading, row: Row[Any]) -> job_pb2.Job:
    """The resource of a row."""
    checkpoint = checkpoint_rows.newest(state, row.uid)
    job = job_pb2.Job(
        name=name_of(row),
        uid=row.uid,
        state=f"STATE_{row.state}",
        state_reason=_reason(state, row),
        epoch=row.epoch,
        nodes=[names.node(share["node"]) for share in row.placement],
        restarts=row.restarts,
        outputs=_names_of(state, row.outputs),
        creator=row.creator,
        create_time=timestamp(row.create_time),
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        etag=etag(row),
        checkpoint_step=0 if checkpoint is None else checkpoint.step,
    )
    getattr(job, row.kind).CopyFrom(_running_spec(state, row))
    if row.on_lost:
        json_format.ParseDict(row.on_lost, job.on_lost)
    json_format.ParseDict(row.progress, job.progress)
    if row.result:
        json_format.ParseDict(row.result, job.result)
    return job


def _reason(state: Reading, row: Row[Any]) -> str:
    """Why a job is in its state, and what it waits for."""
    said = [str(row.message)]
    if row.state == JobState.PAUSING:
        said.insert(0, pause_rows.asked(row.pause))
    elif row.state == JobState.REGISTERING and not row.message:
        said.append(why_waiting(state, TaskKind.REGISTER, row.uid))
    elif row.state == JobState.PAUSED and not row.pause:
        said.append(why_waiting(state, TaskKind.RESUME_PAUSED, row.uid))
    return "; ".join(filter(None, said))


def _running_spec(state: Reading, row: Row[Any]) -> Message:
    try:
        inputs = inputs_of(state, row)
    except NotFound:
        inputs = {}
    return kind_of(row.kind).filled(spec_of(row), inputs)


def _names_of(state: Reading, outputs: Mapping[str, str]) -> list[str]:
    """Names of the versions that a job has made, from their uids."""
    if not outputs:
        return []
    version = tables.artifact_version.c
    rows = state.all(select(tables.artifact_version).where(version.uid.in_(list(outputs.values()))))
    return sorted(
        artifact_rows.version_name(found.project, found.kind, found.artifact, found.number)
        for found in rows
    )
