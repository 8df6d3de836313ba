"""BindingService: see `appliance.control.services.access.bindings`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.access.v1 import binding_pb2
from appliance.api.access.v1 import binding_service_pb2 as rpc
from appliance.api.access.v1.binding_service_pb2_grpc import BindingServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.bindings import Bindings

Context = grpc.aio.ServicerContext[Any, Any]


class BindingRpc(Servicer, BindingServiceServicer):
    """Translates."""

    def __init__(self, service: Bindings, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def ListBindings(
        self, request: rpc.ListBindingsRequest, context: Context
    ) -> rpc.ListBindingsResponse:
        """Returns one page of bindings."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateBinding(
        self, request: rpc.CreateBindingRequest, context: Context
    ) -> binding_pb2.Binding:
        """Gives a role."""
        return await self._run(self._service.create, self.caller, request)

    async def DeleteBinding(
        self, request: rpc.DeleteBindingRequest, context: Context
    ) -> rpc.DeleteBindingResponse:
        """Takes a role away."""
        return await self._run(self._service.delete, self.caller, request)
