"""What every server counts: calls and their time by method and outcome, and calls in progress.

Rules kept here: labels come from our own descriptors and status codes, never from a request, so
that no caller can fill the memory with label values; nothing about who called or what for is in
them.

Made by the composition root of a process with its own registry; used by the door.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
