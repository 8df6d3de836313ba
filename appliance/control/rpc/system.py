"""SystemService: see `appliance.control.services.system.system`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.system.v1 import system_service_pb2 as rpc
from appliance.api.system.v1.system_service_pb2_grpc import SystemServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.system.system import System

Context = grpc.aio.ServicerContext[Any, Any]


class SystemRpc(Servicer, SystemServiceServicer):
    """Translates."""

    def __init__(self, service: System, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetSystem(
        self, request: rpc.GetSystemRequest, context: Context
    ) -> rpc.GetSystemResponse:
        """Returns the version and the state of the control plane."""
        return await self._run(self._service.get, self.caller)

    async def ListExpirations(
        self, request: rpc.ListExpirationsRequest, context: Context
    ) -> rpc.ListExpirationsResponse:
        """Returns what ends and somebody must see to."""
        return await self._run(self._service.list_expirations, self.caller)

    async def ListPermissions(
        self, request: rpc.ListPermissionsRequest, context: Context
    ) -> rpc.ListPermissionsResponse:
        """Returns every RPC with the permission it needs."""
        return await self._run(self._service.list_permissions, self.caller)
