"""Reports of a node's work on their way into the state: what has arrived is taken in together.

Rules kept here:
* of each node one lot at a time, however many streams it has; how far jobs are and what they
  measured is taken in once in `CALM_SECONDS`, everything else within `URGENT_SECONDS`, so that a
  node costs at most one transaction a second for the former and ten for all, whatever it sends;
* what waits is bounded in bytes; then its stream is not read any further, and gRPC makes the node
  wait. Heartbeats are on another stream.

The attack: a compromised node that reports as fast as it can, and stops the one writer of the state
for everybody. Called by `rpc.agents`; runs in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from appliance.api.agent.v1 import agent_service_pb2 as rpc

CALM_SECONDS = 1.0
URGENT_SECONDS = 0.1
MOST_BYTES = 4 << 20
MOST_REPORTS = 10_000

Report = rpc.ReportRequest | rpc.ConnectRequest
R = TypeVar("R", rpc.ReportRequest, rpc.ConnectRequest)


def is_urgent(report: Report) -> bool:
    """Whether somebody waits for it: an end, a checkpoint, a replica; not progress."""
    return bool(report.WhichOneof("report") != "job_progress")


class Turn:
    """When a node's next lot is due; shared by all of its streams."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last = float("-inf")

    async def take(
        self, arrivals: Arrivals[R], work: Callable[[Sequence[R]], Awaitable[None]]
    ) -> Sequence[R]:
        """Give what has arrived to `work` when it is due; it."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if not arrivals.is_urgent:
                calm = self._last + CALM_SECONDS - loop.time()
                await arrivals.until_urgent(calm)
            await asyncio.sleep(self._last + URGENT_SECONDS - loop.time())
            lot = arrivals.take()
            self._last = loop.time()
            await work(lot)
        return lot


class Arrivals(Generic[R]):
    """What has arrived on one stream and is not taken in yet."""

    def __init__(self) -> None:
        self._waiting: list[R] = []
        self._bytes = 0
        self._over = False
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_urgent(self) -> bool:
        """Whether it should not wait."""
        return self._urgent.is_set()

    async def put(self, report: R) -> None:
        """Add a report; waits for room."""
        await self._room.wait()
        self._waiting.append(report)
        self._bytes += report.ByteSize()
        if self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_REPORTS:
            self._room.clear()
        if is_urgent(report):
            self._urgent.set()
        self._some.set()

    async def read(self, reports: AsyncIterator[R]) -> None:
        """Add all of a stream."""
        try:
            async for report in reports:
                await self.put(report)
        finally:
            self.end()

    def end(self) -> None:
        """No more will come."""
        self._over = True
        self._some.set()
        self._urgent.set()

    async def some(self) -> bool:
        """Wait until there is something; False when there is nothing and no more will come."""
        await self._some.wait()
        return bool(self._waiting)

    async def until_urgent(self, seconds: float) -> None:
        """Wait for so long, or until there is something that should not wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._urgent.wait()

    def take(self) -> list[R]:
        """What there is, in its order."""
        waiting, self._waiting = self._waiting, []
        self._bytes = 0
        self._room.set()
        if not self._over:
            self._some.clear()
            self._urgent.clear()
        return waiting
