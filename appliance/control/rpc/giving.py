"""How what is in the object store is streamed to a caller: downloads, and the files of reports.

Rules kept here:
* reading has threads of its own, and a caller holds one only while a piece is read: whoever reads
  slowly takes a place among the downloads, never a thread, and nobody else waits;
* so many at a time, of one caller and in all;
* a caller who takes nothing for a minute loses the place.

The attacks: open many downloads and read none of them. Base of the servicers that give files out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import grpc.aio

from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.common.caller import Caller
from appliance.core.errors import Unavailable
from appliance.core.waiting import in_seconds
from appliance.wire.admission import Shares
from appliance.wire.sending import send

MAX_DOWNLOADS, MAX_DOWNLOADS_OF_CALLER = 16, 4
STALL_SECONDS = 60.0
Context = grpc.aio.ServicerContext[Any, Any]


class GivesOut(Servicer):
    """Base of servicers that stream what they read from the object store.

    Args:
        pool: threads; `pool.downloads` for the reading.
        events: wake-ups.
        stall_seconds: how long a caller may leave a message untaken.
    """

    def __init__(
        self, pool: CallPool, events: Events, *, stall_seconds: float = STALL_SECONDS
    ) -> None:
        super().__init__(pool, events)
        self._stall_seconds = stall_seconds
        self._places = Shares(
            MAX_DOWNLOADS, MAX_DOWNLOADS_OF_CALLER, "as many downloads run as may at a time"
        )

    async def _give_out(
        self,
        context: Context,
        begin: Callable[[Caller, Any], Generator[Any]],
        request: Any,  # noqa: ANN401 - a generated message
    ) -> None:
        """Send what `begin` gives, piece by piece.

        Raises Exhausted when too many run, Unavailable when the caller takes nothing.
        """
        pool = self._pool.downloads
        with self._places.place(self.caller.principal.name):
            parts = await self._run_in(pool, begin, self.caller, request)
            try:
                while (part := await self._look_in(pool, next, parts, None)) is not None:
                    await self._send(context, part)
            finally:
                await self._run_in(pool, parts.close)

    async def _send(self, context: Context, part: object) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await send(context, part)
        except TimeoutError as error:
            raise Unavailable(
                f"nothing of this download was taken for {in_seconds(self._stall_seconds)}: "
                "go on with it where it was"
            ) from error
