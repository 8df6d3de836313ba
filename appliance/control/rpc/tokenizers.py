"""TokenizerService: see `appliance.control.services.data.tokenizers`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.data.v1 import tokenizer_pb2, tombstone_pb2
from appliance.api.data.v1 import tokenizer_service_pb2 as rpc
from appliance.api.data.v1.tokenizer_service_pb2_grpc import TokenizerServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data.tokenizers import Tokenizers

Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerRpc(Servicer, TokenizerServiceServicer):
    """Translates."""

    def __init__(self, service: Tokenizers, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetTokenizer(
        self, request: rpc.GetTokenizerRequest, context: Context
    ) -> tokenizer_pb2.Tokenizer:
        """Returns one tokenizer."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListTokenizers(
        self, request: rpc.ListTokenizersRequest, context: Context
    ) -> rpc.ListTokenizersResponse:
        """Returns one page of tokenizers."""
        return await self._run(self._service.list, self.caller, request)

    async def DeleteTokenizer(
        self, request: rpc.DeleteTokenizerRequest, context: Context
    ) -> tombstone_pb2.Deletion:
        """Deletes a tokenizer."""
        return await self._run(self._service.delete, self.caller, request)
