"""Prometheus gauges of the queue of the object store. Registered by the composition root."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind


class TaskMetrics(Collector):
    """What waits, and since when, by kind; read when somebody asks."""

    def __init__(self, tasks: StorageTasks) -> None:
        self._tasks = tasks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Both gauges, with a line for each kind."""
        number = GaugeMetricFamily(
            "appliance_storage_tasks", "Tasks for the object store that wait.", labels=["kind"]
        )
        oldest = GaugeMetricFamily(
            "appliance_storage_task_oldest_seconds",
            "Seconds since the oldest of them was asked for.",
            labels=["kind"],
        )
        counts = self._tasks.counts()
        for kind in TaskKind:
            waiting, seconds = counts.get(kind, (0, 0.0))
            number.add_metric([kind], waiting)
            oldest.add_metric([kind], seconds)
        yield number
        yield oldest
