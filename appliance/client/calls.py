"""Calls of a program without an event loop: made again where that is right, as errors of ours.

Any number of threads may share one. Called by the generated nouns and by what stands on them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from functools import partial
from typing import Any, TypeVar

import grpc

from appliance.api.system.v1.system_service_pb2 import GetSystemResponse
from appliance.client.channels import Channels
from appliance.client.connection import DEADLINE, metadata
from appliance.client.methods import Method, find
from appliance.client.requests import PAGE_SIZE, Requests, has_pages, is_state
from appliance.client.target import Target
from appliance.client.tries import Tries
from appliance.core.identity import PrincipalKind
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import sync_channel

Reply = TypeVar("Reply")
ASK = "InferenceService.Generate"


class Calls:
    """Calls an appliance as one caller."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.requests = Requests(target)
        self._channels = Channels(sync_channel, target.ca_pem)
        self._gateway = target.gateway

    def unary(
        self,
        rpc: str,
        answer: type[Reply],
        timeout: float | None = DEADLINE,
        /,
        **fields: Any,
    ) -> Reply:
        """One request, one response.

        Args:
            rpc: its short name.
            answer: the class of its response.
            timeout: seconds for all tries of it.
            fields: of the request.

        Raises:
            ApplianceError: it was refused or failed.
        """
        del answer  # for the type of what is returned
        method = find(rpc)
        found: Reply = self._unary(method, self.requests.make(method, fields), timeout)
        return found

    def pages(
        self,
        rpc: str,
        answer: type[Reply],
        field: str,
        timeout: float | None = DEADLINE,
        /,
        **fields: Any,
    ) -> Generator[Reply, None, None]:
        """Every resource of a list, page by page as they are read.

        Args:
            rpc: short name of a list.
            answer: the class of a resource.
            field: of the response that holds a page of them.
            timeout: seconds for all tries of one page.
            fields: of the request.

        Raises:
            ApplianceError: it was refused or failed, at once or later.
        """
        del answer
        method = find(rpc)
        return self._pages(method, self.requests.make(method, fields), field, timeout)

    def stream(
        self,
        rpc: str,
        answer: type[Reply],
        timeout: float | None = None,
        /,
        **fields: Any,
    ) -> Generator[Reply, None, None]:
        """One request, a stream of responses; closing the iterator ends the call.

        One that watches a thing goes on through cut connections, and says the state anew. Any other
        stream is begun again before its first message alone.

        Args:
            rpc: its short name.
            answer: the class of its messages.
            timeout: seconds for all of it; None: no limit, and a minute for a server that is away.
            fields: of the request.

        Raises:
            ApplianceError: it was refused or failed, at once or later.
        """
        del answer
        method = find(rpc)
        return self._stream(method, self.requests.make(method, fields), timeout)

    def close(self) -> None:
        """Close every connection; what still streams ends."""
        for channel in self._channels.take():
            channel.close()

    def _unary(self, method: Method, request: Any, timeout: float | None) -> Any:
        tries, call = Tries(timeout, repeatable=method.repeatable), str(uuid.uuid4())
        while True:
            token = self.target.credential.token
            try:
                make = self._channels.call(self.target.server, PrincipalKind.CONTROL, method)
                return make(request, timeout=tries.left, metadata=metadata(token, call))
            except grpc.RpcError as error:
                renew = partial(self.target.credential.renew, token)
                pause = tries.pause(from_rpc_error(error), renew)
            time.sleep(pause)

    def _pages(
        self, method: Method, request: Any, field: str, timeout: float | None
    ) -> Generator[Any, None, None]:
        paged = has_pages(request)
        if paged:
            request.page_size = PAGE_SIZE
        while True:
            response = self._unary(method, request, timeout)
            yield from getattr(response, field)
            if not paged or not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def _stream(
        self, method: Method, request: Any, timeout: float | None
    ) -> Generator[Any, None, None]:
        asks = method.name == ASK
        tries, call = Tries(timeout, repeatable=asks or method.repeatable), str(uuid.uuid4())
        kind = PrincipalKind.GATEWAY if asks else PrincipalKind.CONTROL
        address = self._gateway_address() if asks else self.target.server
        while True:
            token = self.target.credential.token
            make = self._channels.call(address, kind, method)
            responses = make(request, timeout=tries.left, metadata=metadata(token, call))
            try:
                for message in responses:
                    tries.answered(whole=is_state(method))
                    yield message
            except grpc.RpcError as error:
                renew = partial(self.target.credential.renew, token)
                pause = tries.pause(from_rpc_error(error), renew)
            else:
                return
            finally:
                responses.cancel()
            time.sleep(pause)

    def _gateway_address(self) -> str:
        """Where the gateway answers, as was given or as the control plane says."""
        if not self._gateway:
            found = self.unary("SystemService.GetSystem", GetSystemResponse)
            self._gateway = found.gateway_address
        return self._gateway
