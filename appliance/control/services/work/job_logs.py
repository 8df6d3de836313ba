"""The last output of the ranks of starts that did not succeed, for whoever may read it.

Rules kept here:
* what ranks wrote may quote the text they read: it is sealed under a key of its project, for its
  job, epoch and node, and is nowhere else;
* when a start ends without success each of its nodes gets a row, `MAX_NODES` at most, and a node
  fills the row of its own part once; the rows of a newer start replace those of an older one;
* a job that has succeeded has none; the others keep them for `KEPT`, the newest `MAX_JOBS` of each
  project;
* `LAST_BYTES` of each node, whatever it sends.

The attacks: a node that writes into the log of work it was not given; a copy of the state database,
read by somebody; a row moved to another job. Called by the life of jobs (`services.work.runs`,
`services.work.run_reports`), by `services.work.jobs` and by the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, func, insert, or_, select, update

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_log_pb2
from appliance.control.services.common.keys import Keys
from appliance.control.services.common.resources import timestamp
from appliance.control.services.fleet.leases import Share
from appliance.control.services.work import job_rows
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.jobs import TERMINAL, JobState
from appliance.core.log import last_lines

LAST_BYTES = 8 << 10
MAX_NODES = 8
MAX_JOBS = 100
KEPT = timedelta(days=30)
SWEEP = timedelta(hours=1)
_log = tables.job_log.c
_job = tables.job.c


class JobLogs:
    """Keeps and shows last output.

    Args:
        database: the state.
        keys: seals under the keys of projects.
        clock: the time, aware.
    """

    def __init__(self, database: Database, keys: Keys, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock
        self._swept: datetime | None = None

    def expect(self, transaction: Transaction, job: Row[Any], shares: Sequence[Share]) -> None:
        """A start of a job is over without success: its nodes may say what they wrote last."""
        transaction.run(delete(tables.job_log).where(_log.job == job.uid, _log.epoch != job.epoch))
        said = {row.node for row in transaction.all(_of(job.uid))}
        silent = [share for share in shares if share.node not in said]
        for share in silent[: max(0, MAX_NODES - len(said))]:
            self._add(transaction, job, share.node, share.rank_base)
        self._drop_old(transaction, job.project)

    def keep(self, share: Share, report: agent.JobEnded) -> None:
        """A node ends a start that it holds a lease on; what it said before is replaced."""
        with self._database.write() as transaction:
            job = job_rows.by_uid(transaction, report.work.work)
            if job is None or job.epoch != report.work.epoch:
                return
            transaction.run(
                delete(tables.job_log).where(_log.job == job.uid, _log.node == share.node)
            )
            kept = transaction.all(_of(job.uid).where(_log.epoch == job.epoch))
            if len(kept) >= MAX_NODES:
                return
            self._add(transaction, job, share.node, share.rank_base)
            self._fill(transaction, job, share.node, report)

    def fill(self, node: str, report: agent.JobEnded) -> None:
        """A node ends its part of a start that is over: into the row that waits for it, if any."""
        uid, epoch = report.work.work, report.work.epoch
        waiting = _of(uid).where(
            _log.node == node, _log.epoch == epoch, _log.receive_time.is_(None)
        )
        with self._database.read() as state:
            # Most ends are of starts that nothing is kept of, and need no turn at writing.
            if state.first(waiting) is None:
                return
        with self._database.write() as transaction:
            job = job_rows.by_uid(transaction, uid)
            if job is not None and transaction.first(waiting) is not None:
                self._fill(transaction, job, node, report)

    def forget(self, transaction: Transaction, uid: str) -> None:
        """A job has succeeded."""
        transaction.run(delete(tables.job_log).where(_log.job == uid))

    def sweep(self) -> None:
        """Once an hour: drop what is older than `KEPT`."""
        now = self._clock()
        if self._swept is None or abs(now - self._swept) >= SWEEP:
            self._swept = now
            with self._database.write() as transaction:
                self._drop_old(transaction)

    def kept(self, state: Reading, uids: Iterable[str]) -> set[str]:
        """Which of these jobs have last output, or may get it."""
        return {row.job for row in state.all(select(_log.job).where(_log.job.in_(list(uids))))}

    def read(self, state: Reading, job: Row[Any]) -> job_log_pb2.JobLogs:
        """What is kept of a job. Raises Tampered when a row was changed or moved."""
        name, rows = job_rows.name_of(job), state.all(_of(job.uid))
        if not rows:
            return job_log_pb2.JobLogs(name=name, reason=_why_none(job))
        return job_log_pb2.JobLogs(
            name=name,
            epoch=rows[0].epoch,
            nodes=[
                job_log_pb2.NodeLog(
                    node=names.node(row.node),
                    text=self._open(state, job, row),
                    cut=row.cut,
                    receive_time=timestamp(row.receive_time),
                )
                for row in rows
            ],
        )

    def _add(self, transaction: Transaction, job: Row[Any], node: str, rank_base: int) -> None:
        transaction.run(
            insert(tables.job_log).values(
                job=job.uid,
                node=node,
                epoch=job.epoch,
                rank_base=rank_base,
                create_time=self._clock(),
            )
        )

    def _fill(
        self, transaction: Transaction, job: Row[Any], node: str, report: agent.JobEnded
    ) -> None:
        text = last_lines(report.log, LAST_BYTES)
        key_version, sealed = self._keys.seal(
            transaction, job.project, text.encode(), _place(job.uid, job.epoch, node)
        )
        transaction.run(
            update(tables.job_log)
            .where(_log.job == job.uid, _log.node == node)
            .values(
                key_version=key_version,
                sealed_text=sealed,
                cut=report.log_cut or len(text) < len(report.log),
                receive_time=self._clock(),
            )
        )

    def _open(self, state: Reading, job: Row[Any], row: Row[Any]) -> str:
        if row.sealed_text is None:
            return ""
        place = _place(row.job, row.epoch, row.node)
        return self._keys.open(state, job.project, row.key_version, row.sealed_text, place).decode()

    def _drop_old(self, transaction: Transaction, project: str | None = None) -> None:
        now = self._clock()
        made = _log.create_time
        # Also what a clock that was ahead has dated.
        transaction.run(delete(tables.job_log).where(or_(made < now - KEPT, made > now + KEPT)))
        if project is not None:
            newest = (
                select(_log.job)
                .join(tables.job, _job.uid == _log.job)
                .where(_job.project == project)
                .group_by(_log.job)
                .order_by(func.max(made).desc(), _log.job)
                .offset(MAX_JOBS)
            )
            if older := [row.job for row in transaction.all(newest)]:
                transaction.run(delete(tables.job_log).where(_log.job.in_(older)))


def _of(uid: str) -> Any:  # noqa: ANN401  # a SELECT
    return select(tables.job_log).where(_log.job == uid).order_by(_log.rank_base, _log.node)


def _place(uid: str, epoch: int, node: str) -> dict[str, str | int]:
    return {
        "table": "job_log",
        "column": "sealed_text",
        "job": uid,
        "epoch": epoch,
        "node": node,
        "version": 1,
    }


def _why_none(job: Row[Any]) -> str:
    """For a person who looked for output and finds none."""
    if job.state == JobState.SUCCEEDED:
        return "the job has succeeded: output is kept of starts that do not succeed"
    if job.state == JobState.PAUSED:
        return "the job is paused: output is kept when a start ends without success"
    if job.state not in TERMINAL and job.epoch:
        return "the job is at work: output is kept when a start ends without success"
    if job.placement and all(share["ended"] for share in job.placement):
        return "its ranks ended well: the state of the job says what went wrong afterwards"
    if job.epoch:
        return (
            f"nothing is kept any more: output is kept for {KEPT.days} days, and of the newest "
            f"{MAX_JOBS} jobs of a project that did not succeed"
        )
    return "no node has started the job: its state says why"
