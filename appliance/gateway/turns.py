"""Threads in which prompts are prepared, and whose turn it is.

Rules kept here:
* so many prompts are prepared at a time, long ones apart from short ones, and chat templates apart
  from both, so that nobody's greeting waits for another's book;
* one endpoint holds all places but one, so another never waits for a tokenizer or a template that
  is slow, unless there are two such;
* whose turn is next goes round among the endpoints that wait, and within one among its callers,
  however many prompts each has waiting;
* whoever leaves gives up the turn.

The attacks: many long prompts at once; a template that takes all the time it gets. Called by
`appliance.gateway.tokenize`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, ParamSpec, TypeVar

SHORT = 4
TEMPLATES = 2
"""Chat templates that one endpoint renders at a time."""
KEPT = 1
"""Places that one endpoint leaves to the others."""

P = ParamSpec("P")
T = TypeVar("T")


class Asker(NamedTuple):
    """Who takes turns: the endpoint first, then its caller."""

    endpoint: str = ""
    caller: str = ""


ANYBODY = Asker()
Waiting = dict[str, deque[asyncio.Future[None]]]


class FairTurns:
    """Lets so many go on at a time, one endpoint and one caller after the other.

    Args:
        each: that one endpoint has at a time; all together have `KEPT` more.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._free = each + KEPT
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, Waiting] = {}

    @contextlib.asynccontextmanager
    async def turn(self, asker: Asker) -> AsyncIterator[None]:
        """Wait for a turn of this caller, and hold it."""
        if self._may_go(asker.endpoint):
            self._take(asker.endpoint)
        else:
            await self._wait(asker)
        try:
            yield
        finally:
            self._pass_on(asker.endpoint)

    def _may_go(self, endpoint: str) -> bool:
        return self._free > 0 and self._held[endpoint] < self._each

    def _take(self, endpoint: str) -> None:
        self._free -= 1
        self._held[endpoint] += 1

    async def _wait(self, asker: Asker) -> None:
        mine = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(asker.endpoint, {})
        waiting.setdefault(asker.caller, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on(asker.endpoint)
            else:
                self._forget(asker, mine)
            raise

    def _forget(self, asker: Asker, mine: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(asker.endpoint, {})
        queue = waiting.get(asker.caller)
        if queue is not None and mine in queue:
            queue.remove(mine)
            if not queue:
                del waiting[asker.caller]
        if not waiting:
            self._waiting.pop(asker.endpoint, None)

    def _pass_on(self, endpoint: str) -> None:
        """The turn goes to who has waited longest for one: an endpoint, and of it a caller."""
        self._free += 1
        self._held[endpoint] -= 1
        if not self._held[endpoint]:
            del self._held[endpoint]
        while (following := next(filter(self._may_go, self._waiting), None)) is not None:
            mine = self._next(following)
            if not mine.done():
                self._take(following)
                mine.set_result(None)

    def _next(self, endpoint: str) -> asyncio.Future[None]:
        """Whose turn it is in an endpoint; both are the last then."""
        waiting = self._waiting.pop(endpoint)
        caller = next(iter(waiting))
        queue = waiting.pop(caller)
        mine = queue.popleft()
        if queue:
            waiting[caller] = queue
        if waiting:
            self._waiting[endpoint] = waiting
        return mine


class Threads:
    """Threads for short prompts, for long ones, and for those who ask for a rendering."""

    def __init__(self) -> None:
        long = max(1, (os.cpu_count() or 1) // 2)
        self._short, self._long, self._templates = (
            FairTurns(SHORT),
            FairTurns(long),
            FairTurns(TEMPLATES),
        )
        self._pool = ThreadPoolExecutor(SHORT + long + TEMPLATES + 3 * KEPT, "prompts")

    async def run(
        self, asker: Asker, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a short piece of work."""
        return await self._run(self._short, asker, lambda: function(*args, **kwargs))

    async def run_long(
        self, asker: Asker, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a long one."""
        return await self._run(self._long, asker, lambda: function(*args, **kwargs))

    async def render(
        self, asker: Asker, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of asking a process that renders templates."""
        return await self._run(self._templates, asker, lambda: function(*args, **kwargs))

    async def _run(self, turns: FairTurns, asker: Asker, work: Callable[[], T]) -> T:
        async with turns.turn(asker):
            task = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                # A thread cannot be told to stop; the turn is over when it has ended.
                with contextlib.suppress(Exception):
                    await asyncio.wait({task})
                raise

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
