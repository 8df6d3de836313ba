"""Reports of a node's work on their way into the state: what has arrived is taken in together.

Rules kept here:
* of each node one lot at a time, however many streams it has; after one there is a pause, as long
  as it took at least, so that no node has the one writer of the state for more than half the time;
* how far jobs are and what they measured is taken in once in `CALM_SECONDS`, everything else within
  `URGENT_SECONDS`, whichever of the streams it comes on;
* of one lot all progress is one transaction (`services.agent.agents`), and `MAX_URGENT` other
  reports and `MAX_STEPS` measured steps are the most; what is more waits for the next one;
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
MAX_BYTES = 4 << 20
MAX_REPORTS = 10_000
MAX_URGENT = 50
"""Of one lot: each is a few transactions."""
MAX_STEPS = 20_000
"""Measured steps of one lot."""

Report = rpc.ReportRequest | rpc.ConnectRequest
ReportT = TypeVar("ReportT", rpc.ReportRequest, rpc.ConnectRequest)


def is_urgent(report: Report) -> bool:
    """Whether somebody waits for it: an end, a checkpoint, a replica; not progress."""
    return bool(report.WhichOneof("report") != "job_progress")


class ReportTurn:
    """When a node's next lot is due; shared by all of its streams."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._calm = self._urgent = float("-inf")

    async def take(
        self, arrivals: Arrivals[ReportT], work: Callable[[Sequence[ReportT]], Awaitable[None]]
    ) -> Sequence[ReportT]:
        """Give what has arrived, or its beginning, to `work` when it is due; it."""
        loop = asyncio.get_running_loop()
        while True:
            # Not under the lock: another stream may have what cannot wait as long.
            await arrivals.until_urgent(self._calm - loop.time())
            await asyncio.sleep(self._urgent - loop.time())
            async with self._lock:
                due = self._urgent if arrivals.is_urgent else self._calm
                if loop.time() >= due:
                    return await self._take(arrivals.take(), work)

    async def _take(
        self, lot: Sequence[ReportT], work: Callable[[Sequence[ReportT]], Awaitable[None]]
    ) -> Sequence[ReportT]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await work(lot)
        finally:
            over = loop.time()
            self._calm = over + max(CALM_SECONDS, over - began)
            self._urgent = over + max(URGENT_SECONDS, over - began)
        return lot


class Arrivals(Generic[ReportT]):
    """What has arrived on one stream and is not taken in yet."""

    def __init__(self) -> None:
        self._waiting: list[ReportT] = []
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

    async def put(self, report: ReportT) -> None:
        """Add a report; waits for room."""
        await self._room.wait()
        self._waiting.append(report)
        self._bytes += report.ByteSize()
        if self._bytes >= MAX_BYTES or len(self._waiting) >= MAX_REPORTS:
            self._room.clear()
        if is_urgent(report):
            self._urgent.set()
        self._some.set()

    async def read(self, reports: AsyncIterator[ReportT]) -> None:
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

    def take(self) -> list[ReportT]:
        """What there is, in its order; of very much its beginning, and the rest waits."""
        count = _lot(self._waiting)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._bytes -= sum(report.ByteSize() for report in taken)
        if self._bytes < MAX_BYTES and len(self._waiting) < MAX_REPORTS:
            self._room.set()
        if not self._over:
            if not self._waiting:
                self._some.clear()
            if not any(map(is_urgent, self._waiting)):
                self._urgent.clear()
        return taken


def _lot(waiting: Sequence[Report]) -> int:
    """How many reports, the first ones, are taken in together; one at least."""
    urgent = steps = 0
    for count, report in enumerate(waiting):
        urgent += is_urgent(report)
        steps += len(report.job_progress.measured)
        if count and (urgent > MAX_URGENT or steps > MAX_STEPS):
            return count
    return len(waiting)
