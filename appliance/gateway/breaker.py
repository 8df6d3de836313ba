"""Takes a replica out of rotation after failures in a row, and lets it back after a proof.

Rules kept here:
* only what is the replica's fault is recorded, and at the end of an answer, not when it begins;
* what fails together counts once: an answer that was sent before the last failure was counted says
  nothing new, as when a stream is lost with a hundred answers;
* an answer that was sent longer than `MEMORY` after a failure begins a new row, also where answers
  take so long that none ends well in between;
* neither holds for an answer that is late while the replica has made no token for anybody since it
  was sent: each such answer goes on with the row, whenever it was sent;
* open means no answers at all; only a synthetic probe closes it again, after 1, 2, 4 … 30 s;
* what fails together is paid for once, too, whatever it was: a lost stream, a doubt, a late answer;
* nothing is stored: a replica that starts anew gets a new breaker.

Pure: time comes from the caller. Called by `appliance.gateway.links`.
"""

from __future__ import annotations

import math
from enum import Enum

from appliance.core.waiting import grown

FIRST_PAUSE = 1.0
MAX_PAUSE = 30.0
MEMORY = 60.0


class BreakerState(Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failures in a row of one replica.

    Args:
        failures: so many in a row open it.

    Attributes:
        paid: whether a retry was paid for what failed last.
    """

    def __init__(self, failures: int) -> None:
        self._most = failures
        self._failures = 0
        self._failed = -math.inf
        self._probes = 0
        self._due = 0.0
        self.state = BreakerState.CLOSED
        self.paid = True

    def succeeded(self) -> None:
        """An answer ended well."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0

    def failed(self, now: float, sent: float, *, dead: bool = False) -> bool:
        """An answer that was sent at some time failed by the replica's fault.

        Args:
            now: the moment.
            sent: moment at which the answer was.
            dead: whether no answer at all had a token since.

        Returns whether this opened the breaker.
        """
        if self.state is not BreakerState.CLOSED or (not dead and sent <= self._failed):
            return False
        if not dead and sent - self._failed > MEMORY:
            self._failures = 0
        if sent > self._failed:
            self.paid = False
        self._failures += 1
        self._failed = now
        if self._failures < self._most:
            return False
        self.state = BreakerState.OPEN
        self._probes = 0
        self._wait(now)
        return True

    def probe_due(self, now: float) -> bool:
        """Whether a probe may go out now."""
        return self.state is BreakerState.OPEN and now >= self._due

    def probe_sent(self) -> None:
        """A probe is on its way; there is one at a time."""
        self.state = BreakerState.HALF_OPEN

    def probed(self, now: float, *, well: bool) -> None:
        """The probe ended: well closes the breaker, otherwise the pause doubles."""
        if well:
            self.state = BreakerState.CLOSED
            self._failures = 0
            return
        self.state = BreakerState.OPEN
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._probes += 1
        self._due = now + grown(self._probes, FIRST_PAUSE, MAX_PAUSE)


class Budget:
    """Keeps retries a share of calls, so that a failing fleet is not asked many times over.

    Args:
        share: retries each call earns.
        spare: retries that a quiet gateway has, and the most that can be saved.
    """

    def __init__(self, share: float, spare: float = 10.0) -> None:
        self._share = share
        self._spare = spare
        self._saved = spare

    def earn(self) -> None:
        """A call came."""
        self._saved = min(self._spare, self._saved + self._share)

    def pay(self, breaker: Breaker) -> bool:
        """Whether an answer may be tried again after the last failure of a replica.

        The first such answer takes one of the retries that are left; the others cost nothing.
        """
        if breaker.paid:
            return True
        if self._saved < 1:
            return False
        self._saved -= 1
        breaker.paid = True
        return True
