"""All links of a gateway: follows the view, watches the links, and chooses among them.

Rules kept here:
* round robin over requests: of those that can take an answer, the one that was chosen longest ago,
  by the replica's stable id; so a view, a restart or a flapping neighbour never shifts the turn;
* a replica that was tried already is chosen only when no other can take the answer, and one without
  a free slot only when no other has one;
* what changes at a link concerns the answers that wait for its endpoint, and no others;
* a replica that left the view takes no new answers, and keeps its old ones until they end;
* while an endpoint has replicas of two versions, each takes its share of new answers, and an answer
  stays with the version that its prompt was made for;
* the gateway's own pauses are not held against replicas.

Called by `appliance.gateway.router` and, for the view, by `main`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import grpc.aio

from appliance.gateway.config import RoutingSettings
from appliance.gateway.links import ReplicaLink
from appliance.gateway.snapshot import Pool, ReplicaAddress, Route, RoutingSnapshot, ServedVersion

TICK_SECONDS = 0.1
_OWN_PAUSE = 0.2
"""A tick that is later than this was late by this process' own fault."""

Connect = Callable[[ReplicaAddress], grpc.aio.Channel]


def choose(
    candidates: Iterable[ReplicaAddress],
    tried: Collection[ReplicaAddress],
    turns: Mapping[tuple[str, str], int],
    slotless: Collection[ReplicaAddress] = (),
) -> ReplicaAddress | None:
    """The place whose replica had its last turn longest ago. Pure.

    Untried ones come first, and among them those that are not `slotless`.

    `turns` maps (endpoint, replica id) to the number of its last turn; those never chosen come
    first, in the order of their ids.
    """
    places = sorted(candidates)
    fresh = [place for place in places if place not in tried] or places
    return min(
        [place for place in fresh if place not in slotless] or fresh,
        key=lambda place: turns.get((place.endpoint, place.id), 0),
        default=None,
    )


def _nobody(_: str | None) -> None:
    """Stand in for who hears of changes."""


class ReplicaLinks:
    """The links to all replicas of the view.

    Args:
        connect: makes a channel to a replica.
        settings: time-outs and bounds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        connect: Connect,
        settings: RoutingSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._settings = settings
        self._clock = clock
        self._links: dict[ReplicaAddress, ReplicaLink] = {}
        self._of: dict[str, dict[ReplicaAddress, ReplicaLink]] = {}
        """The same, by endpoint."""
        self._coming: dict[ReplicaAddress, ReplicaLink] = {}
        """Links under a new identity, each until it is connected and takes the other's place."""
        self._leaving: list[ReplicaLink] = []
        """Links whose place was taken, until their answers have ended."""
        self._snapshot: RoutingSnapshot | None = None
        self._turns: dict[tuple[str, str], int] = {}
        self._picks: dict[tuple[str, str], int] = {}
        """Turns of replicas whose version was picked, which is before an answer is placed."""
        self._turn = 0
        self.changed: Callable[[str | None], None] = _nobody
        """Is called when a link of an endpoint (None: of any) may take an answer, or none any more;
        set by the router."""

    @property
    def links(self) -> list[ReplicaLink]:
        """Every link, also those that are on their way out."""
        return [*self._links.values(), *self._leaving]

    def renew(self) -> None:
        """Open every link again, under a new identity; answers in work end where they are."""
        for place in [place for place, link in self._links.items() if not link.retired]:
            before = self._coming.pop(place, None)
            if before is not None:
                self._leave(before)
            self._coming[place] = self._open(place)

    def _open(self, place: ReplicaAddress) -> ReplicaLink:
        channel = self._connect(place)
        changed = partial(self._notify, place.endpoint)
        return ReplicaLink(place, channel, self._settings, changed, self._clock)

    def _put(self, link: ReplicaLink) -> None:
        self._links[link.place] = link
        self._of.setdefault(link.place.endpoint, {})[link.place] = link

    def _drop(self, place: ReplicaAddress) -> None:
        del self._links[place]
        del self._of[place.endpoint][place]
        if not self._of[place.endpoint]:
            del self._of[place.endpoint]

    def _leave(self, link: ReplicaLink) -> None:
        link.retired = True
        self._leaving.append(link)

    def _take_over(self) -> None:
        """Let the links that have come take their places, and forget those that are over."""
        for place, link in list(self._coming.items()):
            if place not in self._links or link.closed:
                self._leave(self._coming.pop(place))
            elif link.connected:
                before = self._links[place]
                link.breaker, link.retired = before.breaker, before.retired
                self._put(self._coming.pop(place))
                self._leave(before)
        self._leaving = [link for link in self._leaving if not link.closed]

    def apply(self, snapshot: RoutingSnapshot) -> None:
        """Open what is new in a snapshot, retire what is no longer there."""
        self._snapshot = snapshot
        wanted = {place for route in snapshot.routes.values() for place in route.places}
        for place in wanted - self._links.keys():
            self._put(self._open(place))
        for place, link in self._links.items():
            link.retired = place not in wanted
        replicas = {(place.endpoint, place.id) for place in wanted}
        if len(self._turns) > 2 * len(replicas) + 1000:
            self._turns = {key: turn for key, turn in self._turns.items() if key in replicas}
            self._picks = {key: turn for key, turn in self._picks.items() if key in replicas}
        self._notify()

    async def run(self) -> None:
        """Watch the links for ever."""
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            late = now - last - TICK_SECONDS
            last = now
            self.tick(now, late if late > _OWN_PAUSE else 0.0)

    def tick(self, now: float, lag: float) -> None:
        """Let every link judge itself; drop those that are closed, and open them anew."""
        closed = [place for place, link in self._links.items() if link.closed]
        for place in closed:
            self._drop(place)
        if closed and self._snapshot is not None:
            # One that was still wanted, or is again.
            self.apply(self._snapshot)
        self._take_over()
        for link in (*self.links, *self._coming.values()):
            link.tick(now, lag)
        # Also for what nothing else tells of, such as a writer that has caught up.
        self._notify()

    def pick_version(
        self, route: Route, is_prepared: Callable[[ServedVersion], bool]
    ) -> ServedVersion:
        """The version that the next answer of an endpoint is asked of.

        Where there are several, each gets as many as it has replicas that can take one; one whose
        tokenizer is not here yet only if there is no other.
        """
        if len(route.versions) == 1:
            return route.newest
        links = [link for link in self._at(route.endpoint) if link.ready]
        links = [link for link in links if is_prepared(link.place.version)] or links
        free = [link for link in links if not link.full] or links
        slotless = [link.place for link in free if not link.has_slot]
        place = choose([link.place for link in free], (), self._picks, slotless)
        if place is not None:
            self._turn += 1
            self._picks[place.endpoint, place.id] = self._turn
            return place.version
        there = [place.version for place in route.places]
        return there[0] if there and route.newest not in there else route.newest

    def take_turn(self, pool: Pool, tried: Collection[ReplicaAddress]) -> ReplicaLink | None:
        """The link for the next answer of a pool; None when none can take one."""
        ready = {link.place: link for link in self._all(pool) if link.ready and not link.full}
        slotless = [place for place, link in ready.items() if not link.has_slot]
        place = choose(ready, tried, self._turns, slotless)
        if place is None:
            return None
        self._turn += 1
        self._turns[place.endpoint, place.id] = self._turn
        return ready[place]

    def has_other(self, pool: Pool, tried: Collection[ReplicaAddress]) -> bool:
        """Whether an untried replica can take an answer now."""
        return any(
            link.ready and not link.full and link.place not in tried for link in self._all(pool)
        )

    def has_ready(self, pool: Pool) -> bool:
        """Whether a replica is ready, if it is full or not."""
        return any(link.ready for link in self._all(pool))

    def is_left(self, pool: Pool) -> bool:
        """Whether no replica of this version is ready, and one of another version is."""
        ready = [link for link in self._at(pool.endpoint) if link.ready]
        return bool(ready) and all(link.place.version != pool.version for link in ready)

    def has_slot(self, endpoint: str) -> bool:
        """Whether a replica would work on an answer at once, as far as we know."""
        return any(link.ready and not link.full and link.has_slot for link in self._at(endpoint))

    def has_hope(self, pool: Pool, *, begun: bool) -> bool:
        """Whether a replica may become ready: one starts, is in doubt, or broke a moment ago.

        Args:
            pool: that the answer is for.
            begun: of an answer that has begun. Only such a one hopes for a start of an endpoint
                whose starts have all failed lately, and for no other version than its own.
        """
        route = self._snapshot.routes.get(pool.endpoint) if self._snapshot else None
        if route is None:
            return False
        if pool.version in route.coming if begun else route.coming and not route.failed:
            return True
        settled = self._clock() - self._settings.settle_seconds
        return any(
            link.broken_at > settled or (link.connected and link.doubtful)
            for link in (self._all(pool) if begun else self._at(pool.endpoint))
        )

    async def close(self) -> None:
        """End all links."""
        await asyncio.gather(*(link.close() for link in (*self.links, *self._coming.values())))
        self._links.clear()
        self._of.clear()
        self._coming.clear()
        self._leaving.clear()

    def _at(self, endpoint: str) -> Iterable[ReplicaLink]:
        return self._of.get(endpoint, {}).values()

    def _all(self, pool: Pool) -> Iterable[ReplicaLink]:
        return [link for link in self._at(pool.endpoint) if link.place.version == pool.version]

    def _notify(self, endpoint: str | None = None) -> None:
        self.changed(endpoint)
