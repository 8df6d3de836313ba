"""Jobs that pause: because somebody asks for it, or because the object store is full.

Rules kept here:
* the row is the order: it says who has asked (`pause`) before any node hears of it, and each pass
  of the scheduler repeats it to the nodes of a job that is PAUSING, so that neither a restart of
  the control plane nor a node that was away loses it;
* a job that somebody has paused goes on when somebody resumes it, and never by itself; the grace is
  bounded, and a job whose ranks do not save within it pauses all the same;
* a pause is no failure: it uses up no start;
* a job that leaves a node which is drained pauses in the same way, and is queued again; a person's
  order takes the place of that;
* a job for which the object store has no space is queued again when there is some; one that pauses
  again and again without a new checkpoint waits longer each time.

Called by `services.work.jobs` (a person asks), `run_reports` (ranks say how it went), the storage
worker (`go_on`), `drains` (`leave`) and the scheduler (`run_pass`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.control.events import Events
from appliance.control.services.data.storage_tasks import MAX_WAIT, StorageTasks, TaskKind
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import Leases, Share
from appliance.control.services.fleet.run_orders import stop_order
from appliance.control.services.work import job_events, job_rows, pause_rows
from appliance.control.services.work.runs import Runs
from appliance.control.services.work.shares import shares_of
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import FailedPrecondition, StoreFull
from appliance.core.jobs import LEASED, TERMINAL, JobState
from appliance.core.waiting import pause_after
from appliance.kinds import kind_of

FIRST_PAUSE = timedelta(minutes=1)
"""A job that pauses for a full store goes on no sooner, however much space there is; twice as late
after each further pause without a new checkpoint."""
LEEWAY_SECONDS = 30.0
"""A node ends its part itself when the grace is over; after this it is not waited for any more."""
_job = tables.job.c
_logger = logging.getLogger(__name__)


class Pauses:
    """Pauses jobs.

    Args:
        clock: the time, aware.
        served: seconds during which this control plane has served (`services.fleet.served_clock`).
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        tasks: StorageTasks,
        leases: Leases,
        fleet: ConnectedAgents,
        runs: Runs,
        events: Events,
        clock: Callable[[], datetime],
        served: Callable[[], float],
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._leases = leases
        self._fleet = fleet
        self._runs = runs
        self._events = events
        self._clock = clock
        self._served = served
        self._since: dict[tuple[str, int], float] = {}

    def ask(self, transaction: Transaction, row: Row[Any], by: str, grace_seconds: float) -> None:
        """Pause a job for somebody; one that pauses already, for somebody, stays as it is.

        Args:
            transaction: of the caller; nodes are told after its commit.
            row: of the job.
            by: who or what asks, for a person: `users/alice`.
            grace_seconds: in which a checkpoint must be saved; 0: none is saved.

        Raises FailedPrecondition when the job has ended, or is done and being registered.
        """
        paused = row.state == JobState.PAUSED
        pauses = row.state == JobState.PAUSING and not pause_rows.leaves(row.pause)
        if pauses or (paused and row.pause):
            return
        pause = pause_rows.order(by, grace_seconds)
        if row.state in LEASED:
            self._ask_leased(transaction, row, pause)
        elif paused or row.state == JobState.QUEUED:
            values = {"message": f"paused by {by}", "pause": pause, "retry_time": None}
            now = self._clock()
            if paused:
                job_rows.change(transaction, self._events, row, **values)
                said = job_events.Said(f"paused by {by}", by)
                job_events.note(transaction, row.uid, row.state, row.epoch, now, said)
            else:
                job_rows.move(transaction, self._events, row, JobState.PAUSED, now, by=by, **values)
        else:
            raise FailedPrecondition(_why_not(row), state=row.state)

    def leave(
        self, transaction: Transaction, row: Row[Any], node: str, grace_seconds: float
    ) -> None:
        """Let a job, which is leased, leave a node that is drained.

        Args:
            transaction: of the caller; nodes are told after its commit.
            row: of the job.
            node: name of the node.
            grace_seconds: in which a checkpoint must be saved; 0: none is saved.
        """
        pause = pause_rows.leaving(node, grace_seconds)
        if self._ask_leased(transaction, row, pause):
            transaction.after_commit(lambda: self._runs.note_pause_over(row, pause))

    def run_pass(self) -> None:
        """A pass: tell the nodes of jobs that are to pause, and give up those that do not."""
        with self._database.read() as state:
            rows = state.all(select(tables.job).where(_job.state == JobState.PAUSING))
        now = self._served()
        starts = [(row.uid, row.epoch) for row in rows]
        self._since = {start: self._since.get(start, now) for start in starts}
        for row in rows:
            grace = float(row.pause["grace_seconds"])
            left = self._since[row.uid, row.epoch] + grace - now
            if left <= -LEEWAY_SECONDS:
                why = f"its nodes have not said within {grace:g} s that one was saved"
                self._runs.lost(row.uid, row.epoch, why)
                continue
            if not self._leases.holds(row.uid):
                # It was lost at the moment when somebody asked.
                self._runs.lost(row.uid, row.epoch, "its start was over already")
                continue
            order = stop_order(row.uid, row.epoch, max(left, 0.0), save=True)
            for share in shares_of(row):
                if not share.ended:
                    self._fleet.send(share.node, order)

    def saved(
        self, transaction: Transaction, row: Row[Any], shares: list[Share], what: str
    ) -> bool:
        """A part of a job has ended after its ranks saved a checkpoint; whether it was the last.

        Args:
            transaction: to change the row in.
            row: of the job, which is PAUSING.
            shares: as they are now.
            what: its ranks say.
        """
        over = all(share.ended for share in shares)
        if over:
            said = pause_rows.saved(row.pause, what)
            self._runs.end_pause_in(transaction, row, row.pause, said, [])
            transaction.after_commit(lambda: self._runs.note_pause_over(row, row.pause))
        else:
            placement = [share.as_json() for share in shares]
            job_rows.change(transaction, self._events, row, placement=placement)
        return over

    def store_full(self, uid: str, epoch: int, why: str) -> None:
        """The object store has no space for what a job wants to write there."""
        with self._runs.of_start(uid, epoch) as (transaction, row):
            if row is None:
                return
            if row.state == JobState.PAUSING and not pause_rows.leaves(row.pause):
                said = pause_rows.unsaved(row.pause, why, job_rows.begins(transaction, row))
                self._runs.set_aside_in(transaction, row, said)
            else:
                self._runs.set_aside_in(
                    transaction,
                    row,
                    f"paused until the object store has space, then it goes on by itself: {why}",
                    pause={},
                    pauses=row.pauses + 1,
                )
                self._tasks.add(transaction, TaskKind.RESUME_PAUSED, uid)
                wait = pause_after(row.pauses + 1, FIRST_PAUSE, MAX_WAIT)
                self._tasks.put_off(transaction, TaskKind.RESUME_PAUSED, uid, wait)
        self._runs.note_paused(row, StoreFull.reason)
        _logger.error("job %s is paused: %s", uid, why)

    def go_on(self, uid: str) -> None:
        """The store has space: queue a job again, unless it is paused no longer, or by somebody."""
        with self._database.write() as transaction:
            row = job_rows.by_uid(transaction, uid)
            if row is None or not waits_for_space(row):
                return
            message = "goes on: the object store has space again"
            job_rows.move(
                transaction,
                self._events,
                row,
                JobState.QUEUED,
                self._clock(),
                message=message,
            )

    def _ask_leased(self, transaction: Transaction, row: Row[Any], pause: dict[str, Any]) -> bool:
        """Pause a job that nodes hold; its time begins anew when it pauses already.

        Returns whether its start is over at once.
        """
        keeps = kind_of(row.kind).checkpoint_bytes is not None
        if keeps and pause["grace_seconds"] > 0:
            # The next pass, which this change wakes, tells the nodes.
            now, by = self._clock(), str(pause["by"])
            if row.state == JobState.PAUSING:
                job_rows.change(transaction, self._events, row, pause=pause)
            else:
                to = JobState.PAUSING
                job_rows.move(transaction, self._events, row, to, now, by=by, pause=pause)
            transaction.after_commit(lambda: self._begin_anew(row.uid, row.epoch))
            return False
        if keeps:
            then = job_rows.begins(transaction, row)
            why = pause_rows.unsaved(pause, "it was given no time to save one", then)
        else:
            why = pause_rows.anew(pause, row.kind)
        self._runs.end_pause_in(transaction, row, pause, why, by=str(pause["by"]))
        transaction.after_commit(lambda: self._runs.stop(row.uid, row.epoch))
        return True

    def _begin_anew(self, uid: str, epoch: int) -> None:
        """The time of a pause begins with the next pass."""
        self._since.pop((uid, epoch), None)


def waits_for_space(row: Row[Any]) -> bool:
    """Whether a job is paused because the object store was full, and by nobody."""
    return bool(row.state == JobState.PAUSED and not row.pause)


def _why_not(row: Row[Any]) -> str:
    if row.state in TERMINAL:
        return f"the job has ended ({row.state}): there is nothing to pause"
    return (
        "the job's ranks are done, and what it made is being registered: there is nothing to pause;"
        " wait for it, or cancel it"
    )
