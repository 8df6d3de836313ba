"""Jobs on nodes that are drained: each saves a checkpoint and is queued again.

Rules kept here:
* the node's row is the order: each pass looks at what is on it again, so that neither a restart of
  the control plane nor a node that was away loses it;
* a job leaves all of its nodes at once, and uses up no start by that;
* a job whose kind keeps no checkpoints may end within the grace, and begins anew after it;
* what somebody has paused stays paused;
* it is not asked whether there is room elsewhere: a drain empties the node, and a job that fits
  nowhere else waits, with the reason in its state.

Times are not stored: a control plane that starts again gives the whole grace once more. Called by
the scheduler; replicas leave by `services.serving.replicas`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Row, select

from appliance.control.events import Events
from appliance.control.services.fleet import node_rows
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.work import job_rows, pause_rows
from appliance.control.services.work.pauses import Pauses
from appliance.control.services.work.shares import shares_of
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.jobs import LEASED, JobState
from appliance.kinds import kind_of


class Drains:
    """Lets jobs leave nodes.

    Args:
        served: seconds during which this control plane has served (`services.fleet.served_clock`).
    """

    def __init__(
        self,
        database: Database,
        pauses: Pauses,
        leases: Leases,
        events: Events,
        served: Callable[[], float],
    ) -> None:
        self._database = database
        self._leases = leases
        self._events = events
        self._pauses = pauses
        self._served = served
        self._since: dict[str, float] = {}
        self._ending: dict[str, list[tuple[str, int]]] = {}

    def run_pass(self) -> None:
        """A pass: ask the jobs that are on these nodes to leave."""
        with self._database.read() as state:
            nodes = node_rows.draining(state)
            rows = _leased(state) if nodes else []
        self._leases.leave_out(nodes)
        now = self._served()
        self._since = {node: self._since.get(node, now) for node in nodes}
        for row in rows:
            node = left_by(row, nodes)
            if node is not None and self._is_due(row, node):
                self._leave(row.uid, node)
        ending = {node: self._leases.ending(node) for node in nodes}
        # Nothing else tells that the last process of a node has ended.
        changed = (node for node in nodes if ending[node] != self._ending.get(node, []))
        self._events.publish(*map(names.node, changed))
        self._ending = ending

    def _is_due(self, row: Row[Any], node: Row[Any]) -> bool:
        """Whether a job is to be told now, because it was not, or is given another time."""
        if row.state == JobState.PAUSING:
            given = row.pause["grace_seconds"]
            return pause_rows.leaves(row.pause) and bool(given != node.drain_grace_seconds)
        if kind_of(row.kind).checkpoint_bytes is None:
            return self._since[node.id] + float(node.drain_grace_seconds) <= self._served()
        return True

    def _leave(self, uid: str, node: Row[Any]) -> None:
        with self._database.write() as transaction:
            row = job_rows.by_uid(transaction, uid)
            # It may have ended since, or somebody has paused it.
            if row is None or row.state not in LEASED or not self._is_due(row, node):
                return
            self._pauses.leave(transaction, row, names.node(node.id), node.drain_grace_seconds)


def left_by(row: Row[Any], nodes: Mapping[str, Row[Any]]) -> Row[Any] | None:
    """Which of these nodes, the first by name, a job is on that has not ended there."""
    on = sorted(share.node for share in shares_of(row) if not share.ended)
    return next((nodes[node] for node in on if node in nodes), None)


def _leased(state: Reading) -> list[Row[Any]]:
    return state.all(select(tables.job).where(tables.job.c.state.in_(LEASED)))
