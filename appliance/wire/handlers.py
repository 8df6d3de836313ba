"""What gRPC calls for a method: bytes in, and every message read and parsed by the door.

gRPC reads and parses the request of a unary call before any code of ours runs, so a call that never
sends it holds a place unseen, and a malformed one is answered by gRPC with the name of a Python
class, without a limit or a record. Rules kept here:
* every method is registered as one that receives a stream of bytes (on the wire there is no
  difference), so that the door runs first;
* a message that is malformed, compressed or has text that is not Unicode is refused with a
  sentence, the first one and each later one;
* a request of one message is that message: a call without it is refused.

The attacks: held calls, malformed and compressed messages, text with lone surrogates. Called by the
door.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from appliance.core.errors import InvalidInput
from appliance.core.waiting import in_seconds

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[[Any, Any], Any]
"""A service's function: (request or stream, context) to an awaitable or an async generator."""


class Incoming:
    """The messages of one call, still unread.

    Args:
        method: full path, for the sentences.
        raw: the bytes of each message.
        parse: bytes to a message; the generated class' own.
    """

    def __init__(
        self, method: str, raw: AsyncIterator[bytes], parse: Callable[[bytes], Message]
    ) -> None:
        self._name = method.rpartition("/")[2]
        self._raw = raw
        self._parse = parse
        self._deadline: asyncio.Timeout | None = None
        self._ended = False

    def end(self) -> None:
        """Wait no longer for the first message: the call's place is needed."""
        self._ended = True
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())

    async def first(self, seconds: float) -> Message | None:
        """The first message; None when the caller sends none.

        Raises InvalidInput when it cannot be read or does not come in time, TimeoutError after
        `end`.
        """
        try:
            async with asyncio.timeout(seconds) as self._deadline:
                raw = await anext(self._raw, None)
        except TimeoutError as error:
            if self._ended:
                raise
            raise InvalidInput(
                f"the first message of {self._name} did not come within {in_seconds(seconds)}"
            ) from error
        return None if raw is None else self._parsed(raw)

    async def only(self, seconds: float) -> Message:
        """The one message of a request that is no stream; raises as `first`, also without it."""
        message = await self.first(seconds)
        if message is None:
            raise InvalidInput(f"{self._name} came without its message: send it")
        return message

    async def whole(self, first: Message | None) -> AsyncIterator[Message]:
        """Every message, the one that was read already included. Raises InvalidInput."""
        if first is not None:
            yield first
        async for raw in self._raw:
            yield self._parsed(raw)

    async def close(self) -> None:
        """Let go of what was not read; the call is over.

        gRPC's stream and the call it belongs to know each other: without this each call would stay
        until somebody searches all memory for circles, see `appliance.wire.sending.end_with`.
        """
        close = getattr(aiter(self._raw), "aclose", None)
        if close is not None:
            # A service's own reader, cancelled a moment ago, may still hold it.
            with contextlib.suppress(RuntimeError):
                await close()

    def _parsed(self, raw: bytes) -> Message:
        try:
            return self._parse(raw)
        except (DecodeError, ValueError):
            # Not `from`: what the parser says is about the inside, and may quote the message.
            raise InvalidInput(
                f"a message of {self._name} cannot be read: send it uncompressed, as the published "
                "protos describe it, with text in UTF-8"
            ) from None


def parser_of(handler: Handler) -> Callable[[bytes], Message]:
    """How a handler's messages are read."""
    return cast("Callable[[bytes], Message]", handler.request_deserializer)


def behaviour_of(handler: Handler) -> Behaviour:
    """The one function a handler has."""
    functions = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    return cast("Behaviour", next(function for function in functions if function is not None))


def receiving_bytes(
    behaviour: Behaviour,
    *,
    streams: bool,
    serializer: Callable[[Any], bytes] | None = None,
) -> Handler:
    """A handler that gives `behaviour` a stream of bytes at once, before anything was received.

    Args:
        behaviour: a coroutine function of (stream of bytes, context).
        streams: whether it answers with a stream, by `context.write`.
        serializer: of its answers; None when they are bytes.
    """
    if streams:
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=serializer)
    return grpc.stream_unary_rpc_method_handler(behaviour, response_serializer=serializer)
