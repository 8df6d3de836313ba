"""Prometheus gauges of work and nodes: what somebody should look at. Read when somebody asks.

Registered by the composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Select, func, select

from appliance.control.services.agent.agents import SEEN_SECONDS
from appliance.control.services.fleet import node_rows
from appliance.control.services.fleet.certificates import EVICTED
from appliance.control.services.fleet.leases import REMEMBERED_SECONDS, SAID_SECONDS, Leases
from appliance.control.services.work.pauses import waits_for_space
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.jobs import TERMINAL, JobState

_job, _node = tables.job.c, tables.node.c


class WorkMetrics(Collector):
    """How many jobs are where, how many fail again and again, and which nodes are not heard of.

    Args:
        clock: the time, aware.
    """

    def __init__(self, database: Database, leases: Leases, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._leases = leases
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges."""
        alive = _job.state.not_in(TERMINAL)
        with self._database.read() as state:
            number = func.count().label("number")
            rows = state.all(select(_job.state, number).where(alive).group_by(_job.state))
            failing = state.value(
                select(func.count()).where(alive, _job.failures > 0, _job.state != JobState.PAUSED)
            )
            paused = state.all(select(_job.state, _job.pause).where(_job.state == JobState.PAUSED))
            silent = state.value(self._silent())
            cordoned = state.value(select(func.count()).where(_node.cordoned))
            draining, used = node_rows.draining(state), node_rows.use_by_node(state)
        counts = {row.state: row.number for row in rows}
        jobs = GaugeMetricFamily(
            "appliance_jobs", "Jobs that have not ended, by state.", labels=["state"]
        )
        for each in JobState:
            if each not in TERMINAL:
                jobs.add_metric([each], counts.get(each, 0))
        yield jobs
        yield GaugeMetricFamily(
            "appliance_jobs_failing",
            "Jobs whose ranks have failed, with no new checkpoint since.",
            value=failing,
        )
        yield GaugeMetricFamily(
            "appliance_jobs_without_space",
            "Jobs that are paused because the object store has no space.",
            value=sum(map(waits_for_space, paused)),
        )
        yield GaugeMetricFamily(
            "appliance_nodes_silent",
            "Nodes that were heard of in the last day, and are not now; none that is drained.",
            value=silent,
        )
        yield GaugeMetricFamily(
            "appliance_nodes_cut_off",
            "1 while more than half of the nodes are silent, so that none is given up.",
            value=self._leases.is_cut_off(),
        )

        yield GaugeMetricFamily(
            "appliance_nodes_cordoned",
            "Nodes that take nothing new, those that are drained too.",
            value=cordoned,
        )
        yield GaugeMetricFamily(
            "appliance_nodes_draining",
            "Nodes that are drained, or were, and were not uncordoned since.",
            value=len(draining),
        )
        yield GaugeMetricFamily(
            "appliance_draining_devices",
            "Devices that work still holds on nodes that are drained.",
            value=sum(used[node].devices for node in draining if node in used),
        )

    def _silent(self) -> Select[Any]:
        """Counted in the rows, which outlive this process: who was heard of, and when."""
        now = self._clock()
        return select(func.count()).where(
            _node.state != EVICTED,
            ~_node.draining,
            _node.seen_time > now - timedelta(seconds=REMEMBERED_SECONDS),
            _node.seen_time < now - timedelta(seconds=SAID_SECONDS + SEEN_SECONDS),
        )
