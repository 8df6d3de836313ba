"""Answers that wait for a place in a replica of one endpoint, and whose turn it is.

Rules kept here:
* those that have begun come first, in the order in which they came: somebody reads them;
* then it goes round among callers, however many answers each has waiting;
* who is turned away for somebody else is the newest of the caller who has the most waiting, and
  never one that has begun;
* one who has at least two fewer waiting than that comes into a full line in its stead.

The attack: one caller's flood in front of everybody's answers. Called by
`appliance.gateway.slots`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from appliance.gateway.ask import Ask
from appliance.gateway.attempts import Attempt
from appliance.gateway.links import ReplicaLink

Placed = tuple[ReplicaLink, Attempt]


@dataclass(eq=False)
class Waiter:
    """One answer that waits.

    Attributes:
            placed: gets its place, or the error with which it is turned away.
    """

    ask: Ask
    placed: asyncio.Future[Placed] = field(repr=False)

    @property
    def begun(self) -> bool:
        """Whether it had tokens when it began to wait; while it waits, none come."""
        return self.ask.begun


class WaitingLine:
    """The answers that wait for one endpoint."""

    def __init__(self) -> None:
        self._begun: deque[Waiter] = deque()
        self._callers: dict[str, deque[Waiter]] = {}
        self.new = 0
        """Those that have not begun."""

    def __len__(self) -> int:
        """All of them."""
        return len(self._begun) + self.new

    @property
    def begun(self) -> int:
        """Those that have begun."""
        return len(self._begun)

    def add(self, waiter: Waiter) -> None:
        """Let one wait."""
        if waiter.begun:
            self._begun.append(waiter)
        else:
            self._callers.setdefault(waiter.ask.caller, deque()).append(waiter)
            self.new += 1

    def remove(self, waiter: Waiter) -> None:
        """Forget one; said twice, it is forgotten once."""
        caller = waiter.ask.caller
        queue = self._begun if waiter.begun else self._callers.get(caller, deque())
        if waiter not in queue:
            return
        queue.remove(waiter)
        if not waiter.begun:
            self.new -= 1
            if not queue:
                del self._callers[caller]

    def next(self) -> Waiter | None:
        """Whose turn it is."""
        queue = self._begun or next(iter(self._callers.values()), self._begun)
        return queue[0] if queue else None

    def take(self, waiter: Waiter) -> None:
        """Its turn came: its caller is the last now."""
        self.remove(waiter)
        caller = waiter.ask.caller
        if not waiter.begun and caller in self._callers:
            self._callers[caller] = self._callers.pop(caller)

    def waiting_of(self, caller: str) -> int:
        """Answers of a caller that have not begun."""
        return len(self._callers.get(caller, ()))

    def for_room(self, caller: str) -> Waiter | None:
        """Who goes when the line is full and this caller comes; None: nobody, it has to go."""
        newest = self.newest()
        if newest is None:
            return None
        most = self.waiting_of(newest.ask.caller)
        return newest if most >= self.waiting_of(caller) + 2 else None

    def newest(self, caller: str | None = None) -> Waiter | None:
        """Who goes for somebody else: of this caller, or of the one with the most."""
        if caller is None:
            caller = max(self._callers, key=lambda each: len(self._callers[each]), default="")
        queue = self._callers.get(caller)
        return queue[-1] if queue else None
