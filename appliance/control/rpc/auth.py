"""AuthService: see `appliance.control.services.authentication`."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import grpc.aio

from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.api.auth.v1.auth_service_pb2_grpc import AuthServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.authentication import Authentication

Context = grpc.aio.ServicerContext[Any, Any]


class AuthRpc(Servicer, AuthServiceServicer):
    """Translates."""

    def __init__(self, service: Authentication, pool: Executor, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def Login(self, request: rpc.LoginRequest, context: Context) -> rpc.LoginResponse:
        """Checks a password."""
        return await self._run(self._service.login, self.caller, request)

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

    async def Logout(self, request: rpc.LogoutRequest, context: Context) -> rpc.LogoutResponse:
        """Ends the caller's session."""
        return await self._run(self._service.logout, self.caller)
