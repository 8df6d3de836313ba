"""Reads a tokenizer from the control plane, in parts.

Rules kept here: a part comes in so many seconds, and all of them in so many. Called by
`appliance.gateway.view`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Unavailable, UnknownMethod
from appliance.gateway.received import Received
from appliance.wire.status import from_rpc_error

Fetched = tuple[str, routing_service_pb2.ServedTokenizer | None]
"""Which content it is, empty when nobody says; and the tokenizer, None when it is here already."""


WHOLE_SECONDS = 300.0
"""For all parts: 64 MiB at two megabits a second."""


async def fetch(
    stub: Any,  # noqa: ANN401 - generated, without types for asyncio
    request: routing_service_pb2.ReadServedTokenizerRequest,
    silence: float,
    whole: float = WHOLE_SECONDS,
) -> Fetched:
    """The tokenizer of the model that an endpoint serves.

    Args:
        stub: of the routing service.
        request: which endpoint and version, and what is here.
        silence: seconds that may pass until the next part.
        whole: seconds for all of them.

    Raises ApplianceError: it cannot be read, or did not arrive whole.
    """
    call = stub.ReadServedTokenizer(request)
    try:
        with _errors():
            async with asyncio.timeout(whole):
                return await _received(call, request.held, silence)
    except UnknownMethod:
        # An older control plane sends it in one message, if one holds it.
        before = routing_service_pb2.GetServedTokenizerRequest(endpoint=request.endpoint)
        with _errors():
            return "", await stub.GetServedTokenizer(before, timeout=silence)
    finally:
        call.cancel()


async def _received(call: Any, held: Collection[str], silence: float) -> Fetched:  # noqa: ANN401
    parts = aiter(call)
    received: Received | None = None
    while True:
        async with asyncio.timeout(silence):
            part = await anext(parts, None)
        if part is None:
            break
        if received is None:
            received = Received(part)
            if received.content in held:
                return received.content, None
        else:
            received.add(part)
    if received is None:
        raise Unavailable("the control plane sent no tokenizer: repeat the request")
    return received.content, received.finished()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except TimeoutError as error:
        raise Unavailable(
            "the control plane does not send the model's tokenizer: repeat the request later",
            retry_after=2.0,
        ) from error
