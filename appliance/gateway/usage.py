"""Brings the outcome of every call into the audit chain, in batches.

Rules kept here:
* every call of a known caller that ends is reported once, refused and abandoned ones too, without
  any text; calls of strangers are counted by source and reported once a minute;
* what could not be reported waits; when as much waits as may, new calls are refused: nobody is
  served unseen;
* a batch is repeated until it is durable, in order; counts go on while a count waits, in a table
  of fixed size, so strangers take no room here.

The attack: keep the audit from hearing, then ask on; fill it, so that others cannot be served.
Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import ApplianceError, AuditUnavailable
from appliance.wire.admission import Refusals

logger = logging.getLogger(__name__)

EACH_SECONDS = 0.5
BATCH = 500
MOST_WAITING = 20_000
PAUSE_SECONDS = 1.0
COUNT_SECONDS = 60.0
"""Time between two reports of what was counted."""

Usage = routing_service_pb2.Usage
Report = Callable[[routing_service_pb2.ReportUsageRequest], Awaitable[None]]


class UsageReports:
    """A bounded queue of ended calls, and the counts of refused ones.

    Args:
        report: makes a batch durable, or raises ApplianceError.
        refusals: where refused calls are counted.
        most: calls that may wait.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        report: Report,
        refusals: Refusals,
        *,
        most: int = MOST_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._refusals = refusals
        self._most = most
        self._clock = clock
        self._counted_at = clock()
        self._waiting: deque[Usage] = deque()
        self._counts: list[routing_service_pb2.Refusals] = []
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        """Ended calls that wait."""
        return len(self._waiting)

    def check_room(self, running: int) -> None:
        """Raise AuditUnavailable when the calls in work and those that wait fill the queue."""
        if len(self._waiting) + running >= self._most:
            raise AuditUnavailable(
                "the audit log cannot keep up: repeat the request later", retry_after=5.0
            )

    def add(self, usage: Usage) -> None:
        """A call of a known caller ended."""
        if len(self._waiting) >= self._most:
            # A refused call; it is in the log and the metrics.
            logger.error("a usage is not reported", extra={"usage_request_id": usage.request_id})
            return
        self._waiting.append(usage)

    async def run(self) -> None:
        """Report until `stop` was asked for and nothing waits."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EACH_SECONDS):
                    await self._stopping.wait()
            is_last = self._stopping.is_set()
            self._take_counts()
            while self._waiting or self._counts:
                if not await self._send():
                    await asyncio.sleep(PAUSE_SECONDS)
            if is_last:
                return

    def stop(self) -> None:
        """Let `run` return as soon as nothing waits; a batch on its way is not sent twice."""
        self._stopping.set()

    def _take_counts(self) -> None:
        """Take what was counted, once a minute and when it all ends."""
        due = self._clock() - self._counted_at >= COUNT_SECONDS or self._stopping.is_set()
        if self._counts or not due:
            return
        self._counted_at = self._clock()
        self._counts = [
            routing_service_pb2.Refusals(
                source=row.source,
                principal=row.principal,
                count=row.count,
                reasons=row.reasons,
                methods=row.methods,
            )
            for row in self._refusals.drain()
        ]

    async def _send(self) -> bool:
        """Report one batch; whether it is durable."""
        batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
        counts = self._counts
        try:
            await self._report(
                routing_service_pb2.ReportUsageRequest(usages=batch, refusals=counts)
            )
        except ApplianceError as error:
            logger.warning("usage cannot be reported now: %s", error)
            return False
        for _ in batch:
            self._waiting.popleft()
        self._counts = []
        return True
