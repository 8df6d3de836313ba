"""Forgets, once a minute, the rows of what is over: one place for all that ends by itself.

Rules kept here:
* what is over counts no more the moment it ends, whoever looks at it; it only goes here;
* nothing is written when nothing is over;
* what a clock that was ahead has dated goes too, where it would stay for ever; known devices do not
  end here: they are few, and a clock that is ahead for an hour would forget all of them;
* each table says itself what is over in it; what has other tables or files with it (jobs' output,
  checkpoints, what gateways have reported) is swept by its own service.

The bounds are on one page, docs/bounds.md. Called by the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import ColumnElement, Table, delete, select

from appliance.control.auth import join_tokens, sessions
from appliance.control.store import requests, tables
from appliance.control.store.database import Database

SWEEP_SECONDS = 60.0
_Over = Callable[[datetime], ColumnElement[bool]]
OVER: tuple[tuple[Table, _Over], ...] = (
    (tables.request, requests.over),
    (tables.session, sessions.over),
    (tables.join_token, join_tokens.over),
)
"""What ends by itself."""


class Sweeper:
    """Sweeps.

    Args:
        clock: the time, aware.
        monotonic: seconds that only rise.
    """

    def __init__(
        self, database: Database, clock: Callable[[], datetime], monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._due = float("-inf")

    def sweep_when_due(self) -> None:
        """Sweep if it is time."""
        if self._monotonic() < self._due:
            return
        self.sweep()
        self._due = self._monotonic() + SWEEP_SECONDS

    def sweep(self) -> None:
        """Forget what is over now."""
        now = self._clock()
        with self._database.read() as state:
            over = any(
                state.first(select(table).where(is_over(now)).limit(1)) is not None
                for table, is_over in OVER
            )
            crowded = requests.crowded(state)
        if not over and not crowded:
            return
        with self._database.write() as transaction:
            for table, is_over in OVER:
                transaction.run(delete(table).where(is_over(now)))
            requests.forget_crowded(transaction, crowded)
