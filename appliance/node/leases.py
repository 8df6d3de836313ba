"""The leases of this node: what it may still work on, by its own monotonic clock.

The attack: two nodes work on one job, because the first one did not notice that its lease is over
(its network is cut, it was paused, or a renewal was on its way for long). Rules kept here:
* a lease counts from when the heartbeat was sent that it answers, not from when it came;
* work must have stopped at two thirds of the lease; clocks that differ a little do not matter then;
* a work that a renewal does not name is not stopped at once (the renewal may be older than the
  order that started the work), but it is not renewed either;
* an epoch is renewed by its own number alone.

Pure; times are seconds of a monotonic clock. Called by the agent.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.core.jobs import stop_time

FIRST_SECONDS = 15.0
"""Length of a lease that an order brings, until the first renewal says it."""

REMEMBERED = 64

Work = tuple[str, int]
"""A piece of work and its epoch."""


class Leases:
    """When each running work must stop."""

    def __init__(self) -> None:
        self._stop_at: dict[Work, float] = {}
        self._sent: dict[int, float] = {}

    def begin(self, work: Work, now: float) -> None:
        """An order to start `work` came."""
        self._stop_at[work] = stop_time(now, FIRST_SECONDS)

    def end(self, work: Work) -> None:
        """`work` is over."""
        self._stop_at.pop(work, None)

    def heartbeat(self, sequence: int, now: float) -> None:
        """A heartbeat is about to be sent."""
        self._sent[sequence] = now
        for old in sorted(self._sent)[:-REMEMBERED]:
            del self._sent[old]

    def new_stream(self) -> None:
        """A new stream begins; sequences start again."""
        self._sent.clear()

    def renew(self, works: Iterable[Work], seconds: float, sequence: int) -> None:
        """A renewal came that answers heartbeat `sequence`.

        One that answers no heartbeat of this stream, or one sent too long ago to remember, renews
        nothing.
        """
        sent = self._sent.get(sequence)
        if sent is None:
            return
        for work in works:
            if work in self._stop_at:
                self._stop_at[work] = max(self._stop_at[work], stop_time(sent, seconds))

    def over(self, now: float) -> list[Work]:
        """Works that must stop now."""
        return [work for work, stop_at in self._stop_at.items() if now >= stop_at]
