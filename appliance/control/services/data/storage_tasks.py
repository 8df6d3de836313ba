"""What is still to be done with the object store: rows in a queue, so that nobody waits for it.

An object store can be slow, full or hung. Rules kept here:
* whoever wants something done there writes a row, in the transaction that makes it necessary, and
  goes on: neither is lost without the other, whatever is killed when;
* a task is done by whoever holds its lock. A lock ends, so that a task outlives who took it, unless
  a thread of this process is still in it; what it does can be done twice without harm;
* what fails is done again, less and less often, until it succeeds: each try is counted, and why it
  failed is kept;
* of one subject one task is done at a time.

Filled by the services; emptied by `appliance.control.background.storage_worker`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, case, delete, func, insert, select, update

from appliance.control.events import STORAGE, Events
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core.errors import ApplianceError
from appliance.core.waiting import pause_after

MAX_PAUSE = timedelta(minutes=1)
MAX_WAIT = timedelta(minutes=30)
"""For so long a task of kind RESUME_PAUSED can be put off."""
FIRST_PAUSE = timedelta(seconds=1)
LOCK_TIME = timedelta(hours=1)
"""After so long a task is done again; a large folder is deleted in minutes."""
_task = tables.storage_task.c


class TaskKind(StrEnum):
    """What is to be done. The subject is what it is about, of which one task is done at a time."""

    REGISTER = "register"
    """Register what a job made. Subject: the job's uid."""
    CHECK_CHECKPOINT = "check_checkpoint"
    """Put a checkpoint on record that was reported. Subject: the job's uid."""
    DELETE_CHECKPOINT = "delete_checkpoint"
    """Delete a checkpoint. Subject: the job's uid."""
    DELETE_FOLDER = "delete_folder"
    """Delete a folder whose row is gone. Subject: the folder. Details of a version: uid, name."""
    ERASE_KEYS = "erase_keys"
    """Have deleted keys in no file any more. Subject: the first of `versions` (uid, name, digest).
    `generation`: of the state from which on their rows are gone. Needs no object store."""
    DELETE_SUPERSEDED = "delete_superseded"
    """Delete what starts that are over have saved and what is not on record. Subject: the job's."""
    DELETE_UNKNOWN = "delete_unknown"
    """Mark the store as ours, and delete half-made folders that no row knows. Subject: empty."""
    COMMIT_UPLOAD = "commit_upload"
    """Make a version of what came by part. Subject: the upload's uid."""
    RESUME_PAUSED = "resume_paused"
    """Queue a job again that waits for space in the store. Subject: the job's uid."""


MAX_WHOLE = 2
"""Of `READ_WHOLE` at a time, half of the threads."""
READ_WHOLE = (TaskKind.REGISTER, TaskKind.COMMIT_UPLOAD)
"""What reads all of an artifact, which takes as long as to copy it: checkpoints do not wait."""
_AWAITED = (TaskKind.REGISTER, TaskKind.CHECK_CHECKPOINT, TaskKind.COMMIT_UPLOAD)


@dataclass(frozen=True)
class Task:
    """A task that was taken.

    Args:
        id: of its row.
        kind: what is to be done.
        subject: what it is about.
        details: what else is to be known; JSON.
        attempts: how often it has failed.
        lock: proves that this is who took it.
    """

    id: int
    kind: TaskKind
    subject: str
    details: Mapping[str, Any]
    attempts: int
    lock: str = field(repr=False)


class StorageTasks:
    """The queue."""

    def __init__(self, database: Database, events: Events, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._events = events
        self._clock = clock
        self._held: dict[int, tuple[TaskKind, str]] = {}
        """Tasks that threads of this process have taken: kinds and subjects.

        One may hang in a task for hours, longer than its lock.
        """

    def add(
        self, transaction: Transaction, kind: TaskKind, subject: str, **details: object
    ) -> None:
        """Let something be done after the commit. The same again, which nobody does yet, is one."""
        now = self._clock()
        waiting = select(_task.id, _task.details).where(
            _task.kind == kind, _task.subject == subject, _task.lock_token.is_(None)
        )
        for row in transaction.all(waiting):
            if row.details == details:
                transaction.run(delete(tables.storage_task).where(_task.id == row.id))
        transaction.run(
            insert(tables.storage_task).values(
                kind=kind, subject=subject, details=details, due_time=now, create_time=now
            )
        )
        transaction.after_commit(lambda: self._events.publish(STORAGE))

    def drop_oldest(
        self, transaction: Transaction, kind: TaskKind, subject: str, most: int
    ) -> None:
        """Let so many tasks of a kind about a subject wait; older ones are not done any more."""
        waiting = select(_task.id).where(
            _task.kind == kind, _task.subject == subject, _task.lock_token.is_(None)
        )
        rows = transaction.all(waiting.order_by(_task.id.desc()).offset(most))
        if rows:
            surplus = _task.id.in_([row.id for row in rows])
            transaction.run(delete(tables.storage_task).where(surplus))

    def put_off(
        self, transaction: Transaction, kind: TaskKind, subject: str, time: timedelta
    ) -> None:
        """Let the tasks of a kind about a subject be due so much later, `MAX_WAIT` at most."""
        transaction.run(
            update(tables.storage_task)
            .where(_task.kind == kind, _task.subject == subject)
            .values(due_time=self._clock() + time)
        )

    def waiting(self, state: Reading, kind: TaskKind, subject: str) -> list[Row[Any]]:
        """The rows of tasks of a kind about a subject that are still to be done."""
        wanted = select(tables.storage_task).where(_task.kind == kind, _task.subject == subject)
        return state.all(wanted.order_by(_task.id))

    def is_being_done(self, state: Reading, kind: TaskKind, subject: str) -> bool:
        """Whether somebody is in a task of a kind about a subject, or has lost its lock in it."""
        return any(row.lock_token is not None for row in self.waiting(state, kind, subject))

    def counts(self) -> dict[str, tuple[int, float]]:
        """Tasks that wait, and seconds since the oldest was asked for, by kind."""
        now = self._clock()
        wanted = select(
            _task.kind, func.count().label("number"), func.min(_task.create_time).label("oldest")
        ).group_by(_task.kind)
        with self._database.read() as state:
            rows = state.all(wanted)
        return {
            row.kind: (row.number, max((now - row.oldest).total_seconds(), 0.0)) for row in rows
        }

    def unlock_all(self) -> None:
        """At start: whoever held locks is gone, and everything is due."""
        with self._database.write() as transaction:
            transaction.run(
                update(tables.storage_task).values(
                    lock_token=None, lock_expire_time=None, due_time=self._clock()
                )
            )

    def take(self, kinds: Collection[TaskKind]) -> Task | None:
        """The next task of these kinds that is due, locked for the caller; None without one."""
        with self._database.read() as state:
            if state.first(self._due(kinds)) is None:
                return None
        lock = secrets.token_hex(16)
        row = None
        try:
            with self._database.write() as transaction:
                row = transaction.first(self._due(kinds))
                if row is None:
                    return None
                transaction.run(
                    update(tables.storage_task)
                    .where(_task.id == row.id)
                    .values(lock_token=lock, lock_expire_time=self._clock() + LOCK_TIME)
                )
                # In here: the next thread that takes one counts this one.
                self._held[row.id] = TaskKind(row.kind), row.subject
        except BaseException:
            if row is not None:
                self._held.pop(row.id, None)
            raise
        return Task(row.id, TaskKind(row.kind), row.subject, row.details, row.attempts, lock)

    def done(self, task: Task) -> None:
        """A task was done; nothing happens when somebody else has taken it since."""
        with self._database.write() as transaction:
            transaction.run(
                delete(tables.storage_task).where(
                    _task.id == task.id, _task.lock_token == task.lock
                )
            )
        self._held.pop(task.id, None)

    def failed(self, task: Task, why: str) -> None:
        """A task could not be done; it is due again after a pause."""
        with self._database.write() as transaction:
            transaction.run(
                update(tables.storage_task)
                .where(_task.id == task.id, _task.lock_token == task.lock)
                .values(
                    attempts=task.attempts + 1,
                    message=why,
                    due_time=self.next_try(task),
                    lock_token=None,
                    lock_expire_time=None,
                )
            )
        self._held.pop(task.id, None)

    def next_try(self, task: Task) -> datetime:
        """When a task that fails now is due again."""
        return self._clock() + pause_after(task.attempts + 1, FIRST_PAUSE, MAX_PAUSE)

    def _due(self, kinds: Collection[TaskKind]) -> Any:  # noqa: ANN401  # a SELECT of the table's rows
        now, held = self._clock(), dict(self._held)
        other = tables.storage_task.alias("other")
        whole = sum(kind in READ_WHOLE for kind, _ in held.values())
        crowded = list(READ_WHOLE) if whole >= MAX_WHOLE else []
        # What a clock that was ahead has dated waits for nothing.
        latest = case((_task.kind == TaskKind.RESUME_PAUSED, now + MAX_WAIT), else_=now + MAX_PAUSE)
        busy = select(other.c.subject).where(
            other.c.subject != "",
            other.c.lock_token.is_not(None),
            other.c.lock_expire_time > now,
            other.c.lock_expire_time <= now + LOCK_TIME,
        )
        return (
            select(tables.storage_task)
            .where(
                (_task.due_time <= now) | (_task.due_time > latest),
                _task.lock_token.is_(None)
                | (_task.lock_expire_time <= now)
                | (_task.lock_expire_time > now + LOCK_TIME),
                _task.subject.not_in(busy),
                _task.id.not_in(tuple(held)),
                _task.subject.not_in([subject for _, subject in held.values() if subject]),
                _task.kind.in_([kind for kind in kinds if kind not in crowded]),
            )
            # What somebody waits for comes before deletions, and what is new before what failed.
            .order_by(_task.kind.not_in(_AWAITED), _task.due_time, _task.id)
            .limit(1)
        )


def why_waiting(state: Reading, kind: TaskKind, subject: str, **details: object) -> str:
    """Why a task has not been done yet, and when it is tried again; empty when it has not failed.

    Args:
        state: to read.
        kind: of the task.
        subject: what it is about.
        details: those of the task that are known.
    """
    wanted = select(tables.storage_task).where(
        _task.kind == kind, _task.subject == subject, _task.attempts > 0
    )
    for row in state.all(wanted.order_by(_task.id)):
        if details.items() <= row.details.items():
            return f"{row.message}; tried again at {row.due_time:%H:%M:%S} UTC"
    return ""


def sentence_of(error: Exception) -> str:
    """Why a task failed, for a person."""
    if isinstance(error, ApplianceError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__
