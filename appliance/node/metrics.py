"""What the agent counts. Made by the composition root with its own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class NodeMetrics:
    """Counters of one agent; labels are words of ours, never names of work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = Gauge(
            "appliance_node_work", "Work on this node.", ["kind"], registry=registry
        )
        self.ended = Counter(
            "appliance_node_work_ended",
            "Work that ended on this node.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.connected = Gauge(
            "appliance_node_connected", "Whether the control plane is connected.", registry=registry
        )
        self.connections = Counter(
            "appliance_node_connections", "Streams to the control plane.", registry=registry
        )
