"""Rows of what the steps of a job measured: bounded for each job, however long it runs.

Rules kept here:
* of each job `MAX_POINTS` rows at most, evenly, with the first step and the newest of all and of
  the start that measures now (`core.thinning`);
* of a step done twice, by ranks or by a start that began again, the later one: what a newer start
  has passed is no longer there of an older one, nor what ranks that began again have passed within
  one report, of their start.

Called by `services.work.run_reports`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import delete, func, select

from appliance.control.store import tables
from appliance.control.store.database import Transaction
from appliance.core.thinning import MAX_POINTS, thin

_AT_A_TIME = 500
_metric = tables.job_metric.c


def keep(
    transaction: Transaction, job: str, epoch: int, measured: Mapping[int, Mapping[str, float]]
) -> None:
    """Keep what steps of one start measured: step (0 or more) -> measurement by name -> value."""
    if not measured:
        return
    _forget_passed(transaction, job, epoch, measured)
    kept = _make_room(transaction, job, measured)
    rows = [
        {"job": job, "epoch": epoch, "step": step, "values": dict(values)}
        for step, values in measured.items()
        if step in kept
    ]
    transaction.insert(tables.job_metric, rows)


def _forget_passed(
    transaction: Transaction, job: str, epoch: int, measured: Collection[int]
) -> None:
    """Forget what these steps, and those left out between them, measured before."""
    low, high = min(measured), max(measured)
    mine = (_metric.job == job, _metric.epoch == epoch)
    before = transaction.value(select(func.max(_metric.step)).where(*mine, _metric.step < low))
    since = _metric.step >= low if before is None else _metric.step > before
    older = (_metric.job == job, _metric.epoch < epoch, since, _metric.step <= high)
    transaction.run(delete(tables.job_metric).where(*older))
    transaction.run(delete(tables.job_metric).where(*mine, _metric.step.between(low, high)))


def _make_room(transaction: Transaction, job: str, measured: Collection[int]) -> Collection[int]:
    """Which of these new steps are kept; when there are too many, older ones go too."""
    of_job = _metric.job == job
    count = transaction.value(select(func.count()).select_from(tables.job_metric).where(of_job))
    if count + len(measured) <= MAX_POINTS:
        return measured
    known = {row.step for row in transaction.all(select(_metric.step).where(of_job))}
    kept = {*thin({*known, *measured}), max(measured)}
    gone = sorted(known - kept)
    for at in range(0, len(gone), _AT_A_TIME):
        some = _metric.step.in_(gone[at : at + _AT_A_TIME])
        transaction.run(delete(tables.job_metric).where(of_job, some))
    return kept
