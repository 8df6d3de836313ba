"""Brings the outcome of every call into the audit chain, in batches.

Rules kept here:
* every call that ends is reported once, refused and abandoned ones too, without any text;
* what could not be reported waits; when as much waits as may, new calls are refused: nobody is
  served unseen;
* a batch is repeated until it is durable, in order;
* calls of strangers, all refused, take half of the room at most.

The attack: keep the audit from hearing, then ask on. Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import ApplianceError, AuditUnavailable

logger = logging.getLogger(__name__)

EACH_SECONDS = 0.5
BATCH = 500
MOST_WAITING = 20_000
PAUSE_SECONDS = 1.0

Usage = routing_service_pb2.Usage
Report = Callable[[Sequence[Usage]], Awaitable[None]]


class UsageReports:
    """A bounded queue of ended calls.

    Args:
        report: makes a batch durable, or raises ApplianceError.
        most: calls that may wait.
    """

    def __init__(self, report: Report, *, most: int = MOST_WAITING) -> None:
        self._report = report
        self._most = most
        self._waiting: deque[Usage] = deque()
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
        """A call ended."""
        # Strangers may not use up the room: then nobody else would be served.
        room = self._most if usage.principal else self._most // 2
        if len(self._waiting) >= room:
            # A refused call; it is in the log and the metrics.
            logger.error("a usage is not reported", extra={"usage_request_id": usage.request_id})
            return
        self._waiting.append(usage)

    async def run(self) -> None:
        """Report until `stop` was asked for and nothing waits."""
        while self._waiting or not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EACH_SECONDS):
                    await self._stopping.wait()
            while self._waiting:
                if not await self._send():
                    await asyncio.sleep(PAUSE_SECONDS)

    def stop(self) -> None:
        """Let `run` return as soon as nothing waits; a batch on its way is not sent twice."""
        self._stopping.set()

    async def _send(self) -> bool:
        """Report one batch; whether it is durable."""
        batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
        try:
            await self._report(batch)
        except ApplianceError as error:
            logger.warning("usage cannot be reported now: %s", error)
            return False
        for _ in batch:
            self._waiting.popleft()
        return True
