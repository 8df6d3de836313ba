"""Threads in which prompts are prepared, and whose turn it is.

Rules kept here:
* so many prompts are prepared at a time, long ones apart from short ones, so that nobody's greeting
  waits for another's book;
* whose turn is next goes round among those who wait, however many prompts each has waiting;
* whoever leaves gives up the turn.

The attack: many long prompts at once. Called by `appliance.gateway.tokenize`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_SHORT = 4

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """Lets so many go on at a time, one caller after the other.

    Args:
        most: that go on at a time.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn of this caller, and hold it."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()
            else:
                self._forget(caller, mine)
            raise

    def _forget(self, caller: str, mine: asyncio.Future[None]) -> None:
        queue = self._waiting.get(caller)
        if queue is not None and mine in queue:
            queue.remove(mine)
            if not queue:
                del self._waiting[caller]

    def _pass_on(self) -> None:
        """The turn goes to the caller who has waited longest for one, who then is the last."""
        while self._waiting:
            caller = next(iter(self._waiting))
            queue = self._waiting.pop(caller)
            following = queue.popleft()
            if queue:
                self._waiting[caller] = queue
            if not following.done():
                following.set_result(None)
                return
        self._free += 1


class Threads:
    """Threads for short prompts and for long ones."""

    def __init__(self) -> None:
        long = max(1, (os.cpu_count() or 1) // 2)
        self._turns = {False: Turns(_SHORT), True: Turns(long)}
        self._pool = ThreadPoolExecutor(_SHORT + long, "prompts")

    async def run(
        self, caller: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a short piece of work for a caller."""
        return await self._run(False, caller, lambda: function(*args, **kwargs))

    async def run_long(
        self, caller: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a long one."""
        return await self._run(True, caller, lambda: function(*args, **kwargs))

    async def _run(self, long: bool, caller: str, work: Callable[[], T]) -> T:  # noqa: FBT001 - private
        async with self._turns[long].turn(caller):
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
