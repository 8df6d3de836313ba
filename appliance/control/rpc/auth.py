"""AuthService: see `appliance.control.services.access.authentication`.

Rule kept here: while a password waits for its turn to be verified, no thread of the pool is held;
a try whose turn does not come, or whose caller leaves before, is given back.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.api.auth.v1.auth_service_pb2_grpc import AuthServiceServicer
from appliance.control.auth.hasher import Hasher
from appliance.control.auth.log_in import PendingLogIn
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer, stop_if_left
from appliance.control.services.access.authentication import Authentication
from appliance.core.errors import Exhausted
from appliance.wire.admission import source_of

Context = grpc.aio.ServicerContext[Any, Any]


class AuthRpc(Servicer, AuthServiceServicer):
    """Translates, and waits for the turn of a password."""

    def __init__(
        self, service: Authentication, hasher: Hasher, pool: CallPool, events: Events
    ) -> None:
        super().__init__(pool, events)
        self._service = service
        self._hasher = hasher

    async def Login(self, request: rpc.LoginRequest, context: Context) -> rpc.LoginResponse:
        """Checks a password."""
        begun = await self._run(self._service.begin_login, self.caller, request)
        right = await self._verify(begun, request.password)
        renewed = ""
        if right and await self._run(self._service.is_old, begun):
            renewed = await self._hash(begun, request.password)
        return await self._run(self._service.finish_login, self.caller, begun, right, renewed)

    async def EnrollTotp(
        self, request: rpc.EnrollTotpRequest, context: Context
    ) -> rpc.EnrollTotpResponse:
        """Starts enrolment of an authenticator."""
        return await self._run(self._service.enroll_totp, self.caller, request)

    async def VerifyTotp(
        self, request: rpc.VerifyTotpRequest, context: Context
    ) -> rpc.VerifyTotpResponse:
        """Proves the second factor."""
        return await self._run(self._service.verify_totp, self.caller, request)

    async def WhoAmI(self, request: rpc.WhoAmIRequest, context: Context) -> rpc.WhoAmIResponse:
        """Who the caller is and what it holds."""
        return await self._run(self._service.who_am_i, self.caller)

    async def ListMyPermissions(
        self, request: rpc.ListMyPermissionsRequest, context: Context
    ) -> rpc.ListMyPermissionsResponse:
        """Returns what the caller may do in one scope."""
        return await self._run(self._service.list_my_permissions, self.caller, request)

    async def Logout(self, request: rpc.LogoutRequest, context: Context) -> rpc.LogoutResponse:
        """Ends the caller's session."""
        return await self._run(self._service.logout, self.caller)

    async def ChangePassword(
        self, request: rpc.ChangePasswordRequest, context: Context
    ) -> rpc.ChangePasswordResponse:
        """Replaces the caller's own password."""
        begun = await self._run(self._service.begin_change, self.caller, request)
        if not await self._verify(begun, request.password):
            await self._run(self._service.refuse_change, begun)
        hashed = await self._hash(begun, request.new_password)
        return await self._run(self._service.finish_change, self.caller, begun, hashed)

    async def ListSessions(
        self, request: rpc.ListSessionsRequest, context: Context
    ) -> rpc.ListSessionsResponse:
        """Returns the caller's own live sessions."""
        return await self._run(self._service.list_sessions, self.caller)

    async def EndSession(
        self, request: rpc.EndSessionRequest, context: Context
    ) -> rpc.EndSessionResponse:
        """Ends one of the caller's own sessions."""
        return await self._run(self._service.end_session, self.caller, request)

    async def _verify(self, begun: PendingLogIn, password: str) -> bool:
        source = source_of(self.caller.source)
        try:
            stop_if_left()  # While the try was counted: it ends before it takes a turn.
            return await self._hasher.verify(
                begun.stored, password, account=begun.lane, source=source, known=begun.known
            )
        except (Exhausted, asyncio.CancelledError):
            await self._run(self._service.release, begun)
            raise

    async def _hash(self, begun: PendingLogIn, password: str) -> str:
        source = source_of(self.caller.source)
        try:
            stop_if_left()
            return await self._hasher.hash(password, account=begun.lane, source=source, known=True)
        except (Exhausted, asyncio.CancelledError):
            # The password was right; what is missing is a turn.
            await self._run(self._service.release, begun)
            raise
