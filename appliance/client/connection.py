"""One server, one identity: calls carry the token and a request id, and fail as our own errors.

Rules kept here: the token travels only over TLS, to the kind of server it is meant for by the word
of the pinned authority, and is in no repr; every call has a deadline (a stream only when its caller
gives one); a failed call raises an `ApplianceError` with the server's sentence, reason and request
id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from appliance.core.identity import PrincipalKind
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import sync_channel

Stub = TypeVar("Stub")
DEADLINE = 60.0
"""Seconds a call may take when its caller names no other time."""


class Connection:
    """Calls one server as one identity; close it, or use it in a `with` block.

    Args:
        address: `host:port`.
        ca_pem: the appliance's CA certificate; no other authority is believed.
        token: bearer token; empty for calls that need no identity.
        server: which kind of server answers there; no other is believed.
    """

    def __init__(
        self,
        address: str,
        ca_pem: bytes,
        token: str = "",
        *,
        server: PrincipalKind = PrincipalKind.CONTROL,
    ) -> None:
        self.address = address
        self._channel = sync_channel(address, ca_pem, server_name=server.server_name)
        self._token = token

    def stub(self, kind: Callable[[grpc.Channel], Stub]) -> Stub:
        """A generated stub on this connection; pass its methods to `call`, `stream`, `upload`."""
        return kind(self._channel)

    def call(self, method: Any, request: Any, *, timeout: float | None = DEADLINE) -> Any:
        """One request, one response.

        Raises:
            ApplianceError: the call failed; the reason says how.
        """
        try:
            return method(request, timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def stream(self, method: Any, request: Any, *, timeout: float | None = None) -> Iterator[Any]:
        """One request, a stream of responses; closing the iterator cancels the call.

        Raises:
            ApplianceError: the call failed, at once or later.
        """
        responses = method(request, timeout=timeout, metadata=self._metadata())
        try:
            yield from responses
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            responses.cancel()

    def upload(self, method: Any, requests: Iterable[Any], *, timeout: float | None = None) -> Any:
        """A stream of requests, one response.

        Raises:
            ApplianceError: the call failed; the server kept nothing.
            BaseException: `requests` raised; the call is cancelled, the server kept nothing.
        """
        failure: list[BaseException] = []

        def guarded() -> Iterator[Any]:
            # gRPC reads requests on a thread of its own and would hide why it stopped.
            try:
                yield from requests
            except BaseException as error:
                failure.append(error)
                raise

        try:
            return method(guarded(), timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            if failure:
                raise failure[0] from error
            raise from_rpc_error(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return metadata(self._token)


def metadata(token: str, call: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata of one call: its id, or a new one, and the token when there is one."""
    identity = (("authorization", f"Bearer {token}"),) if token else ()
    return (("x-request-id", call or str(uuid.uuid4())), *identity)
