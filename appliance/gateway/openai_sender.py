"""One HTTP response of the OpenAI-compatible front: whole, as a stream of events, or an error.

Called by `appliance.gateway.openai`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from starlette.types import Send

from appliance.core.errors import ApplianceError, Cancelled
from appliance.gateway import openai_answer as answers

KEEP_ALIVE_SECONDS = 15.0
"""A stream that has begun is never silent for longer."""
_JSON = "application/json"


@contextlib.asynccontextmanager
async def kept_alive(sender: Sender) -> AsyncIterator[None]:
    """Send a comment now and then while a stream that has begun stands still.

    Proxies and clients end what is silent for a minute; an answer that waits for another replica
    may be silent for longer.
    """

    async def keep() -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 2)
            if sender.is_silent(KEEP_ALIVE_SECONDS / 2):
                await sender.send(answers.COMMENT)

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Sender:
    """Sends one response.

    Attributes:
        begun: whether its head is sent.
        closes: whether the connection ends with it.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.begun = False
        self.closes = False
        self._streaming = False
        self._ended = False
        self._sent = 0.0

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing of a stream that goes on was sent for so long."""
        goes_on = self._streaming and not self._ended
        return goes_on and asyncio.get_running_loop().time() - self._sent > seconds

    async def begin(
        self, status: int, kind: str, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        """Send the head; without a length a stream of events follows."""
        self.begun = True
        self._streaming = length is None
        self._sent = asyncio.get_running_loop().time()
        every = {"content-type": kind, "x-request-id": self._request_id, **headers}
        if length is not None:
            every["content-length"] = str(length)
        if self.closes:
            every["connection"] = "close"
        raw = [(key.encode(), value.encode()) for key, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of the body."""
        self._ended |= last
        self._sent = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def whole(self, status: int, value: object, headers: Mapping[str, str]) -> None:
        """Send a body of JSON."""
        data = answers.encoded(value)
        await self.begin(status, _JSON, headers, len(data))
        await self.send(data, last=True)

    async def fail(self, error: ApplianceError) -> None:
        """Tell an error: as a response, or as the last event of a stream that has begun."""
        if self._ended or isinstance(error, Cancelled):
            return
        body = answers.error_object(error)
        with contextlib.suppress(OSError):
            if self.begun:
                if self._streaming:
                    await self.send(answers.event(body), last=True)
                return
            await self.whole(answers.status_of(error), body, answers.error_headers(error))
