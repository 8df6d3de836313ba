"""Brings the outcome of every call into the audit chain, in batches.

Rules kept here:
* every call of a known caller that goes to a replica or ends is reported once, refused, abandoned
  and interrupted ones too, without any text; calls of strangers are counted by source and reported
  once a minute;
* what could not be reported waits on the disk (`spool`), also for the next process; when as much
  waits as may, new calls are refused: nobody is served unseen;
* a batch is repeated until it is durable, in order; counts go on while a count waits, in a table
  of fixed size, so strangers take no room here.

The attack: keep the audit from hearing, then ask on; kill the gateway after an answer; fill it, so
that others cannot be served. Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import ApplianceError, AuditUnavailable, InvalidInput, Unavailable
from appliance.gateway.spool import Spool
from appliance.wire.admission import Refusals

logger = logging.getLogger(__name__)

EACH_SECONDS = 0.5
BATCH = 500
MAX_WAITING = 20_000
PAUSE_SECONDS = 1.0
COUNT_SECONDS = 60.0
"""Time between two reports of what was counted."""

Entry = routing_service_pb2.UsageEntry
Request = routing_service_pb2.ReportUsageRequest
Usage = routing_service_pb2.Usage
Report = Callable[[Request], Awaitable[bool]]
INFERENCE = "inference"
"""Stands for the calls that ask a model, whichever front they come in by."""


class UsageReports:
    """A bounded queue of ended calls, and the counts of refused ones.

    Args:
        report: makes a batch durable, or raises ApplianceError; False when it knows no numbers.
        refusals: where refused calls are counted.
        spool: where what waits is kept.
        most: calls that may wait.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        report: Report,
        refusals: Refusals,
        spool: Spool,
        *,
        most: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._refusals = refusals
        self._spool = spool
        self._most = most
        self._clock = clock
        self._counted_at = clock()
        self._counted = 0
        """The newest entry of a count."""
        self._using: dict[int, str] = {}
        """What was shown by the callers of calls in work."""
        self._in_use: list[str] = []
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        """Ended calls that wait."""
        return len(self._spool)

    def check_room(self, running: int) -> None:
        """Raise AuditUnavailable when the calls in work and those that wait fill the queue."""
        self._spool.check()
        if len(self._spool) + running >= self._most:
            raise AuditUnavailable(
                "the audit log cannot keep up: repeat the request later", retry_after=5.0
            )

    def begin(self, usage: Usage) -> int:
        """A call of a known caller goes to a replica; its number.

        Raises AuditUnavailable when it cannot be written down: then it must not go.
        """
        call = self._spool.begin(usage)
        self._using[call] = usage.credential
        return call

    def end(self, usage: Usage, call: int = 0) -> None:
        """A call of a known caller ended; `call` is what `begin` gave, 0 when it came to none."""
        if call:
            del self._using[call]
            self._spool.end(usage, call)
        elif len(self._spool) >= self._most // 2 or not self._spool.add(Entry(usage=usage)):
            # It was refused: then it is counted, and leaves room for those in work.
            self._refusals.count(usage.source, usage.reason, INFERENCE, principal=usage.principal)

    async def run(self) -> None:
        """Report until `stop` was asked for and nothing waits. Raises what ended a part of it."""
        syncing = asyncio.create_task(self._spool.run())
        try:
            while not syncing.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EACH_SECONDS):
                        await self._stopping.wait()
                is_last = self._stopping.is_set()
                more = True
                while more and not syncing.done():
                    self._take_counts()
                    more = await self._send(self._spool.batch(BATCH))
                if is_last and not len(self._spool) and not self._spool.left:
                    await self._send(self._spool.last_batch())
                    return
            syncing.result()
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)

    def stop(self) -> None:
        """Let `run` return as soon as nothing waits; a batch on its way is not sent twice."""
        self._stopping.set()

    def close(self) -> None:
        """Close the spool, after `run` has ended. What waits stays for the next process."""
        self._spool.close()

    def _take_counts(self) -> None:
        """Take what was counted and who is at work, once a minute and when it all ends.

        Not while earlier ones wait: strangers take no room of callers.
        """
        due = self._clock() - self._counted_at >= COUNT_SECONDS or self._stopping.is_set()
        if not due or self._spool.waits(self._counted):
            return
        if not self._spool.has_ample_room:
            # They stay in their table, which has a fixed size.
            return
        self._counted_at = self._clock()
        self._in_use = sorted(set(self._using.values()))
        for row in self._refusals.drain():
            counted = Entry(
                refusals=routing_service_pb2.Refusals(
                    source=row.source,
                    principal=row.principal,
                    count=row.count,
                    reasons=row.reasons,
                    methods=row.methods,
                )
            )
            if self._spool.add(counted):
                self._counted = counted.number
            else:
                logger.error("a count of %s refused calls is lost", row.count)

    async def _send(self, request: Request | None) -> bool:
        """Report one batch; whether there may be another. Waits a while when it failed."""
        if request is None and not self._in_use:
            return False
        request = request or Request()
        request.in_use.extend(self._in_use)
        try:
            if not await self._report(request) and request.entries:
                raise Unavailable("it is an older version, which knows no numbers: upgrade it")
        except InvalidInput as error:
            logger.error("what is left of %s is not understood: %s", request.boot, error)  # noqa: TRY400 - no trace
            self._spool.set_aside(request)
            await asyncio.sleep(PAUSE_SECONDS)
            return True
        except ApplianceError as error:
            logger.warning("usage cannot be reported now: %s", error)
            await asyncio.sleep(PAUSE_SECONDS)
            return True
        self._in_use = []
        await self._spool.reported(request)
        return len(request.entries) == BATCH or bool(self._spool.older)
