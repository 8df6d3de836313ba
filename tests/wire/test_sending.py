from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from appliance.core.errors import NotFound
from appliance.wire.sending import end_with, send
from appliance.wire.status import to_status

STREAMS = 10


async def read_to_the_end(call: Any) -> None:
    async with asyncio.timeout(5):
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass


class Ended(grpc.GenericRpcHandler):
    """Ends each stream while its first message is on its way."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._end)

    async def _end(self, orders: AsyncIterator[bytes], context: Any) -> None:
        writer = asyncio.create_task(send(context, b"message"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream ends")


async def test_a_stream_that_ends_while_a_message_is_on_its_way_says_so() -> None:
    server = grpc.aio.server(handlers=[Ended()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(STREAMS):
            call = channel.stream_stream("/a/b")()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await read_to_the_end(call)
            assert failed.value.details() == "the stream ends"
        await server.stop(0)


class Stuck:
    """A call whose caller takes no message."""

    async def write(self, message: object) -> None:
        await asyncio.Event().wait()


async def test_a_sender_does_not_wait_for_ever_for_a_caller_who_takes_nothing() -> None:
    context: Any = Stuck()
    message: Any = b"message"
    writer = asyncio.create_task(send(context, message, give_up=0.01))
    await asyncio.sleep(0)
    writer.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(writer, return_exceptions=True)
    assert writer.cancelled()


class Told:
    """Notes the status that a call is told to end with."""

    def __init__(self) -> None:
        self.told: list[grpc.Status] = []

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.told.append(status)
        raise grpc.aio.AbortError


STATUS = to_status(NotFound("no dataset d"), "0" * 32)


async def test_a_call_ends_with_the_status_that_it_was_given() -> None:
    context: Any = Told()
    await end_with(context, STATUS)
    assert context.told == [STATUS]


@pytest.mark.attack
async def test_a_caller_who_has_left_gets_no_status() -> None:
    """gRPC loses a kilobyte for each status that it is sending when its caller leaves."""
    context: Any = Told()
    ending = asyncio.create_task(end_with(context, STATUS))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert ending.cancelled()
    assert context.told == []
