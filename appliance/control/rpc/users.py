"""UserService: see `appliance.control.services.access.users`.

Rule kept here: while a password waits for its turn to be hashed, no thread of the pool is held.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.access.v1 import user_pb2
from appliance.api.access.v1 import user_service_pb2 as rpc
from appliance.api.access.v1.user_service_pb2_grpc import UserServiceServicer
from appliance.control.auth.hasher import Hasher
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.access.users import Users
from appliance.wire.admission import source_of

Context = grpc.aio.ServicerContext[Any, Any]


class UserRpc(Servicer, UserServiceServicer):
    """Translates, and waits for the turn of a password."""

    def __init__(self, service: Users, hasher: Hasher, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service
        self._hasher = hasher

    async def GetUser(self, request: rpc.GetUserRequest, context: Context) -> user_pb2.User:
        """Returns one user."""
        return await self._run(self._service.get, self.caller, request)

    async def ListUsers(
        self, request: rpc.ListUsersRequest, context: Context
    ) -> rpc.ListUsersResponse:
        """Returns one page of users."""
        return await self._run(self._service.list, self.caller, request)

    async def CreateUser(self, request: rpc.CreateUserRequest, context: Context) -> user_pb2.User:
        """Creates a user with a first password."""
        await self._run(self._service.check_create, request)
        hashed = await self._hash(request.password)
        return await self._run(self._service.create, self.caller, request, hashed)

    async def UpdateUser(self, request: rpc.UpdateUserRequest, context: Context) -> user_pb2.User:
        """Describes a user."""
        return await self._run(self._service.update, self.caller, request)

    async def DeleteUser(
        self, request: rpc.DeleteUserRequest, context: Context
    ) -> rpc.DeleteUserResponse:
        """Deletes a user."""
        return await self._run(self._service.delete, self.caller, request)

    async def LockUser(self, request: rpc.LockUserRequest, context: Context) -> user_pb2.User:
        """Locks a user."""
        return await self._run(self._service.lock, self.caller, request)

    async def UnlockUser(self, request: rpc.UnlockUserRequest, context: Context) -> user_pb2.User:
        """Unlocks a user."""
        return await self._run(self._service.unlock, self.caller, request)

    async def ResetPassword(
        self, request: rpc.ResetPasswordRequest, context: Context
    ) -> user_pb2.User:
        """Gives a user another password."""
        await self._run(self._service.check_reset, self.caller, request)
        hashed = await self._hash(request.password)
        return await self._run(self._service.reset_password, self.caller, request, hashed)

    async def ResetFactor(self, request: rpc.ResetFactorRequest, context: Context) -> user_pb2.User:
        """Takes a user's second factor away."""
        return await self._run(self._service.reset_factor, self.caller, request)

    async def EndUserSessions(
        self, request: rpc.EndUserSessionsRequest, context: Context
    ) -> rpc.EndUserSessionsResponse:
        """Ends every session of a user."""
        return await self._run(self._service.end_sessions, self.caller, request)

    async def _hash(self, password: str) -> str:
        caller = self.caller
        return await self._hasher.hash(
            password,
            account=caller.principal.subject,
            source=source_of(caller.source),
            known=True,
        )
