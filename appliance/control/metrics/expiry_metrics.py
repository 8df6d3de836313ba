"""A Prometheus gauge of what ends, and when. Registered by the composition root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance.control.services.fleet.expirations import Expirations


class ExpiryMetrics(Collector):
    """Seconds to the end of each; read when somebody asks.

    Args:
        clock: the time, aware.
    """

    def __init__(self, expirations: Expirations, clock: Callable[[], datetime]) -> None:
        self._expirations = expirations
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Two gauges: the end of each, and how many somebody must see to."""
        ends = GaugeMetricFamily(
            "appliance_control_expiry_seconds",
            "Seconds until something ends; negative when it has.",
            labels=["what"],
        )
        now, every = self._clock(), self._expirations.all()
        for each in every:
            ends.add_metric([each.what], (each.time - now).total_seconds())
        due = sum(each.time - now < each.notice for each in every)
        yield ends
        yield GaugeMetricFamily(
            "appliance_control_expiries_due", "Of these, those that somebody must see to.", due
        )
