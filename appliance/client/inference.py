"""Ask served models over gRPC, from code with an event loop and from code without one.

The text and the answer are never logged. Leaving an answer early cancels the call, which frees its
slot in the engine at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from appliance.api.inference.v1 import generation_pb2 as generation
from appliance.api.inference.v1 import inference_service_pb2 as inference
from appliance.api.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from appliance.client.connection import Connection, metadata
from appliance.core.identity import PrincipalKind
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import channel

Messages = Sequence[tuple[str, str]]
"""A conversation: (role, content), oldest first."""


def question(
    endpoint: str,
    *,
    prompt: str | None = None,
    messages: Messages | None = None,
    sampling: generation.Sampling,
) -> inference.GenerateRequest:
    """The request for one answer, from a plain prompt or from a conversation."""
    if messages is None:
        return inference.GenerateRequest(endpoint=endpoint, prompt=prompt or "", sampling=sampling)
    chat = inference.Chat(
        messages=[inference.ChatMessage(role=role, content=text) for role, text in messages]
    )
    return inference.GenerateRequest(endpoint=endpoint, chat=chat, sampling=sampling)


def generate(
    connection: Connection, request: inference.GenerateRequest, *, timeout: float | None = None
) -> Iterator[inference.GenerateResponse]:
    """Stream an answer; closing the iterator ends it.

    Raises:
        ApplianceError: it was refused or failed.
    """
    stub = connection.stub(InferenceServiceStub)
    return connection.stream(stub.Generate, request, timeout=timeout)


class AsyncInference:
    """Asks one gateway as one identity; any number of answers at once.

    Args:
        address: `host:port` of the gateway's gRPC listener.
        ca_pem: the appliance's CA certificate.
        token: bearer token of a user's session or of a service account.
    """

    def __init__(self, address: str, ca_pem: bytes, token: str) -> None:
        self._channel = channel(address, ca_pem, server_name=PrincipalKind.GATEWAY.server_name)
        self._stub = InferenceServiceStub(self._channel)
        self._token = token

    async def generate(
        self,
        endpoint: str,
        *,
        prompt: str | None = None,
        messages: Messages | None = None,
        timeout: float | None = None,
        **sampling: float | bool | Sequence[str],
    ) -> AsyncIterator[inference.GenerateResponse]:
        """Stream an answer; `sampling` takes the fields of `Sampling`.

        Raises:
            ApplianceError: it was refused or failed.
        """
        request = question(
            endpoint,
            prompt=prompt,
            messages=messages,
            sampling=generation.Sampling(**sampling),  # type: ignore[arg-type]  # protobuf checks them
        )
        call = self._stub.Generate(request, timeout=timeout, metadata=metadata(self._token))
        try:
            async for piece in call:
                yield piece
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection; answers that still stream end."""
        await self._channel.close(None)
