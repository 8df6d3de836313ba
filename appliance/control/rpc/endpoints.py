"""EndpointService: see `appliance.control.services.serving.endpoints`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import endpoint_service_pb2 as rpc
from appliance.api.serving.v1.endpoint_service_pb2_grpc import EndpointServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.serving.endpoints import Endpoints

Context = grpc.aio.ServicerContext[Any, Any]


class EndpointRpc(Servicer, EndpointServiceServicer):
    """Translates."""

    def __init__(self, service: Endpoints, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetEndpoint(
        self, request: rpc.GetEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        """Returns one endpoint."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListEndpoints(
        self, request: rpc.ListEndpointsRequest, context: Context
    ) -> rpc.ListEndpointsResponse:
        """Returns one page of endpoints."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateEndpoint(
        self, request: rpc.CreateEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        """Starts to serve a model version."""
        return await self._run(self._service.create, self.caller, request)

    async def UpdateEndpoint(
        self, request: rpc.UpdateEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        """Changes what it serves, how many replicas, or their limits."""
        return await self._run(self._service.update, self.caller, request)

    async def StopEndpoint(
        self, request: rpc.StopEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        """Drains the replicas; the endpoint stays."""
        return await self._run(self._service.stop, self.caller, request)

    async def StartEndpoint(
        self, request: rpc.StartEndpointRequest, context: Context
    ) -> endpoint_pb2.Endpoint:
        """Starts the replicas of an endpoint that was stopped."""
        return await self._run(self._service.start, self.caller, request)

    async def DeleteEndpoint(
        self, request: rpc.DeleteEndpointRequest, context: Context
    ) -> rpc.DeleteEndpointResponse:
        """Drains the replicas and takes the endpoint down."""
        return await self._run(self._service.delete, self.caller, request)

    async def WatchEndpoint(
        self, request: rpc.WatchEndpointRequest, context: Context
    ) -> AsyncIterator[endpoint_pb2.Endpoint]:
        """Streams the endpoint now and each time it changes, until it is deleted."""
        caller = self.caller
        first = await self._run(self._service.get, caller, request.name)
        yield first

        def read() -> endpoint_pb2.Endpoint | None:
            return self._service.find(request.name, first.uid)

        last = first
        async for endpoint in self._follow(request.name, read, lambda found: found is None):
            if endpoint is not None and endpoint != last:
                yield endpoint
                last = endpoint
