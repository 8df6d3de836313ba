"""Slots in replicas: an answer gets one, or waits for it, or is told to come back later.

Rules kept here:
* while replicas are ready but full, an endpoint has a queue with a bound (`queue`) and a time
  (`queue_seconds`); who does not fit, or waited so long, hears RESOURCE_EXHAUSTED and when to come
  back. That is no failure of a replica, and nothing that has begun is refused;
* while none is ready but one may come, `waiting` and `wait_seconds` are the bounds, and the error
  is UNAVAILABLE;
* whose turn it is goes round among callers (`appliance.gateway.waiting`), and so do the places of a
  full queue;
* while replicas of two versions answer, each version has a line of its own; an answer that has not
  begun leaves the line of a version of which no replica is ready, when one of another is;
* an answer that only waits is turned away for one that a replica of another endpoint would work on
  at once (`make_way`): a dead or slow endpoint does not take the places of a healthy one.

The attack, or the accident: an endpoint whose replicas crash or crawl takes every slot of the
gateway with answers that wait for it. Called by `appliance.gateway.router`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from appliance.core.errors import ApplianceError, Exhausted, Unavailable
from appliance.gateway.ask import Ask, OtherVersionError
from appliance.gateway.config import RoutingSettings
from appliance.gateway.fleet import ReplicaLinks
from appliance.gateway.snapshot import ServedVersion
from appliance.gateway.waiting import Placed, Waiter, WaitingLine

LOOK_SECONDS = 0.25
BEGUN_SHARE = 4
RETRY_SECONDS = 5.0


class ReplicaSlots:
    """Who waits for which endpoint.

    Args:
        fleet: the replicas; says when to look again.
        settings: bounds.
        clock: monotonic seconds.
    """

    def __init__(
        self, fleet: ReplicaLinks, settings: RoutingSettings, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._clock = clock
        self._lines: dict[str, dict[ServedVersion, WaitingLine]] = {}
        """By endpoint, none of them empty."""
        fleet.changed = self._serve

    @property
    def waiting(self) -> int:
        """Answers that wait, of all endpoints."""
        return sum(len(line) for lines in self._lines.values() for line in lines.values())

    async def place(self, ask: Ask) -> Placed:
        """A link, and the answer in work there; closing it is the caller's.

        Raises:
            Exhausted: every replica is full, and so is the queue, or its turn did not come.
            Unavailable: none is ready, and none may come in time.
            OtherVersionError: only replicas of another version are ready, and it has not begun.
        """
        line = self._lines.get(ask.endpoint, {}).get(ask.version)
        if line is None or (ask.begun and not line.begun):
            placed = self._take(ask)
            if placed is not None:
                return placed
        self._check_version(ask)
        if not ask.retries:
            # One that was with a replica that broke is no newcomer.
            self._check_room(ask, line)
        waiter = Waiter(ask, asyncio.get_running_loop().create_future())
        line = self._lines.setdefault(ask.endpoint, {}).setdefault(ask.version, WaitingLine())
        line.add(waiter)
        try:
            return await self._wait(waiter)
        except BaseException:
            if waiter.placed.done() and waiter.placed.exception() is None:
                link, attempt = waiter.placed.result()
                link.forget(attempt)
            raise
        finally:
            line.remove(waiter)
            self._forget_empty(ask, line)

    def _forget_empty(self, ask: Ask, line: WaitingLine) -> None:
        lines = self._lines.get(ask.endpoint, {})
        if not line and lines.get(ask.version) is line:
            del lines[ask.version]
            if not lines:
                del self._lines[ask.endpoint]

    def _check_version(self, ask: Ask) -> None:
        """Raise OtherVersionError when it should be asked of another version."""
        if not ask.begun and self._fleet.is_left(ask.pool):
            raise OtherVersionError

    async def _wait(self, waiter: Waiter) -> Placed:
        dead_since = math.inf
        while not waiter.placed.done():
            waiter.ask.check()
            self._check_version(waiter.ask)
            now = self._clock()
            is_ready = self._fleet.has_ready(waiter.ask.pool)
            dead_since = math.inf if is_ready else min(dead_since, now)
            left = self._limit(waiter, dead_since) - now
            hopeless = not is_ready and not self._fleet.has_hope(
                waiter.ask.pool, begun=waiter.begun
            )
            if left <= 0 or hopeless:
                raise _crowded(waiter.ask) if is_ready else _dead(waiter.ask)
            await asyncio.wait({waiter.placed}, timeout=min(left, LOOK_SECONDS))
        return waiter.placed.result()

    def _limit(self, waiter: Waiter, dead_since: float) -> float:
        """Until when it waits. What was made of one that has begun is worth more than its time.

        How long it may wait for its turn says nothing of how long a replica takes to come back.
        """
        if waiter.begun:
            return waiter.ask.until
        is_dead = dead_since < math.inf
        patience = dead_since + self._settings.wait_seconds if is_dead else waiter.ask.patience
        return min(waiter.ask.until, patience)

    def _check_room(self, ask: Ask, line: WaitingLine | None) -> None:
        """Raise when as many wait as may, and nobody has to go for this one."""
        is_ready = self._fleet.has_ready(ask.pool)
        if line is None or (is_ready and ask.begun):
            return
        most = self._settings.queue if is_ready else self._settings.waiting
        if ask.begun:
            most *= BEGUN_SHARE
        if (line.begun if ask.begun else line.new) < most:
            return
        full = _crowded(ask) if is_ready else _too_many(ask, most)
        other = None if ask.begun else line.for_room(ask.caller)
        if other is None:
            raise full
        self._turn_away(line, other, full)

    def _take(self, ask: Ask) -> Placed | None:
        """A place now; None when no replica has one."""
        link = self._fleet.take_turn(ask.pool, ask.tried)
        if link is None:
            return None
        return link, link.submit(ask.submit(), math.inf if ask.begun else ask.patience)

    def _serve(self, endpoint: str | None = None) -> None:
        """Give places to those whose turn it is, of one endpoint or of all (None).

        Called whenever there may be some.
        """
        names = self._lines if endpoint is None else {endpoint} & self._lines.keys()
        for line in [line for name in names for line in self._lines[name].values()]:
            while (waiter := line.next()) is not None:
                placed = self._take(waiter.ask)
                if placed is None:
                    break
                line.take(waiter)
                waiter.placed.set_result(placed)

    def may_go(self, endpoint: str, caller: str | None = None) -> dict[str, int]:
        """How many wait at other endpoints, where one may go for a newcomer to this one.

        None does for one that would only wait itself.

        Args:
            endpoint: that the newcomer asks.
            caller: whose answers may go; None: anybody's.
        """
        if endpoint in self._lines or not self._fleet.has_slot(endpoint):
            return {}
        return {
            name: sum(line.new for line in lines.values())
            for name, lines in self._lines.items()
            if name != endpoint and any(line.newest(caller) for line in lines.values())
        }

    def make_way(self, endpoint: str, caller: str | None = None) -> None:
        """Turn away the newest that waits for an endpoint, of a caller or of anybody (`may_go`)."""
        lines = [line for line in self._lines[endpoint].values() if line.newest(caller)]
        line = max(lines, key=lambda each: each.new)
        waiter = line.newest(caller)
        if waiter is not None:
            error = Exhausted(
                "the gateway has as many answers in work as it may, and this one only waited for"
                " its replica: repeat the request later",
                retry_after=RETRY_SECONDS,
            )
            self._turn_away(line, waiter, error)

    def _turn_away(self, line: WaitingLine, waiter: Waiter, error: ApplianceError) -> None:
        line.remove(waiter)
        waiter.ask.turned_away()
        waiter.placed.set_exception(error)


def _too_many(ask: Ask, most: int) -> ApplianceError:
    return Unavailable(
        f"{most} answers wait for a replica of {ask.endpoint} already: repeat the request later",
        retry_after=RETRY_SECONDS,
    )


def _dead(ask: Ask) -> ApplianceError:
    return Unavailable(
        f"no replica of {ask.endpoint} is ready: repeat the request later, "
        "or look at the endpoint's state",
        retry_after=RETRY_SECONDS,
    )


def _crowded(ask: Ask) -> ApplianceError:
    return Exhausted(
        f"every replica of {ask.endpoint} has as many answers as it may, and others wait: repeat"
        " the request later, or give the endpoint more replicas",
        retry_after=RETRY_SECONDS,
    )
