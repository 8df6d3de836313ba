"""Says with a job which of its nodes is not heard of.

Rule kept here: what is said is taken back when the node is heard of again, also by a control plane
that started in between. Called by the scheduler, and by `services.system.node_work`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.control.events import Events
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.work import job_rows
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.jobs import LEASED, JobState

_UNHEARD = " not been heard of since "
"""In each sentence of this module, and in no other that a job says."""


def said_of(row: Row[Any]) -> str:
    """What is said with a job of nodes that are not heard of; empty while all are."""
    return str(row.message) if _UNHEARD in row.message else ""


class SilentNodes:
    """What is said of silent nodes."""

    def __init__(
        self,
        database: Database,
        leases: Leases,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._leases = leases
        self._events = events
        self._clock = clock
        self._said: dict[str, tuple[object, ...]] = {}

    def restore(self) -> None:
        """At start: what is said of silent nodes was said by the control plane before."""
        with self._database.read() as state:
            rows = state.all(select(tables.job).where(tables.job.c.state.in_(LEASED)))
        self._said = {row.uid: (row.message,) for row in rows if _UNHEARD in row.message}

    def report(self, silent: Mapping[str, float]) -> None:
        """Say with jobs at work which of their nodes is not heard of, and take it back.

        Args:
            silent: seconds of silence by node.
        """
        nodes: dict[str, list[str]] = {}
        for node in silent:
            for work in self._leases.works_of(node):
                if "/" not in work:
                    nodes.setdefault(work, []).append(node)
        for uid in sorted(nodes.keys() | self._said.keys()):
            missed = nodes.get(uid, [])
            then = self._then(uid) if missed else ""
            now = (*missed, then) if missed else ()
            if self._said.get(uid, ()) == now:
                continue
            self._write(uid, self._silence(missed, silent, then))
            self._said[uid] = now
            if not now:
                del self._said[uid]

    def _then(self, uid: str) -> str:
        """What becomes of a job whose nodes stay silent."""
        seconds = self._leases.lost_seconds(uid)
        if math.isinf(seconds):
            return "it waits for that, as its on_lost says"
        if self._leases.is_alone():
            return "it waits for that: there is no other node"
        if self._leases.is_cut_off(seconds):
            return "more than half of the nodes are silent, so nothing starts elsewhere"
        return f"it starts elsewhere after {seconds:.0f} s"

    def _silence(self, nodes: Sequence[str], silent: Mapping[str, float], then: str) -> str:
        if not nodes:
            return ""
        since = self._clock() - timedelta(seconds=max(silent[node] for node in nodes))
        many = f"nodes {', '.join(nodes)} have" if len(nodes) > 1 else f"node {nodes[0]} has"
        return f"{many}{_UNHEARD}{since:%H:%M:%S} UTC; {then}"

    def _write(self, uid: str, message: str) -> None:
        with self._database.write() as transaction:
            row = job_rows.by_uid(transaction, uid)
            if row is None or row.state not in LEASED:
                return
            if row.state == JobState.PAUSING:
                message = message.partition(";")[0]  # it starts nowhere
            is_news = row.message != message if message else _UNHEARD in row.message
            if is_news:
                job_rows.change(transaction, self._events, row, message=message)
