"""What a gateway counts. Labels are words of ours, never names of callers or endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.gateway.breaker import BreakerState
from appliance.gateway.links import ReplicaLink

_FIRST_TOKEN = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class GatewayMetrics:
    """Counters of one gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "appliance_gateway_requests",
            "Inference calls that ended, refused ones included.",
            ["front", "reason"],
            registry=registry,
        )
        self.tokens = Counter(
            "appliance_gateway_tokens", "Tokens in and out.", ["direction"], registry=registry
        )
        self.running = Gauge(
            "appliance_gateway_running", "Inference calls in work.", registry=registry
        )
        self.first_token = Histogram(
            "appliance_gateway_first_token_seconds",
            "Time to the first token.",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.between = Histogram(
            "appliance_gateway_between_tokens_seconds",
            "Mean time between the tokens of an answer.",
            buckets=_BETWEEN,
            registry=registry,
        )
        self.retries = Counter(
            "appliance_gateway_retries",
            "Answers tried again before their first token.",
            registry=registry,
        )
        self.continuations = Counter(
            "appliance_gateway_continuations",
            "Answers that went on with another replica.",
            registry=registry,
        )
        self.expiry = Gauge(
            "appliance_gateway_expiry_seconds",
            "Seconds until a certificate of this gateway ends.",
            ["what"],
            registry=registry,
        )
        self.usage_waiting = Gauge(
            "appliance_gateway_usage_waiting",
            "Ended calls that are not in the audit chain yet.",
            registry=registry,
        )
        self.waiting = Gauge(
            "appliance_gateway_waiting",
            "Answers that wait for a place in a replica.",
            registry=registry,
        )
        self.connections = Gauge(
            "appliance_gateway_connections",
            "Open connections to the OpenAI-compatible API.",
            registry=registry,
        )
        self.connections_refused = Counter(
            "appliance_gateway_connections_refused",
            "Connections to the OpenAI-compatible API that came to nothing.",
            ["reason"],
            registry=registry,
        )
        self.view_age = Gauge(
            "appliance_gateway_view_age_seconds",
            "Time since the control plane was heard.",
            registry=registry,
        )
        self.view_stale = Gauge(
            "appliance_gateway_view_stale",
            "Whether calls are decided by what the control plane said more than ten seconds ago.",
            registry=registry,
        )

    def moved(self, begun: bool) -> None:  # noqa: FBT001 - the one thing that is told
        """An answer went to another replica; `begun`: it had tokens already."""
        (self.continuations if begun else self.retries).inc()


class ReplicaStates(Collector):
    """Counts replicas by what their link is; reads them when asked."""

    def __init__(self, links: Callable[[], Iterable[ReplicaLink]]) -> None:
        self._links = links

    def collect(self) -> Iterable[Metric]:
        """Two gauges: links by state, breakers by state."""
        links = list(self._links())
        states = GaugeMetricFamily(
            "appliance_gateway_replicas", "Links to replicas by state.", labels=["state"]
        )
        for state in ("ready", "draining", "doubtful", "disconnected", "open"):
            states.add_metric([state], sum(_state(link) == state for link in links))
        breakers = GaugeMetricFamily(
            "appliance_gateway_breakers", "Breakers by state.", labels=["state"]
        )
        for kind in BreakerState:
            breakers.add_metric([kind.value], sum(link.breaker.state is kind for link in links))
        return [states, breakers]


def _state(link: ReplicaLink) -> str:
    if not link.connected:
        return "disconnected"
    if link.draining or link.retired:
        return "draining"
    if link.doubtful:
        return "doubtful"
    return "ready" if link.ready else "open"
