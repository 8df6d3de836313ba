"""Who holds how many connections to the HTTPS front, and who has to go for a newcomer.

Rules kept here:
* a source opens so many connections a second, and holds a share of all of them at most;
* a connection belongs to a stranger until a valid token came over it; in a full share, and when all
  places are taken, the stranger's connection that is longest here goes, of the source that holds
  the most: a newcomer has the time to say who it is, and silence keeps nobody out;
* connections of known callers are never closed for somebody else;
* when known callers hold every place, a few more connections are let in to be told so; they go
  for each other.

The attack: hold every connection with silence, half a handshake or half a request, from one address
or from many. Pure: no socket and no clock but that of the rates. Called by
`appliance.gateway.accept`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from appliance.core.errors import Exhausted
from appliance.wire.admission import RETRY_SECONDS, Rates

TOLD_SHARE = 16
"""One place more for so many, from which callers are told that all are taken."""


def _nothing() -> None:
    """Stand in for the end of a connection that has none yet."""


class ConnectionSlot:
    """One connection's place.

    Attributes:
        source: from `appliance.wire.admission.source_of`.
        is_full: the caller is to be told that all places are taken, whatever it asks.
        end: closes the connection; set by whoever opens it.
    """

    def __init__(self, source: str, *, is_full: bool) -> None:
        self.source = source
        self.is_full = is_full
        self.is_known = False
        self.end: Callable[[], None] = _nothing


class Connections:
    """The places of one listener.

    Args:
        total: open connections in all.
        per_source: those that one source may hold.
        rates: of new connections by source.
    """

    def __init__(self, total: int, per_source: int, rates: Rates) -> None:
        self._total = total
        self._most = total + max(1, total // TOLD_SHARE)
        self._per_source = min(per_source, total)
        self._rates = rates
        self._held: Counter[str] = Counter()
        self._strangers: dict[str, dict[ConnectionSlot, None]] = {}
        """Places of strangers by source, the oldest first."""
        self._told: dict[ConnectionSlot, None] = {}
        """Places beyond the total, the oldest first."""
        self._open: set[ConnectionSlot] = set()
        self.ended = 0
        """Connections that are over, of all times."""

    def __len__(self) -> int:
        """Open connections."""
        return len(self._open)

    def enter(self, source: str) -> tuple[ConnectionSlot, ConnectionSlot | None]:
        """A place for a new connection, and the place that has to be ended for it.

        Raises Exhausted when there is none: close the connection.
        """
        wait = self._rates.wait(source)
        if wait:
            raise Exhausted("too many new connections from this address", retry_after=wait)
        leaving: ConnectionSlot | None = None
        if self._held[source] >= self._per_source:
            leaving = self._oldest(source)
            if leaving is None:
                raise Exhausted(
                    "this address holds as many connections as one may", retry_after=RETRY_SECONDS
                )
        elif len(self._open) >= self._total:
            leaving = self._oldest(self._largest())
        if leaving is None and len(self._open) >= self._most:
            leaving = next(iter(self._told), None)
            if leaving is None:
                raise Exhausted("all connections are taken", retry_after=RETRY_SECONDS)
        if leaving is not None:
            self.leave(leaving)
        return self._place(source), leaving

    def _place(self, source: str) -> ConnectionSlot:
        place = ConnectionSlot(source, is_full=len(self._open) >= self._total)
        self._open.add(place)
        self._held[source] += 1
        if place.is_full:
            self._told[place] = None
        else:
            self._strangers.setdefault(source, {})[place] = None
        return place

    def mark_authenticated(self, place: ConnectionSlot) -> None:
        """A valid token came over this connection."""
        place.is_known = True
        self._forget(place)

    def leave(self, place: ConnectionSlot) -> None:
        """The connection is over; said twice, it is over once."""
        if place not in self._open:
            return
        self._open.remove(place)
        self.ended += 1
        self._held[place.source] -= 1
        if not self._held[place.source]:
            del self._held[place.source]
        self._forget(place)

    def _forget(self, place: ConnectionSlot) -> None:
        """Take a place out of those that may have to go."""
        self._told.pop(place, None)
        mine = self._strangers.get(place.source, {})
        mine.pop(place, None)
        if not mine:
            self._strangers.pop(place.source, None)

    def _oldest(self, source: str) -> ConnectionSlot | None:
        return next(iter(self._strangers.get(source, ())), None)

    def _largest(self) -> str:
        """The source whose strangers hold the most; empty when there are none."""
        return max(self._strangers, key=lambda source: len(self._strangers[source]), default="")
