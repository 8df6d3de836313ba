"""UserService: see `appliance.control.services.users`."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import grpc.aio

from appliance.api.access.v1 import user_pb2
from appliance.api.access.v1 import user_service_pb2 as rpc
from appliance.api.access.v1.user_service_pb2_grpc import UserServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.users import Users

Context = grpc.aio.ServicerContext[Any, Any]


class UserRpc(Servicer, UserServiceServicer):
    """Translates."""

    def __init__(self, service: Users, pool: Executor, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetUser(self, request: rpc.GetUserRequest, context: Context) -> user_pb2.User:
        """Returns one user."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListUsers(
        self, request: rpc.ListUsersRequest, context: Context
    ) -> rpc.ListUsersResponse:
        """Returns one page of users."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateUser(self, request: rpc.CreateUserRequest, context: Context) -> user_pb2.User:
        """Creates a user with a first password."""
        return await self._run(self._service.create, self.caller, request)

    async def LockUser(self, request: rpc.LockUserRequest, context: Context) -> user_pb2.User:
        """Locks a user."""
        return await self._run(self._service.lock, self.caller, request)

    async def UnlockUser(self, request: rpc.UnlockUserRequest, context: Context) -> user_pb2.User:
        """Unlocks a user."""
        return await self._run(self._service.unlock, self.caller, request)
