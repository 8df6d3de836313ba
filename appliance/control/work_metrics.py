"""Prometheus gauges of work and nodes: what somebody should look at. Read when somebody asks.

Registered by the composition root.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from appliance.control.services.leases import REMEMBERED_SECONDS, SILENT_SECONDS, Leases
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.jobs import TERMINAL, JobState

_job = tables.job.c


class WorkMetrics(Collector):
    """How many jobs are where, how many fail again and again, and which nodes are not heard of."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database = database
        self._leases = leases

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges."""
        alive = _job.state.not_in(TERMINAL)
        with self._database.read() as state:
            number = func.count().label("number")
            rows = state.all(select(_job.state, number).where(alive).group_by(_job.state))
            failing = state.value(select(func.count()).where(alive, _job.failures > 0))
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
            "appliance_nodes_silent",
            "Nodes that have not been heard of for 15 seconds to a day.",
            value=len(self._leases.silent(SILENT_SECONDS))
            - len(self._leases.silent(REMEMBERED_SECONDS)),
        )
        yield GaugeMetricFamily(
            "appliance_nodes_cut_off",
            "1 while more than half of the nodes are silent, so that none is given up.",
            value=self._leases.is_cut_off(),
        )
