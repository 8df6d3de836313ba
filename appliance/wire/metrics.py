"""What every server counts: calls by method and outcome, calls in progress, what the process holds.

Tasks, threads, descriptors and memory are shown because they have to fall again after a flood.

Rules kept here: labels come from our own descriptors and status codes, never from a request, so
that no caller can fill the memory with label values; nothing about who called or what for is in
them.

Made by the composition root of a process with its own registry; used by the door.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60)


class CallMetrics:
    """Counters of one process' gRPC calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "appliance_rpc",
            "Finished gRPC calls.",
            ["method", "code", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "appliance_rpc_seconds",
            "Time of a gRPC call; for a stream until its end.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._active = Gauge(
            "appliance_rpc_active", "gRPC calls in progress.", ["method"], registry=registry
        )

    def started(self, method: str) -> None:
        """A call of a known method begins."""
        self._active.labels(method).inc()

    def finished(self, method: str, code: str, reason: str, seconds: float) -> None:
        """A call that was `started` has ended with a status code and, unless OK, a reason."""
        self._active.labels(method).dec()
        self._calls.labels(method, code, reason).inc()
        self._seconds.labels(method).observe(seconds)


class ProcessState(Collector):
    """What this process holds now; read when asked, by the thread that shows metrics.

    Args:
        loop: the one event loop of the process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """One gauge each."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        figures = {
            "tasks": ("Asyncio tasks.", len(asyncio.all_tasks(self._loop))),
            "threads": ("Threads.", _entries("task")),
            "descriptors": ("Open descriptors.", _entries("fd")),
            "resident_bytes": ("Memory in use.", pages * os.sysconf("SC_PAGE_SIZE")),
        }
        for name, (text, value) in figures.items():
            yield GaugeMetricFamily(f"appliance_process_{name}", text, value=value)


def _entries(folder: str) -> int:
    return sum(1 for _ in Path("/proc/self", folder).iterdir())
