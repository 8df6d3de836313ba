"""Seconds during which the control plane itself was there to listen.

A node's silence says something only while somebody listens. A control plane that was stopped, hung,
or on a machine that slept would otherwise take every node for lost before it reads the first
heartbeat. Rule kept here: the clock moves with each pass of the scheduler, by `MAX_STEP` at most.

Called by the scheduler (`tick`), and by whatever counts silence.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_STEP = 2.0


class ServedClock:
    """A clock that stands still while the control plane does.

    Args:
        monotonic: seconds that only rise.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen = monotonic()
        self._seconds = 0.0

    def __call__(self) -> float:
        """Seconds served so far."""
        return self._seconds

    def tick(self) -> None:
        """A pass begins."""
        now = self._monotonic()
        self._seconds += min(max(now - self._seen, 0.0), MAX_STEP)
        self._seen = now
