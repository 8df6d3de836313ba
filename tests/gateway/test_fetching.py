"""A tokenizer that is read from a control plane: in time, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Unavailable
from appliance.gateway.fetching import fetch

Part = routing_service_pb2.ServedTokenizerPart


class Drips:
    """A control plane that sends one byte more each time, for ever; also the call to it."""

    def __init__(self) -> None:
        self.sent = 0
        self.cancelled = False

    def ReadServedTokenizer(self, request: object) -> Drips:
        del request
        return self

    async def __aiter__(self) -> AsyncIterator[Part]:
        tokenizer = routing_service_pb2.ServedTokenizer()
        yield Part(tokenizer=tokenizer, content="c", tokenizer_json_size=64 << 20)
        while True:
            await asyncio.sleep(0)
            self.sent += 1
            yield Part(data=b"x")

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.attack
async def test_one_that_comes_byte_by_byte_has_its_time() -> None:
    drips = Drips()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="does not send the model's tokenizer"):
            await fetch(
                drips,
                routing_service_pb2.ReadServedTokenizerRequest(endpoint="e"),
                silence=60.0,
                whole=0.05,
            )
    assert drips.sent
    assert drips.cancelled
