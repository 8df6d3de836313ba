"""What happened to a job, kept as long as the job: each start, where it ran, and why it ended.

Rules kept here:
* each move of a job from a state to another is one event, written in the transaction of the move
  (`services.work.job_rows.move`), so the history says what was;
* what a job waits for changes often: as long as it waits that is one event, with the newest words;
* of each job the first `FIRST` and the newest events are kept, `MAX_EVENTS` in all.

Called by the life of jobs and by `services.work.jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from appliance.api.jobs.v1 import job_event_pb2
from appliance.control.services.common.resources import timestamp
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.core.jobs import JobState

FIRST = 20
MAX_EVENTS = 200
MAX_MESSAGE = 1000
CREATED, WAITING, STARTED = "CREATED", "WAITING", "STARTED"
RANKS_RESTARTED, STOPPED, RESUMED, UPDATED = "RANKS_RESTARTED", "STOPPED", "RESUMED", "UPDATED"
_event = tables.job_event.c


@dataclass(frozen=True)
class Said:
    """What an event says besides what it is."""

    message: str = ""
    actor: str = ""
    shares: Sequence[dict[str, Any]] = ()
    checkpoint_step: int = 0
    outputs: Sequence[str] = field(default=())


def kind_of_move(before: JobState, to: JobState) -> str:
    """What a move from a state to another is."""
    if to == JobState.STARTING:
        return STARTED
    if to != JobState.QUEUED:
        return str(to)
    # One that pauses is queued again when it leaves a node that is drained.
    started = {JobState.STARTING, JobState.RUNNING, JobState.PAUSING}
    return STOPPED if before in started else RESUMED


def note(  # noqa: PLR0913  # the columns of a row
    transaction: Transaction, uid: str, kind: str, epoch: int, now: datetime, said: Said
) -> None:
    """Something has happened to a job."""
    newest = transaction.first(_of(uid).order_by(_event.number.desc()).limit(1))
    message = said.message[:MAX_MESSAGE]
    if kind == WAITING and newest is not None and newest.kind == WAITING:
        transaction.run(
            update(tables.job_event)
            .where(_event.job == uid, _event.number == newest.number)
            .values(message=message)
        )
        return
    number = 1 if newest is None else newest.number + 1
    transaction.run(
        insert(tables.job_event).values(
            job=uid,
            number=number,
            kind=kind,
            epoch=epoch,
            actor=said.actor,
            message=message,
            shares=list(said.shares),
            checkpoint_step=said.checkpoint_step,
            outputs=list(said.outputs),
            create_time=now,
        )
    )
    if number > MAX_EVENTS:
        oldest_kept = number - (MAX_EVENTS - FIRST)
        transaction.run(
            delete(tables.job_event).where(
                _event.job == uid, _event.number > FIRST, _event.number <= oldest_kept
            )
        )


def goes_on_from(transaction: Transaction, uid: str, epoch: int, step: int) -> None:
    """A start goes on from another checkpoint than was known when it began."""
    transaction.run(
        update(tables.job_event)
        .where(_event.job == uid, _event.epoch == epoch, _event.kind == STARTED)
        .values(checkpoint_step=step, message=f"goes on from step {step}")
    )


def of_job(state: Reading, uid: str, after: int, size: int) -> list[Row[Any]]:
    """Events of a job after a number, oldest first, at most so many."""
    wanted = _of(uid).where(_event.number > after).order_by(_event.number)
    return state.all(wanted.limit(size))


def start_of(state: Reading, uid: str, epoch: int) -> Row[Any] | None:
    """The event of a start, or of the first one after it that there is; None: there is none."""
    return state.first(
        _of(uid)
        .where(_event.kind == STARTED, _event.epoch >= epoch)
        .order_by(_event.epoch)
        .limit(1)
    )


def newest_start(state: Reading, uid: str) -> int:
    """Epoch of the newest start that is known; 0 when there is none."""
    newest = select(func.max(_event.epoch)).where(_event.job == uid, _event.kind == STARTED)
    return int(state.value(newest) or 0)


def resource(row: Row[Any]) -> job_event_pb2.JobEvent:
    """The message of a row."""
    return job_event_pb2.JobEvent(
        number=row.number,
        create_time=timestamp(row.create_time),
        kind=f"KIND_{row.kind}",
        epoch=row.epoch,
        actor=row.actor,
        message=row.message,
        shares=[
            job_event_pb2.JobShare(
                node=names.node(share["node"]),
                first_rank=share["rank_base"],
                ranks=len(share["devices"]),
                devices=share["devices"],
            )
            for share in row.shares
        ],
        checkpoint_step=row.checkpoint_step,
        outputs=row.outputs,
    )


def _of(uid: str) -> Any:  # noqa: ANN401  # a SELECT
    return select(tables.job_event).where(_event.job == uid)
