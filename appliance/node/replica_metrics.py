"""What the replicas of this node count, shown by the agent: their own ports are chosen by chance.

Rules kept here:
* a replica is asked at the port of 127.0.0.1 that it said when it was ready, when somebody asks the
  agent; all of them together for `ASK_SECONDS` at most, and once in that time. Each has its share
  of what is left, so that one that hangs hides no other;
* what it answers is not trusted: of `MAX_BYTES` the numbers called `appliance_worker_…` are shown,
  under the names of the endpoint and the replica that were ordered, whatever it says itself.

The attack: a replica that was taken over, and points the agent to another port of the server, fills
its memory, or writes numbers of others. Called by the thread that shows metrics.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

ASK_SECONDS = 2.0
MAX_BYTES = 1 << 18
MAX_SAMPLES = 100
"""Of one replica."""
_NAME = re.compile(r"appliance_worker_[a-z_]{1,40}")
_ADDRESS = re.compile(r"127\.0\.0\.1:([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Source:
    """A replica that is ready: its endpoint's name, its id, and where its metrics are."""

    endpoint: str
    replica: str
    address: str


class ReplicaMetrics(Collector):
    """Asks the replicas.

    Args:
        sources: those that are ready now; from any thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self, sources: Callable[[], Iterable[Source]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._found: list[Metric] = []

    def collect(self) -> Iterator[Metric]:
        """A gauge for each number, with `endpoint` and `replica`."""
        with self._lock:
            if self._clock() - self._asked >= ASK_SECONDS:
                self._found = list(self._ask())
                self._asked = self._clock()
            yield from self._found

    def describe(self) -> list[Metric]:
        """Nothing: nobody is asked at the registration."""
        return []

    def _ask(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        end, sources = self._clock() + ASK_SECONDS, list(self._sources())
        for number, source in enumerate(sources):
            now = self._clock()
            mine = now + (end - now) / (len(sources) - number)
            for name, text, value in _read(source.address, mine, self._clock):
                family = families.setdefault(
                    name, GaugeMetricFamily(name, text, labels=["endpoint", "replica"])
                )
                family.add_metric([source.endpoint, source.replica], value)
        return families.values()


def _read(address: str, end: float, clock: Callable[[], float]) -> Iterator[tuple[str, str, float]]:
    """Name, help and value of each number of one replica; none of one that does not answer."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return
    try:
        text = _get(int(found[1]), end, clock)
        families = list(text_string_to_metric_families(text))
    except Exception:  # noqa: BLE001 - whatever the parser makes of what it said
        return
    count = 0
    for family in families:
        for sample in family.samples:
            if count < MAX_SAMPLES and not sample.labels and _NAME.fullmatch(sample.name):
                count += 1
                yield sample.name, family.documentation[:200], sample.value


def _get(port: int, end: float, clock: Callable[[], float]) -> str:
    """The body at `/metrics` of a port of this server. Raises OSError, ValueError."""

    def left() -> float:
        if (seconds := end - clock()) <= 0:
            raise TimeoutError
        return seconds

    with socket.create_connection(("127.0.0.1", port), left()) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) <= MAX_BYTES:
            connection.settimeout(left())
            if not (part := connection.recv(1 << 16)):
                break
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    if len(answer) > MAX_BYTES or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ValueError("it does not answer as expected")
    return body.decode()
