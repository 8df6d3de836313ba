"""How often an address may call without having said who it is.

Rules kept here:
* one token bucket per source address (an IPv6 source is its /64), in memory only;
* a call pays when it is anonymous or its credential was refused; who has identified itself is never
  slowed down by somebody else at the same address;
* memory is bounded: the sources that called longest ago are forgotten first, and a forgotten source
  starts with a full bucket.

The attack: guessing passwords, codes and tokens, or filling the audit log, from one address.
Called by the gate.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from collections import OrderedDict
from collections.abc import Callable

from appliance.core.errors import Exhausted

MOST_SOURCES = 10_000
_PEER = re.compile(r"ipv[46]:(?:\[|%5B)?([0-9A-Fa-f.:]+?)(?:%[^\]]*)?(?:\]|%5D)?:[0-9]+")


def network_of(peer: str) -> str:
    """The source to count for, of a gRPC peer such as `ipv4:10.0.0.7:5312`.

    IPv4 address, IPv6 /64 network, or the text itself when it is neither (a local socket).
    """
    found = _PEER.fullmatch(peer)
    if found is None:
        return peer
    try:
        address = ipaddress.ip_address(found.group(1))
    except ValueError:
        return peer
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


class SourceLimit:
    """Token buckets by source.

    Args:
        per_second: calls that may come in the long run.
        burst: calls that may come at once.
        clock: seconds that only rise (`time.monotonic`).
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str) -> None:
        """Take one call of a source; `Exhausted` with the seconds to wait when it has none left."""
        source = network_of(peer)
        now = self._clock()
        with self._lock:
            left, since = self._buckets.pop(source, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._per_second)
            allowed = left >= 1.0
            self._buckets[source] = (left - 1.0 if allowed else left, now)
            while len(self._buckets) > MOST_SOURCES:
                self._buckets.popitem(last=False)
        if not allowed:
            wait = (1.0 - left) / self._per_second
            raise Exhausted(
                f"too many calls without an identity from this address: wait {wait:.0f} s, "
                "then repeat",
                retry_after=wait,
            )
