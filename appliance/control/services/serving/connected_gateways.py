"""Which gateways follow who may ask what: their processes run, and reach this control plane.

Called by `rpc.routing` (streams) and by `services.serving.gateways`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator


class ConnectedGateways:
    """Counts their streams; one that connects again may have two for a moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()

    @contextlib.contextmanager
    def entered(self, gateway: str) -> Iterator[None]:
        """While a stream of a gateway is open."""
        with self._lock:
            self._streams[gateway] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[gateway] -= 1
                if not self._streams[gateway]:
                    del self._streams[gateway]

    def has(self, gateway: str) -> bool:
        """Whether a gateway has a stream."""
        with self._lock:
            return gateway in self._streams
