"""Callers that ask one answer after the other, while something happens to what answers them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from appliance.client.inference import AsyncInference
from appliance.core.errors import ApplianceError

TIMEOUT = 180.0


@dataclass(frozen=True)
class Failure:
    """An answer that is not whole: when it was asked for, what came of it, and why no more."""

    asked: float
    tokens: int
    reason: str
    message: str


@dataclass
class Streams:
    """What became of the answers; times are those of `time.monotonic`."""

    tokens: int
    pause: float
    answers: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    async def ask(self, client: AsyncInference, endpoint: str) -> None:
        """Ask until it is stopped; the last answer is read to its end."""
        sampling = {"max_tokens": self.tokens, "ignore_end": True}
        while not self.stopped.is_set():
            asked, got = time.monotonic(), 0
            try:
                pieces = client.generate(endpoint, prompt="Once", timeout=TIMEOUT, **sampling)
                async for piece in pieces:
                    got += len(piece.token_ids)
            except ApplianceError as error:
                self.failures.append(Failure(asked, got, error.reason, error.message))
                await asyncio.sleep(0.5)
                continue
            if got == self.tokens:
                self.answers += 1
            else:
                self.failures.append(Failure(asked, got, "", "it ended early"))
            await asyncio.sleep(self.pause)


@contextmanager
def flowing(
    connect: Callable[[], AsyncInference],
    endpoint: str,
    *,
    count: int,
    tokens: int,
    pause: float = 0.0,
) -> Iterator[Streams]:
    """So many callers at a time, in a thread of their own; afterwards no answer is on its way.

    `tokens` of each answer, and `pause` seconds between two of a caller.
    """
    streams = Streams(tokens, pause)

    async def run() -> None:
        async with connect() as client:
            await asyncio.gather(*(streams.ask(client, endpoint) for _ in range(count)))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield streams
    finally:
        streams.stopped.set()
        thread.join()
