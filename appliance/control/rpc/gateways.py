"""GatewayService: see `appliance.control.services.serving.gateways` and `enrolment`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.serving.v1 import gateway_service_pb2 as rpc
from appliance.api.serving.v1.gateway_service_pb2_grpc import GatewayServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.fleet.enrolment import Enrolment
from appliance.control.services.serving.gateways import Gateways

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayRpc(Servicer, GatewayServiceServicer):
    """Translates."""

    def __init__(
        self, service: Gateways, enrolment: Enrolment, pool: CallPool, events: Events
    ) -> None:
        super().__init__(pool, events)
        self._service = service
        self._enrolment = enrolment

    async def ListGateways(
        self, request: rpc.ListGatewaysRequest, context: Context
    ) -> rpc.ListGatewaysResponse:
        """Returns one page of gateways."""
        return await self._run(self._service.list, self.caller, request)

    async def GetGateway(self, request: rpc.GetGatewayRequest, context: Context) -> rpc.Gateway:
        """Returns one gateway."""
        return await self._run(self._service.get, self.caller, request.name)

    async def DeleteGateway(
        self, request: rpc.DeleteGatewayRequest, context: Context
    ) -> rpc.DeleteGatewayResponse:
        """Deletes a gateway that was evicted or is not connected."""
        return await self._run(self._service.delete, self.caller, request)

    async def CreateGatewayJoinToken(
        self, request: rpc.CreateGatewayJoinTokenRequest, context: Context
    ) -> rpc.CreateGatewayJoinTokenResponse:
        """Makes a token with which one gateway may join once."""
        return await self._run(self._enrolment.create_gateway_join_token, self.caller, request)

    async def EvictGateway(self, request: rpc.EvictGatewayRequest, context: Context) -> rpc.Gateway:
        """Refuses the gateway from now on."""
        return await self._run(self._service.evict, self.caller, request)
