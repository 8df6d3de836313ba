"""Rows of what the steps of a job measured: bounded for each job, however long it runs.

Rules kept here:
* of each job `MOST_POINTS` rows at most, evenly, with the first step and the newest of all and of
  the start that measures now (`core.thinning`);
* of a step done twice, by ranks or by a start that began again, the later one: what a newer start
  has passed is no longer there of an older one.

Called by `services.run_reports`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import delete, func, select

from appliance.control.store import tables
from appliance.control.store.database import Transaction
from appliance.core.thinning import MOST_POINTS, is_kept, stride

MOST_ROWS = MOST_POINTS + 1
"""Of one job: the newest step of its newest start may lie before that of the start before."""
_metric = tables.job_metric.c


def keep(
    transaction: Transaction, job: str, epoch: int, measured: Mapping[int, Mapping[str, float]]
) -> None:
    """Keep what steps of one start measured: step -> measurement by name -> value."""
    if not measured:
        return
    _forget_passed(transaction, job, epoch, measured)
    first, last = _ends(transaction, job, measured)
    apart, newest = stride(first, last), max(measured)
    rows = [
        {"job": job, "epoch": epoch, "step": step, "values": dict(values)}
        for step, values in measured.items()
        if step == newest or is_kept(step, first, last, apart)
    ]
    transaction.insert(tables.job_metric, rows)
    if apart > 1:
        kept = (first, last, newest)
        transaction.run(
            delete(tables.job_metric).where(
                _metric.job == job, _metric.step % apart != 0, _metric.step.not_in(kept)
            )
        )


def _forget_passed(
    transaction: Transaction, job: str, epoch: int, measured: Mapping[int, object]
) -> None:
    """Forget what these steps, and those left out between them, measured before."""
    low, high = min(measured), max(measured)
    mine = (_metric.job == job, _metric.epoch == epoch)
    before = transaction.value(select(func.max(_metric.step)).where(*mine, _metric.step < low))
    older = (
        _metric.job == job,
        _metric.epoch < epoch,
        _metric.step > (low - 1 if before is None else before),
        _metric.step <= high,
    )
    transaction.run(delete(tables.job_metric).where(*older))
    steps = list(measured)
    for at in range(0, len(steps), 500):
        again = _metric.step.in_(steps[at : at + 500])
        transaction.run(delete(tables.job_metric).where(*mine, again))


def _ends(transaction: Transaction, job: str, measured: Collection[int]) -> tuple[int, int]:
    """The first and the last step, of those that are kept and of new ones."""
    (known,) = transaction.all(
        select(func.min(_metric.step), func.max(_metric.step)).where(_metric.job == job)
    )
    steps = [*measured, *(step for step in known if step is not None)]
    return min(steps), max(steps)
