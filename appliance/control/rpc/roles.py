"""RoleService: see `appliance.control.services.access.roles`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.access.v1 import role_pb2
from appliance.api.access.v1 import role_service_pb2 as rpc
from appliance.api.access.v1.role_service_pb2_grpc import RoleServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.roles import RoleService

Context = grpc.aio.ServicerContext[Any, Any]


class RoleRpc(Servicer, RoleServiceServicer):
    """Translates."""

    def __init__(self, service: RoleService, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetRole(self, request: rpc.GetRoleRequest, context: Context) -> role_pb2.Role:
        """Returns one role."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListRoles(
        self, request: rpc.ListRolesRequest, context: Context
    ) -> rpc.ListRolesResponse:
        """Returns all roles."""
        return await self._run(self._service.list, self.caller, request)
